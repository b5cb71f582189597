"""Parameters to and from the names and layouts of references: one table a model, read both ways."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zoo.errors import UserError
from zoo.pretrained.transforms import (
    AS_IT_IS,
    CONV_OIHW,
    LINEAR_TRANSPOSED,
    Transform,
    flatten_chw,
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array under both names.

    Attributes:
        reference: the reference's name, such as ``conv1.weight``.
        ours: our path, such as ``conv1/kernel``.
        transform: between the layouts.
    """

    reference: str
    ours: str
    transform: Transform = AS_IT_IS


Table = Sequence[Entry]


def cnn_table(image_size: int = 48, pool_size: int = 2) -> Table:
    """The table of ``zoo.models.CNN`` and the seed's PyTorch class.

    Args:
        image_size: side of the images, on which the order of ``fc1``'s inputs depends.
        pool_size: the model's.
    """
    side = image_size // pool_size // pool_size
    layers = dict.fromkeys(("conv1", "conv2", "conv3"), CONV_OIHW)
    layers |= {"fc1": flatten_chw(side, side), "fc2": LINEAR_TRANSPOSED}
    return [
        entry
        for layer, transform in layers.items()
        for entry in (
            Entry(f"{layer}.weight", f"{layer}/kernel", transform),
            Entry(f"{layer}.bias", f"{layer}/bias"),
        )
    ]


def to_reference(params: Mapping[str, Any], table: Table) -> dict[str, np.ndarray]:
    """Returns parameters as a flat dictionary with the reference's names and layouts.

    Raises:
        UserError: parameters are missing, or not in the table; all are listed.
    """
    flat = _flatten(params)
    _check_names(flat, [entry.ours for entry in table], "the parameters")
    arrays = {}
    for entry in table:
        array = entry.transform.to_reference(np.asarray(flat[entry.ours]))
        arrays[entry.reference] = np.ascontiguousarray(array)
    return arrays


def from_reference(
    arrays: Mapping[str, np.ndarray], table: Table, like: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns parameters from a flat dictionary with the reference's names and layouts.

    Args:
        arrays: by the reference's names.
        table: the model's.
        like: parameters or their shapes, as nested dictionaries.

    Raises:
        UserError: arrays are missing, not in the table, or have another shape; all are listed.
    """
    shapes = _flatten(like)
    _check_names(shapes, [entry.ours for entry in table], "the model's parameters")
    wrong = _wrong_names(arrays, [entry.reference for entry in table])
    made: dict[str, Any] = {}
    for entry in table:
        if entry.reference not in arrays:
            continue
        wanted = shapes[entry.ours].shape
        try:
            array = np.ascontiguousarray(entry.transform.to_ours(arrays[entry.reference]))
        except ValueError:
            array = None
        if array is None or array.shape != wanted:
            shape = arrays[entry.reference].shape
            wrong.append(f"{entry.reference} {shape} does not give {entry.ours} {wanted}")
            continue
        *parents, name = entry.ours.split("/")
        branch = made
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = array
    if wrong:
        raise UserError("the weights do not fit the model:\n  " + "\n  ".join(wrong))
    return made


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value
    return flat


def _check_names(found: Mapping[str, Any], wanted: Sequence[str], what: str) -> None:
    if wrong := _wrong_names(found, wanted):
        raise UserError(f"{what} do not fit the table:\n  " + "\n  ".join(wrong))


def _wrong_names(found: Mapping[str, Any], wanted: Sequence[str]) -> list[str]:
    missing = [f"{name} is missing" for name in wanted if name not in found]
    extra = [f"{name} is not in the table" for name in found if name not in wanted]
    return missing + extra
