"""A user's own task, made of a linen model and a loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from zoo.errors import UserError
from zoo.tasks.task import Batch, Sums, TaskDefaults

# loss(model, batch, train=...) -> losses [batch], or (losses [batch], {metric: values [batch]})
Loss = Callable[..., Any]


def make_task(model: nn.Module, loss: Loss) -> OwnTask:
    """Returns the task of a model and a loss, for ``zoo.fit`` or ``make_train_step``.

    Args:
        model: the linen module.
        loss: called as ``loss(model, batch, train=True)`` in training and with ``train=False`` in
            evaluation. ``model`` is bound to its parameters, so that the loss can call
            ``model(batch["image"])`` or any of its methods. The loss returns one number for each
            example, ``Float[Array, "batch"]``, or a pair of these and a dictionary of metrics of
            the same shape. Rows that only pad the last batch of an epoch are left out of all means.
            In a model, ``self.make_rng`` gives a key of any name.
    """
    return OwnTask(model, loss)


@dataclasses.dataclass(frozen=True)
class OwnTask(TaskDefaults):
    """See ``make_task``."""

    model: nn.Module
    per_example: Loss

    def init(self, key: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        """Returns the variables that the loss of a batch needs."""
        made = nn.init(lambda module: self.per_example(module, batch, train=False), self.model)
        return dict(made(key))

    def loss(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Any, Sums]]:
        """Returns the summed training loss, and the number of rows, the model state and metrics."""
        called = nn.apply(
            lambda module: self.per_example(module, batch, train=True),
            self.model,
            mutable=list(model_state),
        )
        made, model_state = called({"params": params, **model_state}, rngs=key)
        sums = _sums(made, batch)
        loss_sum, weight = sums.pop("loss")
        return loss_sum, (weight, model_state, sums)

    def evaluate(self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray) -> Sums:
        """Returns ``loss`` and the metrics, each as (sum, weight)."""
        called = nn.apply(lambda module: self.per_example(module, batch, train=False), self.model)
        return _sums(called({"params": params, **model_state}, rngs=key), batch)


def _sums(made: Any, batch: Batch) -> Sums:
    losses, metrics = made if isinstance(made, tuple) else (made, {})
    mask = batch["mask"]
    sums = {}
    for name, values in {"loss": losses, **metrics}.items():
        if values.shape != mask.shape:
            raise UserError(
                f"{name} has the shape {values.shape}: a loss returns one number for each of the "
                f"{len(mask)} examples of a batch; take the mean over the other axes"
            )
        # Values are summed in at least float32, whatever the model's precision.
        exact = values.astype(jnp.promote_types(values.dtype, jnp.float32))
        counts = mask.astype(exact.dtype)
        sums[name] = ((exact * counts).sum(), counts.sum())
    return sums
