"""Converts parameters to and from the names and layouts of references, by one table a model."""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from zoo.errors import UserError
from zoo.weights.names import COUNTER, differences, few
from zoo.weights.transforms import AS_IT_IS, CONV_OIHW, LINEAR_TRANSPOSED, Transform
from zoo.weights.types import as_type


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
    """One array of the zoo under both names, or one that only the reference has.

    Attributes:
        reference: the reference's name, such as ``conv1.weight``.
        ours: the zoo's path, such as ``conv1/kernel``; empty if the zoo has no such array.
        transform: converts between the layouts.
        part: the part of the reference's array that is stored under ``ours``; None for all of it.
        role: what the array is to the model. The helpers below make all but the first.

            * ``parameter``: a weight of both.
            * ``copy``: a second name of the weight ``ours``. A file may have either name or both,
              and then both arrays must be equal. Export does not write it.
            * ``buffer``: no weight, such as a mask. A file may have it; it is not read.
            * ``zeros``: a weight that the zoo's model lacks, which is as if it were zero. Export
              writes zeros; a file may lack it, and what it has must be zero.
        shape: the shape of ``zeros``.
        layer: the index of this array along the first axis of the zoo's, if that stacks the arrays
            of all layers; None: it is an array by itself. See ``stacked``.
    """

    reference: str
    ours: str
    transform: Transform = AS_IT_IS
    part: Part | None = None
    role: Literal["parameter", "copy", "buffer", "zeros"] = "parameter"
    shape: tuple[int, ...] = ()
    layer: int | None = None


Table = Sequence[Entry]
# Takes the path of one of the zoo's arrays and the array, and returns what is kept of it, such as
# the array on a device.
Place = Callable[[str, np.ndarray], Any]


def to_reference(params: Mapping[str, Any], table: Table) -> dict[str, np.ndarray]:
    """Returns parameters as a flat dictionary with the reference's names and layouts.

    Raises:
        UserError: parameters are missing or not in the table, or the table lacks parts of an
            array.
    """
    flat = _flatten(params)
    _check_names(flat, _paths(table), "the parameters")
    parts: dict[str, list[tuple[Part | None, np.ndarray]]] = {}
    for entry in table:
        if entry.role == "parameter":
            array = np.asarray(flat[entry.ours])
            array = entry.transform.to_reference(
                array if entry.layer is None else array[entry.layer]
            )
        elif entry.role == "zeros":
            array = np.zeros(entry.shape, np.float32)
        else:
            continue
        parts.setdefault(entry.reference, []).append((entry.part, array))
    if lacking := [
        f"{name} has parts {sorted(part.index for part, _ in found if part)} of {found[0][0].of}"
        for name, found in parts.items()
        if found[0][0] and len(found) != found[0][0].of
    ]:
        raise UserError("the table lacks parts:" + few(lacking))
    return {name: np.asarray(_joined(found), order="C") for name, found in parts.items()}


