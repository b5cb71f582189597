"""The interface between a task and the loop and evaluation."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

Batch = dict[str, Array]
# name -> (sum, weight)
Sums = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]


class Task(Protocol):
    """A model joined with its loss, its metrics and its scores; pure except for ``score``."""

    @property
    def model(self) -> nn.Module:
        """The linen module."""

    @property
    def references(self) -> tuple[str, ...]:
        """The names of the batch's arrays that ``score`` needs."""

    @property
    def own_state(self) -> tuple[str, ...]:
        """The names in the model state that belong to the task, not the model: no weights."""

    @property
    def counts_tokens(self) -> bool:
        """Whether the weight of the loss is a number of tokens, for the records of speed."""

    @property
    def draws(self) -> bool:
        """Whether ``pictures`` shows the outputs of ``predict`` during a run."""

    def init(self, key: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        """Returns ``params`` and further collections of variables for batches of these shapes."""

    def loss(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Any, Sums]]:
        """Returns the summed loss, and its weight, the new model state and metrics."""

    def evaluate(self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray) -> Sums:
        """Returns metrics as (sum, weight)."""

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """Returns the means over a split and values derived from them, such as a perplexity."""

    def predict(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Returns the outputs by name; their first axis is the batch."""

    def score(
        self, outputs: dict[str, np.ndarray], references: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        """Returns the JSON-able scores of a whole split.

        ``metrics`` has numbers by name, ``text`` is a report for people, and a task adds its own.
        """

    def pictures(
        self, outputs: dict[str, np.ndarray]
    ) -> UInt8[np.ndarray, "images height width channels"]:
        """Returns the outputs of ``predict`` as images to look at."""


class TaskDefaults:
    """Defaults for a task without scores, pictures or state of its own."""

    references: ClassVar[tuple[str, ...]] = ()
    own_state: ClassVar[tuple[str, ...]] = ()
    draws: ClassVar[bool] = False
    counts_tokens: ClassVar[bool] = False

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """Returns the means unchanged."""
        return means

    def predict(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Returns nothing."""
        return {}

    def score(
        self, outputs: dict[str, np.ndarray], references: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        """Returns nothing."""
        return {}

    def pictures(
        self, outputs: dict[str, np.ndarray]
    ) -> UInt8[np.ndarray, "images height width channels"]:
        """Raises NotImplementedError: see ``draws``."""
        raise NotImplementedError(f"{type(self).__name__} draws nothing")


class SumsTask(TaskDefaults):
    """A task that trains on one of the sums that it evaluates; its model has no state.

    A subclass defines only ``sums``.
    """

    def sums(self, params: Any, batch: Batch, key: PRNGKeyArray | None = None) -> Sums:
        """Returns ``loss`` and the other metrics as (sum, weight).

        Args:
            params: the model's parameters.
            batch: the batch.
            key: the random key for dropout in training; None in evaluation.
        """
        raise NotImplementedError

    def loss(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Any, Sums]]:
        """Returns the summed training loss, and its weight, the model state and metrics."""
        sums = self.sums(params, batch, key)
        loss_sum, weight = sums.pop("loss")
        return loss_sum, (weight, model_state, sums)

    def evaluate(self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray) -> Sums:
        """Returns the metrics as (sum, weight), without dropout."""
        return self.sums(params, batch)


def call_options(key: PRNGKeyArray | None) -> dict[str, Any]:
    """Returns the options of a model's call: a key means training, with dropout."""
    return {} if key is None else {"train": True, "rngs": {"dropout": key}}
