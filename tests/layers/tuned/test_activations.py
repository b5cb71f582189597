"""The forms for a CPU against closed forms, and the programs elsewhere against JAX's."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from zoo.layers.tuned.activations import gelu, gelu_tanh

POINTS = np.linspace(-12, 12, 4801)
THEIRS = {
    gelu: lambda x: jax.nn.gelu(x, approximate=False),
    gelu_tanh: lambda x: jax.nn.gelu(x, approximate=True),
}


def density(x):
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


# The function; its first derivative, Phi(x) + x phi(x); its second, (2 - x^2) phi(x).
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float64, 1e-14), (jnp.float32, 2e-6)])
def test_gelu_and_its_derivatives(dtype, tolerance):
    with jax.enable_x64(dtype == jnp.float64):
        x = jnp.asarray(POINTS, dtype)
        exact = np.asarray(x, np.float64)
        distribution = special.ndtr(exact)
        first, second = jax.grad(gelu), jax.grad(jax.grad(gelu))
        expected = {
            gelu: exact * distribution,
            jax.vmap(first): distribution + exact * density(exact),
            jax.vmap(second): (2 - exact**2) * density(exact),
            lambda x: jax.jvp(gelu, (x,), (jnp.ones_like(x),))[1]: distribution
            + exact * density(exact),
        }
        for function, values in expected.items():
            made = jax.jit(function)(x)
            assert made.dtype == dtype
            np.testing.assert_allclose(made, values, rtol=0, atol=tolerance)


@pytest.mark.parametrize("function", [gelu, gelu_tanh])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_in_half_precision_it_is_jaxs(function, dtype):
    x = jnp.asarray(POINTS, dtype)
    np.testing.assert_array_equal(function(x), THEIRS[function](x))


@pytest.mark.parametrize("function", [gelu, gelu_tanh])
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_elsewhere_it_is_jaxs(function, platform):
    def operations(function):
        traced = jax.jit(function).trace(jnp.zeros((5, 7)))
        lowered = traced.lower(lowering_platforms=(platform,)).as_text()
        return sorted(re.findall(r"= (stablehlo\.(?!constant)\w+|chlo\.\w+)", lowered))

    assert operations(function) == operations(THEIRS[function])


@pytest.mark.parametrize("function", [gelu, gelu_tanh])
def test_only_the_input_is_kept(function):
    x = jnp.asarray(POINTS, jnp.float32)
    _, backward = jax.vjp(function, x)
    assert sum(leaf.size for leaf in jax.tree.leaves(backward)) == x.size
