"""The data set of a run."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from zoo.data.sources import Concatenation, Source, check_split
from zoo.data.transforms import Transform
from zoo.data.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set that a run reads; it looks the same for every kind of data.

    Attributes:
        name: name of the data set.
        sizes: number of examples by split.
        vocabularies: the vocabularies by name; they say what the numbers stand for and are saved
            with the run.
        model_fields: attributes of the model that follow from the data, such as ``num_classes``. A
            model has some of them.
        open_split: opens one of the splits in ``sizes``.
        transform: returns the transform of an example; its argument says whether to train.
        order: ``shuffled`` shuffles every epoch anew; with ``lanes``, every row of a batch
            continues where the same row of the previous batch ended.
        notes: what the user should know of the data, such as the number of examples that are left
            out and why; a line each.
        without_validation: what a user can do when there is no validation split; the words follow
            the statement that there is none.
    """

    name: str
    sizes: Mapping[str, int]
    vocabularies: Mapping[str, Vocabulary]
    model_fields: Mapping[str, int]
    open_split: Callable[[str], Source]
    transform: Callable[[bool], Transform]
    order: str = "shuffled"
    notes: tuple[str, ...] = ()
    without_validation: str = ""

    def open(self, split: str) -> Source:
        """Opens a split, or several joined by ``+``; examples are made on access.

        Raises:
            DataError: the data set has no such split.
        """
        names = split.split("+")
        for name in names:
            check_split(self.name, name, self.sizes)
        parts = [self.open_split(name) for name in names]
        return parts[0] if len(parts) == 1 else Concatenation(tuple(parts))


def token_array(tokens: Any, length: int, padding: int = 0) -> np.ndarray:
    """Returns tokens as int32, padded to ``length``."""
    padded = np.full(length, padding, np.int32)
    padded[: len(tokens)] = tokens
    return padded
