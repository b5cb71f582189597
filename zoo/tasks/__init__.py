"""What is trained: a model joined with its loss, its metrics and its scores."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from zoo.errors import UserError, did_you_mean
from zoo.tasks.classification import Classification
from zoo.tasks.diffusion import Diffusion
from zoo.tasks.forecasting import Forecasting
from zoo.tasks.language_modelling import LanguageModelling
from zoo.tasks.sequence_to_sequence import SequenceToSequence
from zoo.tasks.transcription import Transcription

__all__ = [
    "Classification",
    "Diffusion",
    "Forecasting",
    "LanguageModelling",
    "SequenceToSequence",
    "Task",
    "Transcription",
    "make_task",
]

Batch = dict[str, Array]
Sums = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
# The symbols of the data by vocabulary, such as ``classes`` or ``characters``.
Symbols = Mapping[str, tuple[str, ...]]


class Task(Protocol):
    """What the loop and the evaluation need of a task; pure but for ``score``."""

    @property
    def model(self) -> nn.Module:
        """The linen module."""

    @property
    def references(self) -> tuple[str, ...]:
        """Names of the batch's arrays that ``score`` needs."""

    @property
    def draws(self) -> bool:
        """Whether ``predict`` returns ``image``, between -1 and 1, to look at as a run goes on."""

    def init(self, key: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        """Returns the variables for batches of these shapes: ``params`` and further collections."""

    def loss(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Any, Sums]]:
        """Returns the summed loss, and its weight, the new model state and metrics."""

    def evaluate(self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray) -> Sums:
        """Returns metrics as (sum, weight)."""

    def predict(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Returns outputs by name, the batch as their first axis."""

    def score(
        self, outputs: dict[str, np.ndarray], references: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        """Returns what is JSON-able of a whole split.

        ``metrics``: numbers by name; ``text``: a report for people; and the task's own.
        """


def make_task(
    name: str, model: nn.Module, symbols: Symbols, *, lanes: bool = False, **fields: Any
) -> Task:
    """Returns a task by name.

    Args:
        name: ``classification``, ``diffusion``, ``forecasting``, ``language_modelling``,
            ``sequence_to_sequence``, ``text_classification`` or ``transcription``.
        model: the linen module to train.
        symbols: of the data.
        lanes: whether a row of a batch goes on where the same row of the batch before ended.
        **fields: the task's own, see its class.

    Raises:
        UserError: the name is unknown.
    """
    tasks: dict[str, Callable[[], Task]] = {
        "classification": lambda: Classification(
            model=model,
            loss_name=fields["loss"],
            label_smoothing=fields["label_smoothing"],
            mixup=fields["mixup"],
            cutmix=fields["cutmix"],
            class_names=symbols["classes"],
        ),
        "diffusion": lambda: Diffusion(model=model, **fields),
        "forecasting": lambda: Forecasting(model=model),
        "language_modelling": lambda: LanguageModelling(
            model=model,
            carry_state=lanes,
            symbols=symbols["words"] if "words" in symbols else symbols["characters"],
            # What ends a sentence is the first of the words.
            end=0 if "words" in symbols else None,
            **fields,
        ),
        "sequence_to_sequence": lambda: SequenceToSequence(
            model=model, target_symbols=symbols["target"], **fields
        ),
        "text_classification": lambda: Classification(
            model=model,
            inputs=("tokens", "length"),
            label_smoothing=fields["label_smoothing"],
            class_names=symbols["classes"],
            words=symbols["words"],
        ),
        "transcription": lambda: Transcription(model=model, symbols=symbols["symbols"]),
    }
    if name not in tasks:
        raise UserError(f"task.name={name!r} is unknown.{did_you_mean(name, tasks)}")
    return tasks[name]()
