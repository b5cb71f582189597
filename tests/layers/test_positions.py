import math

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from zoo.layers import sinusoidal


def test_it_is_the_papers_formula():
    features = 10
    with jax.enable_x64(True):
        made = sinusoidal(jnp.arange(50), features)
    for position in (0, 1, 17, 49):
        for i in range(features // 2):
            angle = position / 10_000 ** (2 * i / features)
            assert made[position, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert made[position, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_it_is_diffusers_embedding_of_timesteps(shift):
    peers.diffusers()
    from diffusers.models.embeddings import get_timestep_embedding

    torch = peers.torch()
    times = np.array([0, 1, 10, 500, 999])
    expected = get_timestep_embedding(
        torch.tensor(times), 16, flip_sin_to_cos=True, downscale_freq_shift=shift
    )
    made = sinusoidal(jnp.asarray(times), 16, interleaved=False, shift=shift)
    np.testing.assert_allclose(made, expected, atol=2e-4)


def test_odd_widths_are_refused():
    with pytest.raises(ValueError, match="features=5"):
        sinusoidal(jnp.arange(3), 5)
