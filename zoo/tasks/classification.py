"""One class of several for each example."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from zoo.losses import binary_cross_entropy, cross_entropy, mean_squared_error
from zoo.metrics import classification_scores, correct

Batch = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Classification:
    """Joins a model that gives logits with a loss, accuracy, and scores of whole splits.

    A batch has ``image: Float[Array, "batch height width channels"]``, ``label: Int[Array,
    "batch"]`` and ``mask: Float[Array, "batch"]``, 1 for a row that counts and 0 for padding.

    Attributes:
        model: a linen module from ``image`` to logits ``Float[Array, "batch classes"]``.
        loss_name: ``cross_entropy``; ``binary_cross_entropy``: every class a yes-or-no question of
            its own, summed over classes; ``mean_squared_error``: to the one-hot label, averaged
            over classes.
        label_smoothing: weight of the uniform distribution in the target of ``cross_entropy``.
        class_names: names for the report, in the order of the labels.
    """

    model: nn.Module
    loss_name: str = "cross_entropy"
    label_smoothing: float = 0.0
    class_names: tuple[str, ...] = ()

    references: ClassVar[tuple[str, ...]] = ("label",)
    """Arrays of a batch that ``score`` needs."""
    draws: ClassVar[bool] = False
    """Whether ``predict`` returns images to look at."""

    def init(self, key: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        """Returns the model's variables for inputs shaped like those of ``batch``."""
        return dict(self.model.init(key, batch["image"]))

    def loss(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Any, dict[str, Any]]]:
        """Returns the summed training loss, and its weight, the new model state and metrics."""
        logits, model_state = self.model.apply(
            {"params": params, **model_state},
            batch["image"],
            train=True,
            rngs={"dropout": key},
            mutable=list(model_state),
        )
        sums = self._sums(logits, batch)
        loss_sum, weight = sums.pop("loss")
        return loss_sum, (weight, model_state, sums)

    def evaluate(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        """Returns ``loss`` and ``accuracy`` as (sum, weight), without dropout."""
        return self._sums(self._logits(params, model_state, batch), batch)

    def predict(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Returns ``probability: Float[Array, "batch classes"]``."""
        return {"probability": jax.nn.softmax(self._logits(params, model_state, batch))}

    def score(
        self, outputs: dict[str, np.ndarray], references: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        """Returns the report of each class and the confusion matrix, as ``text`` too."""
        predictions = outputs["probability"].argmax(axis=-1)
        scores = classification_scores(references["label"], predictions, self.class_names)
        matrix = np.array2string(np.array(scores["confusion_matrix"]))
        return scores | {
            "text": f"\nClassification report\n{scores['text']}\n"
            f"Confusion matrix (rows = true, columns = predicted)\n{matrix}"
        }

    def _logits(self, params: Any, model_state: Any, batch: Batch) -> Float[Array, "batch classes"]:
        logits: Any = self.model.apply({"params": params, **model_state}, batch["image"])
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def _sums(
        self, logits: Float[Array, "batch classes"], batch: Batch
    ) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        # Losses are added up in float32 at least, whatever the model computes in.
        dtype = jnp.promote_types(logits.dtype, jnp.float32)
        logits, mask, label = logits.astype(dtype), batch["mask"].astype(dtype), batch["label"]
        weight = mask.sum()
        return {
            "loss": ((self._per_example(logits, label) * mask).sum(), weight),
            "accuracy": ((correct(logits, label) * mask).sum(), weight),
        }

    def _per_example(
        self, logits: Float[Array, "batch classes"], label: Int[Array, " batch"]
    ) -> Float[Array, " batch"]:
        if self.loss_name == "cross_entropy":
            return cross_entropy(logits, label, label_smoothing=self.label_smoothing)
        targets = jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype)
        if self.loss_name == "binary_cross_entropy":
            return binary_cross_entropy(logits, targets).sum(axis=-1)
        if self.loss_name == "mean_squared_error":
            return mean_squared_error(logits, targets).mean(axis=-1)
        raise ValueError(
            f"loss_name={self.loss_name!r} must be cross_entropy, binary_cross_entropy or "
            "mean_squared_error"
        )