def from_reference(
    arrays: Mapping[str, np.ndarray], table: Table, like: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns parameters from a flat dictionary with the reference's names and layouts.

    Args:
        arrays: the arrays by the reference's names, of the types in ``zoo.weights.types``.
        table: the table of the model.
        like: the model's parameters or their shapes, as nested dictionaries. The result has their
            types.

    Raises:
        UserError: arrays are missing, not in the table, of another shape, of a type that weights
            do not have, or not finite in the model's type. The message has the number of each kind
            and the first of them.
    """
    return _read(arrays, table, like)[0]


def variables_to_reference(variables: Mapping[str, Any], table: Table) -> dict[str, np.ndarray]:
    """Applies ``to_reference`` to all collections: parameters and batch statistics.

    Raises:
        UserError: see ``to_reference``.
    """
    return to_reference(_merged(variables), table)


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
    return variables_and_types(arrays, table, like)[0]


def variables_and_types(
    arrays: Mapping[str, np.ndarray],
    table: Table,
    like: Mapping[str, Any],
    place: Place = lambda path, array: array,
) -> tuple[dict[str, Any], dict[str, int]]:
    """Returns ``variables_from_reference``, and how many of them had which type in ``arrays``.

    Args:
        arrays: see ``variables_from_reference``. Each is read once, the largest ones first, and is
            let go of when it is placed: at no time are two copies of all of them there.
        table: see ``variables_from_reference``.
        like: see ``variables_from_reference``.
        place: puts an array of the zoo where it will stay, as soon as it is whole.

    Raises:
        UserError: see ``from_reference``.
    """
    counted = {name: name for name in arrays if not COUNTER.search(name)}
    made, types = _read(Renamed(arrays, counted), table, _merged(like), place)
    flat = _flatten(made)
    variables = {
        name: _nested({path: flat[path] for path in _flatten(collection)})
        for name, collection in like.items()
    }
    return variables, types


def own_table(variables: Mapping[str, Any]) -> Table:
    """Returns the table of a model that no library has: the zoo's own names and layouts.

    Args:
        variables: the model's variables, or their shapes.
    """
    return [Entry(path.replace("/", "."), path) for path in _merged(variables)]


def prefixed(table: Table, reference: str, ours: str) -> Table:
    """Returns the table of a part of a model, whose names have prefixes there."""
    return [
        dataclasses.replace(
            entry,
            reference=f"{reference}{entry.reference}",
            ours=f"{ours}{entry.ours}" if entry.ours else "",
        )
        for entry in table
    ]


def stacked(table: Table, prefix: str, ours: str) -> Table:
    """Returns the table of a model whose layers are a loop, with their arrays stacked.

    Args:
        table: the table of the model whose layers are apart.
        prefix: the beginning of a layer's paths there, before its number, such as ``block_``.
        ours: the path of the stacked layers, such as ``blocks``.
    """
    made = []
    for entry in table:
        found = re.match(rf"{re.escape(prefix)}(\d+)/", entry.ours)
        if found:
            path = f"{ours}/{entry.ours[found.end() :]}"
            entry = dataclasses.replace(entry, ours=path, layer=int(found[1]))
        made.append(entry)
    return made


def renamed(table: Table, pattern: str, replacement: str) -> Table:
    """Returns the table for another spelling of the reference's names: see ``re.sub``."""
    return [
        dataclasses.replace(entry, reference=re.sub(pattern, replacement, entry.reference))
        for entry in table
    ]


@dataclasses.dataclass(frozen=True)
class Renamed(Mapping[str, np.ndarray]):
    """Arrays under other names.

    Attributes:
        arrays: the arrays, which are read when they are asked for.
        names: the name in ``arrays`` of each array.
    """

    arrays: Mapping[str, np.ndarray]
    names: Mapping[str, str]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[self.names[name]]

    def __contains__(self, name: object) -> bool:
        return name in self.names  # a Mapping's own would read the array

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _read(
    arrays: Mapping[str, np.ndarray],
    table: Table,
    like: Mapping[str, Any],
    place: Place = lambda path, array: array,
) -> tuple[dict[str, Any], dict[str, int]]:
    shapes = _flatten(like)
    _check_names(shapes, _paths(table), "the model's parameters")
    copies: dict[str, list[str]] = {}
    for entry in table:
        if entry.role == "copy":
            copies.setdefault(entry.ours, []).append(entry.reference)
    # A file of tied weights may have only another one of their names.
    stored = {
        entry.reference: next(
            (name for name in (entry.reference, *copies.get(entry.ours, ())) if name in arrays),
            entry.reference,
        )
        for entry in table
        if entry.role == "parameter"
    }
    entries: dict[str, list[Entry]] = {}
    for entry in table:
        entries.setdefault(stored.get(entry.reference, entry.reference), []).append(entry)
    made: dict[str, Any] = {}
    lacking = collections.Counter(entry.ours for entry in table if entry.role == "parameter")
    types: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []

    def largest_first(name: str) -> tuple[int, str]:
        # While an array is converted it is there twice, which matters least at the beginning.
        ours = [entry.ours for entry in entries[name] if entry.role == "parameter"]
        return min((-math.prod(shapes[path].shape), path) for path in ours) if ours else (0, "")

    for name in sorted(entries, key=largest_first):
        weights = [entry for entry in entries[name] if entry.role == "parameter"]
        if name not in arrays or entries[name][0].role == "buffer":
            continue
        try:
            whole = arrays[name]
            if weights:
                types[str(whole.dtype)] += len(weights)
                array = as_type(name, whole, shapes[weights[0].ours].dtype)
                _put(made, _converted(name, array, weights, shapes), shapes, lacking, place)
            elif entries[name][0].role == "zeros":
                _check_zero(name, whole)
            else:
                _check_equal(name, whole, entries[name][0].ours, table, stored, arrays)
        except UserError as error:
            wrong.append(str(error))
    lines = differences(list(arrays), list(stored.values()), {entry.reference for entry in table})
    if lines or wrong:
        raise UserError(
            "the weights do not fit the model:" + "".join(f"\n  {x}" for x in lines) + few(wrong)
        )
    return _nested(made), dict(types)


def _put(
    made: dict[str, Any],
    arrays: Mapping[tuple[str, int | None], np.ndarray],
    shapes: Mapping[str, Any],
    lacking: collections.Counter[str],
    place: Place,
) -> None:
    """Adds arrays to those that are made; that of a layer to those of the other layers."""
    for (path, layer), array in arrays.items():
        lacking[path] -= 1
        if layer is None:
            made[path] = array
        else:
            if path not in made:
                made[path] = _aligned(shapes[path].shape, array.dtype)
            made[path][layer] = array
        if not lacking[path]:
            made[path] = place(path, made[path])


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Returns an array without values that jax can take over on a CPU instead of copying it."""
    bytes_needed = math.prod(shape) * dtype.itemsize
    memory = np.empty(bytes_needed + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return memory[begin : begin + bytes_needed].view(dtype).reshape(shape)


# Bytes; XLA's own arrays on a CPU begin at such addresses.
_ALIGNMENT = 64


def _converted(
    name: str, whole: np.ndarray, entries: Sequence[Entry], shapes: Mapping[str, Any]
) -> dict[tuple[str, int | None], np.ndarray]:
    """Returns the zoo's arrays that one of the reference's gives, by path and layer."""
    made, wrong = {}, []
    for entry in entries:
        wanted = shapes[entry.ours].shape
        if entry.layer is not None:
            wanted = wanted[1:]
        array = _ours(whole, entry)
        if array is None or array.shape != wanted:
            wrong.append(f"{name} {whole.shape} does not give {entry.ours} {wanted}")
        else:
            made[entry.ours, entry.layer] = array
    if wrong:
        raise UserError("\n  ".join(wrong))
    return made


def _check_zero(name: str, array: np.ndarray) -> None:
    if np.any(array):
        raise UserError(f"{name} is not zero, and the model is without it: make it with biases")


def _check_equal(
    name: str,
    array: np.ndarray,
    ours: str,
    table: Table,
    stored: Mapping[str, str],
    arrays: Mapping[str, np.ndarray],
) -> None:
    (of,) = (stored[e.reference] for e in table if e.role == "parameter" and e.ours == ours)
    if of in arrays and not np.array_equal(array, arrays[of]):
        raise UserError(f"{name} is not equal to {of}, and they are one array of the model")


def _ours(whole: np.ndarray, entry: Entry) -> np.ndarray | None:
    """Returns the zoo's array of an entry; None if the reference's has a shape that cannot be."""
    try:
        part = whole if entry.part is None else _part(whole, entry.part)
        return np.asarray(entry.transform.to_ours(part), order="C")
    except (ValueError, IndexError):  # an axis that the array does not have
        return None


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


def copy_entry(reference: str, ours: str) -> Entry:
    """Returns the entry of a second name that a reference's files have for tied weights."""
    return Entry(reference, ours, role="copy")


def buffer_entry(reference: str) -> Entry:
    """Returns the entry of an array in a reference's files that is no weight, such as a mask."""
    return Entry(reference, "", role="buffer")


def zeros_entry(reference: str, *shape: int) -> Entry:
    """Returns the entry of a weight of the reference that the zoo's model lacks, such as a bias."""
    return Entry(reference, "", role="zeros", shape=shape)


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


def _merged(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arrays of all collections by path; a path is in one of them only."""
    merged: dict[str, Any] = {}
    for collection in variables.values():
        merged |= _flatten(collection)
    return merged


def _paths(table: Table) -> list[str]:
    return list(dict.fromkeys(entry.ours for entry in table if entry.role == "parameter"))


def _check_names(found: Mapping[str, Any], wanted: Sequence[str], what: str) -> None:
    if lines := differences(list(found), wanted, set(wanted)):
        raise UserError(f"{what} do not fit the table:" + "".join(f"\n  {x}" for x in lines))
