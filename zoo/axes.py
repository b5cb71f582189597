"""The names of the axes of arrays, and the axis of a mesh over which each is divided.

A model says what its axes are: a family's table names those of parameters, and ``constrain`` those
of the values between layers. The one table ``DIVIDED`` says where they lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

# The axes of every mesh, in this order.
MESH = ("data", "fsdp", "tensor", "sequence")

# The axes of a mesh over which an axis is divided. An axis without an entry is not divided.
DIVIDED: Mapping[str, tuple[str, ...]] = {
    # The rows of a batch, and the positions of a sequence between layers.
    "batch": ("data", "fsdp"),
    "length": ("sequence",),
    # The heads of attention, whose keys have all positions.
    "heads": ("tensor", "sequence"),
    # The width of the residual stream, as an axis of parameters. Values keep it whole.
    "embed": ("fsdp",),
    # The widths of queries, keys and values, of hidden layers, and of the vocabulary or classes.
    "attention": ("tensor",),
    "hidden": ("tensor",),
    "vocab": ("tensor",),
}


def constrain(x: Array, *names: Any) -> Array:
    """Keeps a value divided along named axes; does nothing without a mesh.

    The mesh is the one for which the program is compiled (``zoo.training.layout.compile_step``).

    Args:
        x: a value between layers.
        names: the name of each axis in ``DIVIDED``; None for one that is not divided, ``...`` for
            one that stays as it is. An axis that a mesh axis does not divide is not divided over
            it.
    """
    sizes = _sizes()
    if not sizes:
        return x
    stays = PartitionSpec.UNCONSTRAINED
    spec = [
        stays if name is ... else _dividing(name, size, sizes)
        for name, size in zip(names, x.shape, strict=True)
    ]
    if None not in names and all(axes is stays or not axes for axes in spec):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def constrain_rows(x: Array) -> Array:
    """Keeps the rows of a layer's output, its first axis, divided; other axes stay as they are.

    The axis ``fsdp`` is then taken, so the compiler gathers a layer's parameters over it and not
    the rows.
    """
    return constrain(x, "batch", *[...] * (x.ndim - 1)) if x.ndim > 1 else x


def row_parts(rows: int) -> int:
    """Returns over how many devices so many rows are divided; 1 without a mesh."""
    sizes = _sizes()
    return math.prod(sizes[axis] for axis in _dividing("batch", rows, sizes))


def sum_over_rows(function: Callable[[Any, Any], Any], whole: Any, rows: Any) -> Any:
    """Returns ``function(whole, rows)``, which sums over rows, with each device's rows by itself.

    For functions that loop: ``whole`` is gathered once, before the loop, and its gradient is summed
    over the devices once, after it. The compiler does both in every round. It is left to do so
    where other axes than those of rows are divided too, since it cannot partition what remains.

    Args:
        function: sums over rows.
        whole: arrays that are the same for all rows, such as parameters.
        rows: arrays whose first axis are the rows.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    axes = _dividing("batch", count, _sizes())
    if not axes or not divides_rows_only():
        return function(whole, rows)

    def of_own(whole: Any, rows: Any) -> Any:
        whole = jax.tree.map(lambda x: jax.lax.pcast(x, axes, to="varying"), whole)
        return jax.lax.psum(function(whole, rows), axes)

    specs = PartitionSpec(), PartitionSpec(axes)
    divided = jax.shard_map(
        of_own, in_specs=specs, out_specs=PartitionSpec(), axis_names=frozenset(axes)
    )
    return divided(whole, rows)


def on_own_parts(function: Callable[..., Any], names: Sequence[str | None], *arrays: Array) -> Any:
    """Returns ``function(*arrays)``, which each device calls with its own parts of the arrays.

    For kernels, which the compiler cannot divide.

    Args:
        function: computes each part of its result, of any number of parts along the named axes,
            from the same parts of its arguments.
        names: the name of each axis in ``DIVIDED``, the same for all arrays and for the result;
            None for an axis that stays whole.
        *arrays: the arguments, with axes of the same sizes where they have a name.
    """
    sizes = _sizes()
    taken = [
        _dividing(name, size, sizes) for name, size in zip(names, arrays[0].shape, strict=True)
    ]
    if not any(taken):
        return function(*arrays)
    spec = PartitionSpec(*(axes or None for axes in taken))
    # What native and Pallas kernels compute has no types that say along which axes it differs.
    divided = jax.shard_map(
        function, in_specs=(spec,) * len(arrays), out_specs=spec, check_vma=False
    )
    return divided(*arrays)


def divides_rows_only() -> bool:
    """Returns whether a program is compiled for one device, or for several with rows of their own.

    Native functions and forms for one core know how to divide rows, and no other axis.
    """
    return not _sizes().keys() & {"tensor", "sequence"}


def _sizes() -> dict[str, int]:
    """Returns the sizes of the mesh axes over which the compiler divides arrays."""
    mesh = jax.sharding.get_abstract_mesh()
    return {
        name: size
        for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
        # Inside a ``shard_map`` arrays are divided already.
        if size > 1 and kind == AxisType.Auto
    }


def _dividing(name: str | None, size: Any, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the first of a name's mesh axes that together divide an axis of a given size."""
    parts, taken = 1, []
    for axis in DIVIDED.get(name or "", ()):
        if axis in sizes:
            if not isinstance(size, int) or size % (parts * sizes[axis]):
                break
            parts *= sizes[axis]
            taken.append(axis)
    return tuple(taken)
