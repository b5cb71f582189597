"""The choice of a form by the platform that a program is compiled for."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array

from zoo.kernels import library


def by_platform(
    on_cpu: Callable[..., Array], elsewhere: Callable[..., Array], *arrays: Array
) -> Array:
    """Calls one of two functions of the same arrays and result, chosen where it is lowered.

    Nothing that ``on_cpu`` computes is kept for the gradient, only the arrays.
    """
    return jax.lax.platform_dependent(
        *arrays, cpu=jax.checkpoint(on_cpu, prevent_cse=False), default=elsewhere
    )


def has_kernels(dtype: np.dtype) -> bool:
    """Returns whether programs that are compiled for this machine's CPU may call our own kernels.

    Not beside a GPU or TPU: what little is left to the CPU there is not worth their compilation.
    """
    return (
        dtype.name in library.NUMBERS
        and jax.default_backend() == "cpu"
        and library.prefix(dtype.name) is not None
    )
