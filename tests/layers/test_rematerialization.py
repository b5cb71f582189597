"""Rematerialisation: the same numbers from less memory, for every model that has it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from zoo.errors import UserError
from zoo.layers.rematerialization import NAMES, rematerialized
from zoo.models import GPT, Transformer, ViT

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 6)))
IMAGES = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32))


def gpt(**how):
    model = GPT(vocab_size=11, context=6, num_layers=2, num_heads=2, features=8, **how)
    return model, (TOKENS,)


def scanned_gpt(**how):
    return gpt(scan_layers=True, **how)


def transformer(**how):
    return Transformer(11, 11, 8, 2, 1, 1, 16, dropout_rate=0.2, **how), (TOKENS, TOKENS)


def vit(**how):
    model = ViT(
        num_classes=3, image_size=8, patch_size=4, features=8, num_layers=2, num_heads=2,
        feedforward_features=16, dropout_rate=0.2, **how,
    )  # fmt: skip
    return model, (IMAGES,)


def gradient_of(model, inputs):
    def loss(params):
        rngs = {"dropout": jax.random.key(3)}
        return sum(
            jnp.sin(x).sum()
            for x in jax.tree.leaves(
                model.apply({"params": params}, *inputs, train=True, rngs=rngs)
            )
        )

    return jax.value_and_grad(loss)


def products(jaxpr):
    """The number of products in a program, in those it calls too."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name in ("dot_general", "linear")
        if equation.primitive.name != "linear":
            inner = jaxprs_in_params(equation.params)
            count += sum(map(products, inner))
    return count


@pytest.mark.parametrize("made", [gpt, scanned_gpt, transformer, vit])
def test_less_is_kept_and_the_numbers_stay(made):
    model, inputs = made()
    params = model.init(jax.random.key(0), *inputs)["params"]
    exact = jax.jit(gradient_of(model, inputs))(params)
    counted = {}
    for how in NAMES:
        model, inputs = made(remat=how)
        gradient = gradient_of(model, inputs)
        traced = jax.jit(gradient).trace(params)
        counted[how] = products(traced.jaxpr.jaxpr)
        found = traced.lower().compile()(params)
        assert jax.tree.structure(found) == jax.tree.structure(exact)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)
    # Every product of a block runs a second time, or attention's alone.
    assert counted["block"] > counted["dots"] > counted["none"]


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="remat='all' must be one of 'none', 'block', 'dots'"):
        rematerialized(lambda block, x: x, "all")
