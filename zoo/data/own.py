"""Your own data in code: arrays, or examples by index."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zoo.data.datasets import Dataset
from zoo.data.sources import DataError, Example, Source
from zoo.data.transforms import Transform

# A dictionary of arrays with equal first axes, or examples by index.
OwnSource = Source | Sequence[Mapping[str, Any]] | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Examples in memory: the rows of arrays with equal first axes."""

    arrays: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int) -> Example:
        return {name: rows[index] for name, rows in self.arrays.items()}


def own_dataset(splits: Mapping[str, OwnSource], transform: Transform | None) -> Dataset:
    """Describes your own data for ``zoo.fit``.

    Args:
        splits: the examples of ``train`` and of other splits.
        transform: transforms a training example; None leaves it as it is.

    Raises:
        DataError: a split is empty, or its examples are not dictionaries of arrays.
    """
    sources = {split: _own_source(split, source) for split, source in splits.items()}
    return Dataset(
        name="the data",
        sizes={split: len(source) for split, source in sources.items()},
        vocabularies={},
        model_fields={},
        open_split=sources.__getitem__,
        transform=lambda train: _AsNumbers(transform if train else None),
        without_validation=" (give validation=)",
    )


@dataclasses.dataclass(frozen=True)
class _AsNumbers:
    """Applies a transform and makes the values numpy arrays of at most 32 bits."""

    transform: Transform | None

    def __call__(self, example: Example, generator: np.random.Generator) -> Example:
        made = self.transform(example, generator) if self.transform else example
        # This also converts Python numbers and arrays of other libraries, such as torch's.
        arrays = {name: np.asarray(value) for name, value in made.items()}
        return {
            name: array.astype(f"{array.dtype.kind}4") if array.dtype.itemsize > 4 else array
            for name, array in arrays.items()
        }


def _own_source(split: str, given: OwnSource) -> Source:
    source: Any = given
    wanted = (
        "give a dictionary of arrays with equal first axes, or anything with __len__ and "
        "__getitem__ that returns a dictionary of arrays"
    )
    if isinstance(source, Mapping):
        arrays = {name: np.asarray(rows) for name, rows in source.items()}
        sizes = {name: len(rows) if rows.ndim else 0 for name, rows in arrays.items()}
        if len(set(sizes.values())) != 1:
            raise DataError(f"{split}: the arrays have {sizes} rows: {wanted}")
        source = Arrays(arrays)
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
        raise DataError(f"{split} is of type {type(source).__name__}: {wanted}")
    if not len(source):
        raise DataError(f"{split} has no examples")
    first = source[0]
    if not isinstance(first, Mapping) or not first:
        raise DataError(f"{split}[0] is of type {type(first).__name__}: {wanted}")
    if "mask" in first:
        raise DataError(f"{split}[0] has an array 'mask': rename it, as batches have their own")
    for name, value in first.items():
        if np.asarray(value).dtype.kind not in "biuf":
            raise DataError(
                f"{split}[0][{name!r}] is {np.asarray(value).dtype}, not an array of numbers: "
                "encode it or leave it out"
            )
    return source
