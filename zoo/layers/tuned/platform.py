"""The choice of a form by the platform that a program is compiled for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir
from jaxtyping import Array

from zoo import axes
from zoo.native import library


def by_platform(on_cpu: Callable[..., Any], elsewhere: Callable[..., Any], *arrays: Array) -> Any:
    """Calls one of two functions of the same arrays and result, chosen where it is lowered.

    Nothing that ``on_cpu`` computes is kept for the gradient, only the arrays.
    """
    # The form for one CPU would move widths that are divided over several devices.
    if not axes.divides_rows_only():
        return elsewhere(*arrays)
    return jax.lax.platform_dependent(
        *arrays, cpu=jax.checkpoint(on_cpu, prevent_cse=False), default=elsewhere
    )


def with_native(native: Callable[..., Any], xlas: Callable[..., Any], *arrays: Array) -> Any:
    """Calls one of two functions of the same arrays and result, chosen where it is lowered.

    Only a program that is compiled to run here, on this machine's CPU, calls native functions. What
    ``jax.export`` makes may run anywhere, so it takes XLA's operations, as other platforms do and
    as arrays under ``jax.vmap`` do. There is no derivative: whoever calls this has a rule for it.

    Args:
        native: calls native functions. Like ``xlas``, it closes over no arrays.
        xlas: does the same by XLA's operations.
        *arrays: the arguments of both.
    """
    own, shape = jax.make_jaxpr(native, return_shape=True)(*arrays)
    plain = jax.make_jaxpr(xlas)(*arrays)
    results = _with_native_p.bind(*arrays, native=own, xlas=plain)
    return jax.tree.unflatten(jax.tree.structure(shape), results)


def with_kernel(
    kernels: Mapping[str, Callable[..., Any]],
    xlas: Callable[..., Any],
    *arrays: Any,
    flops: int = 0,
) -> Any:
    """Calls a platform's own kernel where there is one, otherwise XLA's operations.

    The choice is made where it is lowered. A kernel is called by programs for one device, and by
    each device's part of ``jax.shard_map``: XLA's partitioner cannot divide it. What ``jax.export``
    makes and arrays under ``jax.vmap`` take XLA's operations. There is no derivative: whoever calls
    this has a rule for it.

    Args:
        kernels: functions of the arrays by the name of a platform, such as ``tpu``.
        xlas: does the same by XLA's operations.
        *arrays: the arguments of all, as trees.
        flops: the operations that the result needs, for ``zoo.flops``, which cannot know which
            blocks are skipped or computed a second time; 0 counts those of ``xlas``.
    """
    if not kernels and not flops:
        return xlas(*arrays)
    leaves, structure = jax.tree.flatten(arrays)

    def flat(function: Callable[..., Any]) -> Callable[..., list[Array]]:
        return lambda *leaves: jax.tree.leaves(function(*jax.tree.unflatten(structure, leaves)))

    plain, shape = jax.make_jaxpr(xlas, return_shape=True)(*arrays)
    results = _with_kernel_p.bind(
        *leaves,
        kernels=tuple((platform, flat(kernel)) for platform, kernel in sorted(kernels.items())),
        precision=jax.config.values["jax_default_matmul_precision"],
        xlas=plain,
        flops=flops,
    )
    return jax.tree.unflatten(jax.tree.structure(shape), results)


def _lowered_kernel(
    ctx: mlir.LoweringRuleContext,
    *arrays: Any,
    kernels: Any,
    precision: Any,
    xlas: ClosedJaxpr,
    flops: int,
) -> Sequence[Any]:
    del flops
    module = ctx.module_context
    platforms = tuple(ctx.platforms or module.platforms)
    program: Callable[..., Any] = jaxpr_as_fun(xlas)
    exported = module.lowering_parameters.for_export
    if len(platforms) == 1 and not exported and _is_one_device(module.axis_context):
        program = dict(kernels).get(platforms[0], program)
    # A kernel is traced only here: to trace one takes a second, and other platforms have no use of
    # it. The precision is the one that held where it was called.
    with jax.default_matmul_precision(precision):
        lowered: Sequence[Any] = mlir.lower_fun(program, multiple_results=True)(ctx, *arrays)
    return lowered


def _is_one_device(context: Any) -> bool:
    """Whether what is lowered is one device's part of the program."""
    if hasattr(context, "manual_axes"):
        return set(context.manual_axes) == set(context.mesh.axis_names)
    return getattr(context, "num_devices", 1) == 1


