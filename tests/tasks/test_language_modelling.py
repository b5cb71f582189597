"""The language model's loss in parts of the time against the loss of all logits at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from zoo.models import GPT
from zoo.tasks.language_modelling import LanguageModelling

ROWS, TIME, WORDS = 2, 13, 301
WHOLE = LanguageModelling(
    GPT(vocab_size=WORDS, context=TIME, num_layers=1, num_heads=2, features=8), logits_at_once=0
)
GENERATOR = np.random.default_rng(0)
BATCH = {
    "tokens": jnp.asarray(GENERATOR.integers(0, WORDS, (ROWS, TIME))),
    "targets": jnp.asarray(GENERATOR.integers(0, WORDS, (ROWS, TIME))),
    "token_mask": jnp.asarray((GENERATOR.random((ROWS, TIME)) > 0.3).astype(np.float32)),
    "mask": jnp.ones(ROWS),
}


def largest(jaxpr):
    """The largest number of elements of an array in a program, in those it calls too."""
    here = [v.aval.size for e in jaxpr.eqns for v in e.outvars if hasattr(v.aval, "size")]
    inner = [largest(sub) for e in jaxpr.eqns for sub in jaxprs_in_params(e.params)]
    return max([*here, *inner], default=0)


# Parts of one step, of some that divide the time not, and of too many for the batch.
@pytest.mark.parametrize("steps", [1, 4, 12])
def test_loss_and_gradient_in_parts_are_those_of_the_whole(steps):
    parts = dataclasses.replace(WHOLE, logits_at_once=steps * ROWS * WORDS)
    with jax.enable_x64(True):
        params = WHOLE.init(jax.random.key(0), BATCH)["params"]
        params = jax.tree.map(lambda x: 10 * x.astype(jnp.float64), params)

        def found(task, params):
            loss = jax.value_and_grad(task.loss, has_aux=True)
            return loss(params, {}, BATCH, jax.random.key(1)), task.evaluate(
                params, {}, BATCH, jax.random.key(1)
            )

        exact = jax.jit(found, static_argnums=0)(WHOLE, params)
        ours = jax.jit(found, static_argnums=0)(parts, params)
        assert jax.tree.structure(ours) == jax.tree.structure(exact)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)


def test_no_more_logits_are_held_than_it_says():
    parts = dataclasses.replace(WHOLE, logits_at_once=4 * ROWS * WORDS)
    params = WHOLE.init(jax.random.key(0), BATCH)["params"]

    def of(task):
        gradient = jax.grad(task.loss, has_aux=True)
        return largest(jax.make_jaxpr(gradient)(params, {}, BATCH, jax.random.key(1)).jaxpr)

    assert of(WHOLE) == ROWS * TIME * WORDS
    assert of(parts) <= max(4 * ROWS * WORDS, WORDS * 8)
