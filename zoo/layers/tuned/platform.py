"""The choice of a form by the platform that a program is compiled for."""

from collections.abc import Callable

import jax
from jaxtyping import Array


def by_platform(
    on_cpu: Callable[..., Array], elsewhere: Callable[..., Array], *arrays: Array
) -> Array:
    """Calls one of two functions of the same arrays and result, chosen where it is lowered.

    Nothing that ``on_cpu`` computes is kept for the gradient, only the arrays.
    """
    return jax.lax.platform_dependent(
        *arrays, cpu=jax.checkpoint(on_cpu, prevent_cse=False), default=elsewhere
    )
