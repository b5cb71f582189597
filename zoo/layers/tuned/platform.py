"""The choice of a form by the platform that a program is compiled for."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from zoo.kernels import library


def by_platform(on_cpu: Callable[..., Any], elsewhere: Callable[..., Any], *arrays: Array) -> Any:
    """Calls one of two functions of the same arrays and result, chosen where it is lowered.

    Nothing that ``on_cpu`` computes is kept for the gradient, only the arrays.
    """
    return jax.lax.platform_dependent(
        *arrays, cpu=jax.checkpoint(on_cpu, prevent_cse=False), default=elsewhere
    )


def are_known(*sizes: Any) -> bool:
    """Returns whether all sizes are numbers, none symbolic: what fits can be chosen by them."""
    return all(isinstance(size, int) for size in sizes)


def may_have_kernels(dtype: np.dtype) -> bool:
    """Returns whether it is worth to ask ``has_kernel``; compiles nothing."""
    return _are_wanted(dtype) and library.can_compile()


def has_kernel(kernel: str, dtype: np.dtype) -> bool:
    """Returns whether programs that are compiled for this machine's CPU may call a kernel of ours.

    It is compiled for that, and waited for, if this machine never asked for it.
    """
    return _are_wanted(dtype) and library.target(kernel, dtype.name) is not None


def _are_wanted(dtype: np.dtype) -> bool:
    # Not beside a GPU or TPU: what little is left to the CPU there is not worth a compilation.
    return dtype.name in library.NUMBERS and jax.default_backend() == "cpu"


def kernel_call(
    kernel: str, dtype: np.dtype, results: Any, aliases: dict[int, int] | None = None
) -> Callable[..., Any]:
    """Returns the function of arrays and options that calls a kernel of ours.

    Args:
        kernel: its name.
        dtype: of the numbers.
        results: their shapes and types; one, or a list.
        aliases: which argument's memory becomes which result's.

    Raises:
        RuntimeError: ``has_kernel`` is false.
    """
    target = library.target(kernel, dtype.name)
    if target is None:
        raise RuntimeError(f"there is no kernel {kernel} of {dtype.name}")
    call: Callable[..., Any] = jax.ffi.ffi_call(target, results, input_output_aliases=aliases)
    return call
