"""Converts parameters to and from the names and layouts of references, by one table a model."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zoo.errors import UserError
from zoo.weights.transforms import AS_IT_IS, CONV_OIHW, LINEAR_TRANSPOSED, Transform


@dataclasses.dataclass(frozen=True)
class Part:
    """One of several equal parts of a reference's array, such as the key in ``in_proj_weight``.

    Attributes:
        index: index of the part.
        of: number of parts.
        axis: axis of the reference's array along which it is divided.
    """

    index: int
    of: int
    axis: int = 0


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of the zoo under both names.

    Attributes:
        reference: the reference's name, such as ``conv1.weight``.
        ours: the zoo's path, such as ``conv1/kernel``.
        transform: converts between the layouts.
        part: the part of the reference's array that is stored under ``ours``; None for all of it.
    """

    reference: str
    ours: str
    transform: Transform = AS_IT_IS
    part: Part | None = None


Table = Sequence[Entry]


def to_reference(params: Mapping[str, Any], table: Table) -> dict[str, np.ndarray]:
    """Returns parameters as a flat dictionary with the reference's names and layouts.

    Raises:
        UserError: parameters are missing or not in the table, or the table lacks parts of an
            array; the message lists all of them.
    """
    flat = _flatten(params)
    _check_names(flat, [entry.ours for entry in table], "the parameters")
    parts: dict[str, list[tuple[Part | None, np.ndarray]]] = {}
    for entry in table:
        array = entry.transform.to_reference(np.asarray(flat[entry.ours]))
        parts.setdefault(entry.reference, []).append((entry.part, array))
    if lacking := [
        f"{name} has parts {sorted(part.index for part, _ in found if part)} of {found[0][0].of}"
        for name, found in parts.items()
        if found[0][0] and len(found) != found[0][0].of
    ]:
        raise UserError("the table lacks parts:\n  " + "\n  ".join(lacking))
    return {name: np.ascontiguousarray(_joined(found)) for name, found in parts.items()}


def from_reference(
    arrays: Mapping[str, np.ndarray], table: Table, like: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns parameters from a flat dictionary with the reference's names and layouts.

    Args:
        arrays: the arrays by the reference's names.
        table: the table of the model.
        like: the model's parameters or their shapes, as nested dictionaries.

    Raises:
        UserError: arrays are missing, not in the table, or have another shape; the message lists
            all of them.
    """
    shapes = _flatten(like)
    _check_names(shapes, [entry.ours for entry in table], "the model's parameters")
    wrong = _wrong_names(arrays, list(dict.fromkeys(entry.reference for entry in table)))
    made: dict[str, Any] = {}
    for entry in table:
        if entry.reference not in arrays:
            continue
        wanted = shapes[entry.ours].shape
        try:
            whole = arrays[entry.reference]
            array = whole if entry.part is None else _part(whole, entry.part)
            array = np.ascontiguousarray(entry.transform.to_ours(array))
        except ValueError:
            array = None
        if array is None or array.shape != wanted:
            shape = arrays[entry.reference].shape
            wrong.append(f"{entry.reference} {shape} does not give {entry.ours} {wanted}")
            continue
        made[entry.ours] = array
    if wrong:
        raise UserError("the weights do not fit the model:\n  " + "\n  ".join(wrong))
    return _nested(made)


def variables_to_reference(variables: Mapping[str, Any], table: Table) -> dict[str, np.ndarray]:
    """Applies ``to_reference`` to all collections: parameters and batch statistics.

    Raises:
        UserError: see ``to_reference``.
    """
    merged: dict[str, Any] = {}
    for collection in variables.values():
        merged |= _flatten(collection)
    return to_reference(merged, table)


def variables_from_reference(
    arrays: Mapping[str, np.ndarray], table: Table, like: Mapping[str, Any]
) -> dict[str, Any]:
    """Applies ``from_reference`` to all collections.

    Args:
        arrays: the arrays by the reference's names; PyTorch's ``num_batches_tracked`` are ignored.
        table: the table of the model.
        like: the model's variables or their shapes: ``params`` and further collections.

    Raises:
        UserError: see ``from_reference``.
    """
    flat = {name: _flatten(collection) for name, collection in like.items()}
    merged: dict[str, Any] = {}
    for collection in flat.values():
        merged |= collection
    counted = {name: a for name, a in arrays.items() if not name.endswith("num_batches_tracked")}
    made = _flatten(from_reference(counted, table, merged))
    return {
        name: _nested({path: made[path] for path in collection})
        for name, collection in flat.items()
    }


def _part(whole: np.ndarray, part: Part) -> np.ndarray:
    return np.split(whole, part.of, axis=part.axis)[part.index]


def _joined(parts: Sequence[tuple[Part | None, np.ndarray]]) -> np.ndarray:
    (first, array), *_ = parts
    if first is None:
        return array
    in_order = sorted(parts, key=lambda item: item[0].index if item[0] else 0)
    return np.concatenate([array for _, array in in_order], axis=first.axis)


def linear_entries(reference: str, ours: str, *, bias: bool = True) -> Table:
    """Returns the entries of a linear layer: PyTorch's ``weight`` and ``bias``."""
    entries = [Entry(f"{reference}.weight", f"{ours}/kernel", LINEAR_TRANSPOSED)]
    return [*entries, Entry(f"{reference}.bias", f"{ours}/bias")] if bias else entries


def attention_entries(weight: str, bias: str, out: str, ours: str) -> Table:
    """Returns the entries of an attention whose reference has query, key and value in one array.

    Args:
        weight: the reference's name of the three weights.
        bias: the reference's name of the three biases.
        out: the reference's name of the output projection.
        ours: the zoo's path.
    """
    table: list[Entry] = []
    for index, name in enumerate(("query", "key", "value")):
        part = Part(index, 3)
        table += [
            Entry(weight, f"{ours}/{name}/kernel", LINEAR_TRANSPOSED, part),
            Entry(bias, f"{ours}/{name}/bias", part=part),
        ]
    return [*table, *linear_entries(out, f"{ours}/out")]


def norm_entries(reference: str, ours: str, *, bias: bool = True) -> Table:
    """Returns the entries of a normalisation: PyTorch's ``weight`` and ``bias``."""
    entries = [Entry(f"{reference}.weight", f"{ours}/scale")]
    return [*entries, Entry(f"{reference}.bias", f"{ours}/bias")] if bias else entries


def conv_entries(reference: str, ours: str, *, bias: bool = True) -> Table:
    """Returns the entries of a convolution: PyTorch's ``weight`` and ``bias``."""
    entries = [Entry(f"{reference}.weight", f"{ours}/kernel", CONV_OIHW)]
    return [*entries, Entry(f"{reference}.bias", f"{ours}/bias")] if bias else entries


def batch_norm_entries(reference: str, ours: str) -> Table:
    """Returns the entries of a batch normalisation, including its running statistics."""
    return [
        *norm_entries(reference, ours),
        Entry(f"{reference}.running_mean", f"{ours}/mean"),
        Entry(f"{reference}.running_var", f"{ours}/var"),
    ]


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = value
    return tree


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
