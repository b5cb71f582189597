"""A data set as a run sees it, and the table of their names."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from zoo.data.sources import Concatenation, DataError, Source, check_split
from zoo.data.transforms import Transform
from zoo.data.vocabulary import Vocabulary
from zoo.errors import did_you_mean


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What a run reads, the same for every kind of data.

    Attributes:
        name: its name.
        sizes: number of examples by split.
        vocabularies: what the numbers stand for, by name; kept beside the run.
        model_fields: attributes of the model that follow from the data, such as ``num_classes``.
        open_split: opens one split of ``sizes``.
        transform: the transform of an example, for training or not.
        order: ``shuffled``: anew in every epoch; ``lanes``: every row of a batch goes on where the
            same row of the batch before ended.
    """

    name: str
    sizes: Mapping[str, int]
    vocabularies: Mapping[str, Vocabulary]
    model_fields: Mapping[str, int]
    open_split: Callable[[str], Source]
    transform: Callable[[bool], Transform]
    order: str = "shuffled"

    def open(self, split: str) -> Source:
        """Opens a split, or several joined by ``+``; examples are made when they are asked for.

        Raises:
            DataError: the set has no such split.
        """
        names = split.split("+")
        for name in names:
            check_split(self.name, name, self.sizes)
        parts = [self.open_split(name) for name in names]
        return parts[0] if len(parts) == 1 else Concatenation(tuple(parts))


def load(task: str, fields: Mapping[str, Any]) -> Dataset:
    """Describes the data of a task; reads no more than it must.

    Args:
        task: the task's name, which decides the kind of data.
        fields: the config's ``data`` section, ``name`` among them.

    Raises:
        DataError: the data are not there, or not what the fields say.
    """
    loaders = _loaders()
    if task not in loaders:
        raise DataError(f"there are no data for task.name={task!r}.{did_you_mean(task, loaders)}")
    # How batches are made is no matter of the data.
    given = {name: v for name, v in fields.items() if name not in ("workers", "prefetch")}
    return loaders[task](**given)


def token_array(tokens: Any, length: int, padding: int = 0) -> np.ndarray:
    """Returns tokens as int32, filled up to ``length``."""
    padded = np.full(length, padding, np.int32)
    padded[: len(tokens)] = tokens
    return padded


def _loaders() -> dict[str, Callable[..., Dataset]]:
    from zoo.data.images import load_images
    from zoo.data.messages import load_messages
    from zoo.data.pairs import load_pairs
    from zoo.data.scenes import load_scenes
    from zoo.data.sentences import load_language
    from zoo.data.series import load_series
    from zoo.data.speech import load_speech

    return {
        "classification": load_images,
        "diffusion": load_scenes,
        "forecasting": load_series,
        "language_modelling": load_language,
        "sequence_to_sequence": load_pairs,
        "text_classification": load_messages,
        "transcription": load_speech,
    }
