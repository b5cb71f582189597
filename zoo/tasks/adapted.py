"""A task of which only low-rank additions to the model's kernels are trained: LoRA."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from zoo.tasks.task import Batch, Sums, Task
from zoo.training import lora


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A task whose parameters are the additions of ``zoo.training.lora``.

    The model's own parameters are ``lora.BASE`` in the model state, which no step changes and no
    checkpoint holds.

    Attributes:
        task: the task of the whole model.
        lora: the rank and the targets.
    """

    task: Task
    lora: lora.Lora

    def init(self, key: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        """Returns the additions as ``params``, and the model's variables.

        Raises:
            UserError: see ``zoo.training.lora.targets``.
        """
        variables = dict(self.task.init(key, batch))
        base = variables.pop("params")
        additions = lora.init(jax.random.fold_in(key, 1), base, self.lora.targets, self.lora.rank)
        return {"params": additions, lora.BASE: base, **variables}

    def loss(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Any, Sums]]:
        """Returns the task's loss with the additions."""
        if self.lora.dropout:
            params = lora.dropped(jax.random.fold_in(key, 1), params, self.lora.dropout)
        whole, others = self._whole(params, model_state)
        loss_sum, (weight, others, sums) = self.task.loss(whole, others, batch, key)
        return loss_sum, (weight, {**others, lora.BASE: model_state[lora.BASE]}, sums)

    def evaluate(self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray) -> Sums:
        """Returns the task's metrics with the additions."""
        return self.task.evaluate(*self._whole(params, model_state), batch, key)

    def predict(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Returns the task's outputs with the additions."""
        return self.task.predict(*self._whole(params, model_state), batch, key)

    def _whole(self, params: Any, model_state: Any) -> tuple[Any, dict[str, Any]]:
        others = dict(model_state)
        base = others.pop(lora.BASE)
        # A step in bfloat16 casts the parameters, so the additions say in what to compute.
        (dtype, *_) = {leaf.dtype for leaf in jax.tree.leaves(params)}
        base = jax.tree.map(lambda x: x.astype(dtype), jax.lax.stop_gradient(base))
        return lora.merged(base, params, self.lora.alpha), others

    @property
    def model(self) -> nn.Module:
        """The linen module, which takes merged parameters."""
        return self.task.model

    @property
    def references(self) -> tuple[str, ...]:
        """See ``Task``."""
        return self.task.references

    @property
    def own_state(self) -> tuple[str, ...]:
        """See ``Task``."""
        return self.task.own_state

    @property
    def counts_tokens(self) -> bool:
        """See ``Task``."""
        return self.task.counts_tokens

    @property
    def draws(self) -> bool:
        """See ``Task``."""
        return self.task.draws

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """See ``Task``."""
        return self.task.summary(means)

    def score(
        self, outputs: dict[str, np.ndarray], references: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        """See ``Task``."""
        return self.task.score(outputs, references)

    def pictures(
        self, outputs: dict[str, np.ndarray]
    ) -> UInt8[np.ndarray, "images height width channels"]:
        """See ``Task``."""
        return self.task.pictures(outputs)
