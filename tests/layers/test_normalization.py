import jax
import jax.numpy as jnp
import numpy as np
import parity
import peers
import pytest

from zoo.errors import UserError
from zoo.layers import GroupNorm, LayerNorm, RMSNorm
from zoo.weights.tables import Entry

TABLE = [Entry("weight", "scale"), Entry("bias", "bias")]


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32) * 3 + 1


def randomized(module):
    torch = peers.torch()
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def test_layer_norm_is_pytorchs():
    reference = randomized(peers.torch().nn.LayerNorm(7))
    parity.check_parity(LayerNorm(), reference, TABLE, normal(3, 5, 7), axes=None)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-3])
def test_rms_norm_is_pytorchs(epsilon):
    reference = randomized(peers.torch().nn.RMSNorm(7, eps=epsilon))
    parity.check_parity(RMSNorm(epsilon), reference, TABLE[:1], normal(3, 5, 7), axes=None)


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
def test_group_norm_is_pytorchs(epsilon):
    reference = randomized(peers.torch().nn.GroupNorm(3, 6, eps=epsilon))
    parity.check_parity(
        GroupNorm(3, epsilon),
        reference,
        TABLE,
        normal(2, 4, 5, 6),
        ours=lambda apply, x: apply(x).transpose(parity.IMAGE_AXES),
    )


def test_large_means_cost_no_precision():
    x = normal(4, 64).astype(np.float64)
    shifted = np.float32(x + 10_000)
    module = LayerNorm()
    variables = module.init(jax.random.key(0), shifted)
    exact = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(module.apply(variables, shifted), exact, atol=2e-3)


def test_groups_must_divide_the_channels():
    with pytest.raises(UserError, match="num_groups=4 must divide 6"):
        GroupNorm(4).init(jax.random.key(0), jnp.zeros((1, 2, 2, 6)))
