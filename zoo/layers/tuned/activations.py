"""Activation functions that keep no more than their input for the gradient."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_exact = functools.partial(jax.nn.gelu, approximate=False)


@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu(x: Float[Array, ...]) -> Float[Array, ...]:
    """Returns ``x * Phi(x)``.

    JAX has it as ``x * erfc(-x / sqrt(2)) / 2``, for which XLA computes two cases of each number on
    a CPU. There the other form is used, which is PyTorch's, and in single precision as good; in
    half precision its sum would cancel.
    """
    if x.dtype not in (jnp.float32, jnp.float64):
        return _exact(x)
    return jax.lax.platform_dependent(x, cpu=_by_erf, default=_exact)


@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu_tanh(x: Float[Array, ...]) -> Float[Array, ...]:
    """Returns the approximation of ``gelu`` by a hyperbolic tangent."""
    return jax.nn.gelu(x, approximate=True)


@functools.partial(jax.checkpoint, prevent_cse=False)
def quick_gelu(x: Float[Array, ...]) -> Float[Array, ...]:
    """Returns the approximation of ``gelu`` by a logistic function."""
    return x * jax.nn.sigmoid(1.702 * x)


def _by_erf(x: Float[Array, ...]) -> Float[Array, ...]:
    return x * (1 + jax.lax.erf(x * jnp.sqrt(0.5).astype(x.dtype))) / 2