def _mapped_kernel(
    arrays: Any, places: Any, *, xlas: ClosedJaxpr, **_: Any
) -> tuple[list[Array], list[int]]:
    results = jax.vmap(jaxpr_as_fun(xlas), in_axes=tuple(places))(*arrays)
    return results, [0] * len(results)


def _made_kernel(*arrays: Array, **parameters: Any) -> list[Array]:
    with jax.disable_jit(False):
        made: list[Array] = jax.jit(lambda *arrays: _with_kernel_p.bind(*arrays, **parameters))(
            *arrays
        )
    return made


_with_kernel_p = Primitive("with_kernel")
_with_kernel_p.multiple_results = True
_with_kernel_p.def_impl(_made_kernel)
_with_kernel_p.def_abstract_eval(lambda *_, xlas, **__: xlas.out_avals)
mlir.register_lowering(_with_kernel_p, _lowered_kernel)
batching.primitive_batchers[_with_kernel_p] = _mapped_kernel


def _made(*arrays: Array, native: ClosedJaxpr, xlas: ClosedJaxpr) -> list[Array]:
    # A native function is only called by a program: compiled where all else is not, too.
    with jax.disable_jit(False):
        made: list[Array] = jax.jit(
            lambda *arrays: _with_native_p.bind(*arrays, native=native, xlas=xlas)
        )(*arrays)
    return made


def _lowered(
    ctx: mlir.LoweringRuleContext, *arrays: Any, native: ClosedJaxpr, xlas: ClosedJaxpr
) -> Sequence[Any]:
    module = ctx.module_context
    to_run_here = tuple(ctx.platforms or module.platforms) == ("cpu",)
    exported = module.lowering_parameters.for_export
    program = native if to_run_here and not exported else xlas
    lowered: Sequence[Any] = mlir.lower_fun(jaxpr_as_fun(program), multiple_results=True)(
        ctx, *arrays
    )
    return lowered


def _mapped(
    arrays: Any, places: Any, *, native: ClosedJaxpr, xlas: ClosedJaxpr
) -> tuple[list[Array], list[int]]:
    results = jax.vmap(jaxpr_as_fun(xlas), in_axes=places)(*arrays)
    return results, [0] * len(results)


_with_native_p = Primitive("with_native")
_with_native_p.multiple_results = True
_with_native_p.def_impl(_made)
_with_native_p.def_abstract_eval(lambda *_, native, xlas: native.out_avals)
mlir.register_lowering(_with_native_p, _lowered)
batching.primitive_batchers[_with_native_p] = _mapped


def are_known(*sizes: Any) -> bool:
    """Returns whether all sizes are numbers, none symbolic: what fits can be chosen by them."""
    return all(isinstance(size, int) for size in sizes)


def may_have_native(dtype: np.dtype) -> bool:
    """Returns whether it is worth to ask ``has_native``; compiles nothing."""
    return _are_wanted(dtype) and library.can_compile()


def has_native(function: str, dtype: np.dtype) -> bool:
    """Returns whether programs that are compiled for this machine's CPU may call a native function.

    It is compiled for that, and waited for, if this machine never asked for it.
    """
    return _are_wanted(dtype) and library.target(function, dtype.name) is not None


def _are_wanted(dtype: np.dtype) -> bool:
    # Not beside a GPU or TPU: what little is left to the CPU there is not worth a compilation. And
    # not where widths or lengths are divided: native functions take whole ones.
    return (
        dtype.name in library.NUMBERS
        and jax.default_backend() == "cpu"
        and axes.divides_rows_only()
    )


def native_call(
    function: str, dtype: np.dtype, results: Any, aliases: dict[int, int] | None = None
) -> Callable[..., Any]:
    """Returns the function of arrays and options that calls a native function.

    Args:
        function: its name.
        dtype: type of the numbers.
        results: shapes and types of the results; one, or a list.
        aliases: which argument's memory becomes which result's.

    Raises:
        RuntimeError: ``has_native`` is false.
    """
    target = library.target(function, dtype.name)
    if target is None:
        raise RuntimeError(f"there is no native function {function} of {dtype.name}")
    call: Callable[..., Any] = jax.ffi.ffi_call(target, results, input_output_aliases=aliases)
    return call
