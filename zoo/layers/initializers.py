"""Initialisation of kernels and biases by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
from jax.nn import initializers
from jaxtyping import Array, PRNGKeyArray

from zoo.errors import UserError, did_you_mean

Init = Callable[[PRNGKeyArray, tuple[int, ...]], Array]


def kernel_and_bias(name: str | float, fan_in: int) -> tuple[Init, Init]:
    """Returns the initialisers of a kernel ``[..., in, out]`` and of its bias ``[out]``.

    Args:
        name: ``pytorch``: both uniform between ±1/sqrt(fan_in), as ``torch.nn.Conv2d`` and
            ``Linear`` begin (``kaiming_uniform_`` with ``a=sqrt(5)``). ``lecun_normal`` (linen's
            own), ``he_normal``, ``he_uniform`` (``kaiming_uniform_``) and ``xavier_uniform``: the
            kernel so, the bias zero. ``he_normal_out``: by the number of outputs of one input and
            not truncated (``kaiming_normal_(mode="fan_out")``), the bias zero. A number: the kernel
            normal with this standard deviation, the bias zero.
        fan_in: number of inputs to one output.

    Raises:
        UserError: the name is unknown.
    """
    if isinstance(name, int | float):
        return initializers.normal(name), initializers.zeros
    bound = 1 / math.sqrt(fan_in)

    def uniform(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    table: dict[str, tuple[Init, Init]] = {
        "pytorch": (uniform, uniform),
        "lecun_normal": (initializers.lecun_normal(), initializers.zeros),
        "he_normal": (initializers.he_normal(), initializers.zeros),
        "he_normal_out": (
            initializers.variance_scaling(2.0, "fan_out", "normal"),
            initializers.zeros,
        ),
        "he_uniform": (initializers.he_uniform(), initializers.zeros),
        "xavier_uniform": (initializers.xavier_uniform(), initializers.zeros),
    }
    if name not in table:
        raise UserError(f"the initialization {name!r} is unknown.{did_you_mean(name, table)}")
    return table[name]
