"""Rotary positions against transformers' rates and modules, in float64."""

import exact_torch
import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from zoo.errors import UserError
from zoo.layers import rotary

# Of each: the reference's parameters, ours, and the largest position the reference is made for.
SCALINGS = {
    "default": ({}, {}, 64),
    "linear": ({"factor": 3.0}, {"factor": 3.0}, 64),
    "dynamic": ({"factor": 2.5}, {"factor": 2.5, "original_context": 12}, 12),
    "llama3": (
        {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 48,
        },
        {"factor": 8.0, "rotations": (1.0, 4.0), "original_context": 48},
        384,
    ),
    "yarn": (
        {"factor": 4.0, "original_max_position_embeddings": 32},
        {"factor": 4.0, "rotations": (1.0, 32.0), "original_context": 32},
        128,
    ),
    "yarn, fast and slow": (
        {
            "factor": 6.0, "original_max_position_embeddings": 64, "beta_fast": 5.0,
            "beta_slow": 0.5, "truncate": False, "attention_factor": 1.25,
        },
        {
            "factor": 6.0, "rotations": (0.5, 5.0), "original_context": 64, "truncate": False,
            "attention_factor": 1.25,
        },
        384,
    ),
}  # fmt: skip


def reference(name, parameters, longest):
    """The reference's rotary module, whose rates are in float64."""
    transformers = peers.transformers()
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = transformers.LlamaConfig(
        hidden_size=32, num_attention_heads=2, max_position_embeddings=longest,
        rope_parameters={"rope_type": name, "rope_theta": 500.0, **parameters},
    )  # fmt: skip
    return LlamaRotaryEmbedding(config)


def turned_by_reference(module, x, positions):
    torch = peers.torch()
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    # The module has no parameter of its own whose type would say that all is float64.
    module.witness = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    with exact_torch.exact(module):
        tensor = torch.tensor(x)
        cosine, sine = module(tensor, torch.tensor(positions))
        return apply_rotary_pos_emb(tensor, tensor, cosine, sine, unsqueeze_dim=2)[0].numpy()


@pytest.mark.parametrize("name", SCALINGS)
def test_heads_turn_as_the_references(name):
    parameters, ours, longest = SCALINGS[name]
    kind = name.partition(",")[0]
    x = np.random.default_rng(0).normal(size=(2, 20, 3, 16))
    # Rows that begin at different positions, as padded ones do.
    positions = np.stack([np.arange(20), np.maximum(np.arange(20) - 4, 0)])
    expected = turned_by_reference(reference(kind, parameters, longest), x, positions)
    with jax.enable_x64(True):
        scaling = rotary.Scaling(kind, **ours)
        rates = rotary.rotary_rates(16, 500.0, scaling, 20)
        table = rotary.rotary_table(positions, rates, rotary.attention_factor(scaling))
        found = rotary.rotate(jnp.asarray(x), table)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
        if kind == "dynamic":
            of_traced = jax.jit(lambda n: rotary.rotary_rates(16, 500.0, scaling, n))(20)
            np.testing.assert_allclose(of_traced, rates, rtol=1e-12)
    assert kind == "default" or not np.allclose(rates, rotary.rotary_rates(16, 500.0), rtol=1e-3), (
        "the scaling changed nothing, so comparing it shows nothing"
    )


def test_yarns_magnitude_follows_both_weights():
    peers.transformers()
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {
        "factor": 40.0, "original_max_position_embeddings": 64, "mscale": 0.7,
        "mscale_all_dim": 1.2,
    }  # fmt: skip
    _, expected = ROPE_INIT_FUNCTIONS["yarn"](reference("yarn", parameters, 2560).config)
    found = rotary.yarn_magnitude(40.0, 0.7) / rotary.yarn_magnitude(40.0, 1.2)
    assert found == pytest.approx(expected, rel=1e-12)
    assert rotary.attention_factor(rotary.Scaling("yarn", 1.0)) == 1.0


def test_products_depend_on_the_distance_alone():
    query, key = (np.random.default_rng(i).normal(size=(1, 1, 1, 8)) for i in range(2))
    with jax.enable_x64(True):
        rates = rotary.rotary_rates(8, 100.0)

        def product(a, b):
            at = (rotary.rotary_table(jnp.array([[place]]), rates) for place in (a, b))
            turned = (rotary.rotate(jnp.asarray(x), next(at)) for x in (query, key))
            return float(jnp.vdot(*turned))

        assert product(3, 5) == pytest.approx(product(1003, 1005), rel=1e-10)
        assert product(3, 5) != pytest.approx(product(3, 6), rel=1e-3)


def test_bfloat16_turns_by_exact_angles():
    x = jnp.ones((1, 1, 1, 8), jnp.bfloat16)
    # In bfloat16 this position would be 65,536 as well.
    table = rotary.rotary_table(jnp.array([[65_533]]), rotary.rotary_rates(8, 1e4))
    assert table.cosine.dtype == jnp.float32
    found = rotary.rotate(x, table)
    assert found.dtype == jnp.bfloat16
    angles = 65_533 * 1e4 ** -(np.arange(4) / 4)
    exact = [np.cos(angles) - np.sin(angles), np.cos(angles) + np.sin(angles)]
    np.testing.assert_allclose(found[0, 0, 0].astype(float), np.concatenate(exact), atol=0.02)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rotary.rotary_rates(7, 1e4), "7 features"),
        (lambda: rotary.rotary_rates(8, 1e4, rotary.Scaling("longrope")), "'longrope'.*yarn"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(UserError, match=words):
        call()
