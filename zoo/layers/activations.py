"""Activation functions by name."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.errors import UserError, did_you_mean
from zoo.layers.tuned.activations import gelu, gelu_tanh, quick_gelu

Activation = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def _identity(x: Float[Array, ...]) -> Float[Array, ...]:
    return x


ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "identity": _identity,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "softmax": jax.nn.softmax,
    "tanh": jnp.tanh,
}


def activation(name: str) -> Activation:
    """Returns an activation function, with the values and gradients of ``torch.nn.functional``.

    All work element by element, but for ``softmax``, which works over the last axis and is meant
    for outputs. ``gelu`` is the exact one, ``x * Phi(x)``, which PyTorch takes by default.
    ``gelu_tanh`` and ``quick_gelu``, which is ``x * sigmoid(1.702 * x)``, are its approximations
    (Hendrycks and Gimpel, "Gaussian Error Linear Units", section 2). The gradient of ``relu`` at 0
    is 0.

    Raises:
        UserError: the name is unknown.
    """
    if name not in ACTIVATIONS:
        raise UserError(f"activation={name!r} is unknown.{did_you_mean(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]
