"""Where the parameters of a model lie on a mesh."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, PartitionSpec

from zoo.axes import DIVIDED

# Patterns of paths, such as ``up/kernel``, each with the names of a parameter's last axes.
Table = Sequence[tuple[str, tuple[str | None, ...]]]
# Of larger parameters it is said why they are not divided.
LARGE = 1_000_000


class Place(NamedTuple):
    """Where a parameter lies.

    Attributes:
        shape: its whole shape.
        spec: the mesh axes over which each of its axes is divided.
    """

    shape: tuple[int, ...]
    spec: PartitionSpec

    def of(self, shape: tuple[int, ...]) -> PartitionSpec | None:
        """Returns where an array lies that is kept for the parameter; None if it does not follow.

        An array of the same shape, such as a moment, lies where the parameter does. So do factored
        statistics, which lack one of its axes.
        """
        if shape == self.shape:
            return self.spec
        for axis in range(len(self.shape)):
            if shape == self.shape[:axis] + self.shape[axis + 1 :]:
                rest = (*self.spec, *[None] * (len(self.shape) - len(self.spec)))
                return _spec([*rest[:axis], *rest[axis + 1 :]])
        return None


# The place of each parameter, by its path.
Placement = Mapping[str, Place]


def placement_of(
    table: Table,
    params: Any,
    mesh: Mesh,
    *,
    divided: Mapping[str, tuple[str, ...]] = DIVIDED,
) -> tuple[dict[str, Place], list[str]]:
    """Returns where parameters lie, and why large ones are not divided.

    The first pattern of the table that is found in a parameter's path, and has no more names than
    the parameter has axes, names its last axes. Over ``fsdp``, if no axis takes it by its name,
    the largest axis that it divides is divided. A size that a mesh axis does not divide is not
    padded.

    Args:
        table: a family's table of names.
        params: parameters or their shapes.
        mesh: a mesh of ``make_mesh``.
        divided: the mesh axes of each name.

    Returns:
        The place of each parameter, and lines that name parameters of more than 1 MB that the
        devices along a mesh axis hold whole, each with the reason.
    """
    sizes = {name: size for name, size in mesh.shape.items() if size > 1}
    placement, said, small = {}, [], 0
    taken: set[str] = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        shape = tuple(leaf.shape)
        axes, reasons = _axes(_names(table, where, len(shape)), shape, sizes, divided)
        placement[where] = Place(shape, _spec(axes))
        taken.update(axis for names in axes for axis in names)
        if reasons and math.prod(shape) * leaf.dtype.itemsize > LARGE:
            said.append(f"{where} {'x'.join(map(str, shape))}: {'; '.join(reasons)}")
        elif reasons:
            small += 1
    if said and small:
        said.append(f"{small} parameters of less than 1 MB are not divided either")
    elif small:
        said.append(f"{small} parameters, each of less than 1 MB, are not divided fully")
    if "tensor" in sizes and "tensor" not in taken:
        said.append(
            f"no parameter is divided over mesh.tensor={sizes['tensor']}, so its devices compute "
            "the same: take mesh.fsdp or mesh.data for this model"
        )
    return placement, said


def rows_of(tree: Any, mesh: Mesh) -> dict[str, Place]:
    """Returns where arrays lie whose first axis is the rows of a batch, such as recurrent states.

    Args:
        tree: arrays or their shapes.
        mesh: a mesh of ``make_mesh``.
    """
    rows = DIVIDED["batch"]
    parts = math.prod(mesh.shape[axis] for axis in rows)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): Place(
            tuple(leaf.shape), PartitionSpec(rows)
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if leaf.ndim and leaf.shape[0] % parts == 0
    }


def _names(table: Table, path: str, axes: int) -> tuple[str | None, ...]:
    for pattern, names in table:
        if len(names) <= axes and re.search(pattern, path):
            # Layers that are stacked in one array have one more axis in front.
            return (*[None] * (axes - len(names)), *names)
    return (None,) * axes


def _axes(
    names: Sequence[str | None],
    shape: tuple[int, ...],
    sizes: Mapping[str, int],
    divided: Mapping[str, tuple[str, ...]],
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Returns the mesh axes of each axis of an array, and why some were not taken."""
    axes: list[tuple[str, ...]] = [()] * len(shape)
    reasons: list[str] = []
    for number, name in enumerate(names):
        for mesh_axis in divided.get(name or "", ()):
            if mesh_axis not in sizes:
                continue
            parts = sizes[mesh_axis] * math.prod(sizes[axis] for axis in axes[number])
            if shape[number] % parts == 0:
                axes[number] = (*axes[number], mesh_axis)
            elif mesh_axis != "fsdp":
                larger = math.ceil(shape[number] / parts) * parts
                reasons.append(
                    f"{mesh_axis}={sizes[mesh_axis]} does not divide its {shape[number]} "
                    f"({name}; {larger} would do)"
                )
    if "fsdp" in sizes and not any("fsdp" in taken for taken in axes):
        each = [sizes["fsdp"] * math.prod(sizes[axis] for axis in taken) for taken in axes]
        free = [
            (not axes[number], size, number)
            for number, size in enumerate(shape)
            if size and size % each[number] == 0
        ]
        if free:
            # An axis that nothing divides yet comes first, then the largest.
            number = max(free)[2]
            axes[number] = (*axes[number], "fsdp")
        else:
            reasons.append(f"fsdp={sizes['fsdp']} divides none of its axes")
    return axes, reasons


def _spec(axes: Sequence[Any]) -> PartitionSpec:
    entries: list[Any] = []
    for taken in axes:
        names = (taken,) if isinstance(taken, str) else tuple(taken or ())
        entries.append(names[0] if len(names) == 1 else names or None)
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)
