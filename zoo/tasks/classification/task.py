"""Classification: one of several classes for each example."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from zoo.losses import binary_cross_entropy, cross_entropy, mean_squared_error
from zoo.metrics import classification_scores, correct
from zoo.tasks.classification.mixing import mix
from zoo.tasks.task import Batch, Sums, TaskDefaults

MISTAKES = 24
LOSSES = ("cross_entropy", "binary_cross_entropy", "mean_squared_error")


@dataclasses.dataclass(frozen=True)
class Classification(TaskDefaults):
    """Joins a model that gives logits with a loss, the accuracy, and scores of whole splits.

    A batch has the model's inputs, such as ``image: Float[Array, "batch height width channels"]``,
    or the ``tokens`` and ``length`` of texts. It also has ``label: Int[Array, "batch"]`` and
    ``mask: Float[Array, "batch"]``, which is 1 for a row that counts and 0 for padding.

    Attributes:
        model: a linen module from the inputs to logits ``Float[Array, "batch classes"]``.
        inputs: the names of the batch's arrays that the model takes.
        loss_name: ``cross_entropy``, ``binary_cross_entropy`` or ``mean_squared_error``. The second
            treats every class as a separate yes-or-no question and sums over classes. The third
            compares with the one-hot label and averages over classes.
        label_smoothing: the weight of the uniform distribution in the target of ``cross_entropy``.
        mixup: the alpha of ``zoo.tasks.classification.mixing.mixup`` in training; 0 disables it.
        cutmix: the alpha of ``cutmix``, likewise. With mixup or CutMix the training accuracy counts
            only an image's own label.
        class_names: the names of the classes for the report, in the order of the labels.
        words: for texts, the word of each token, for the report; token 0 is padding.
    """

    model: nn.Module
    inputs: tuple[str, ...] = ("image",)
    loss_name: str = "cross_entropy"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    class_names: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[str, ...]:  # type: ignore[override]
        """Arrays of a batch that ``score`` needs."""
        return ("label", "tokens") if self.words else ("label",)

    def init(self, key: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        """Returns the model's variables for inputs shaped like those of ``batch``."""
        return dict(self.model.init(key, *self._inputs(batch)))

    def loss(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Any, Sums]]:
        """Returns the summed training loss, and its weight, the new model state and metrics."""
        # Layers that use a batch's statistics must know which of its rows are padding.
        masked: dict[str, Any] = {"mask": batch["mask"]} if model_state else {}
        own = None
        if self.mixup or self.cutmix:
            key, mixing_key = jax.random.split(key)
            mixed, own = mix(
                mixing_key,
                batch["image"],
                batch["mask"],
                mixup_alpha=self.mixup,
                cutmix_alpha=self.cutmix,
            )
            batch = {**batch, "image": mixed}
        logits, model_state = self.model.apply(
            {"params": params, **model_state},
            *self._inputs(batch),
            train=True,
            rngs={"dropout": key},
            mutable=list(model_state),
            **masked,
        )
        sums = self._sums(logits, batch, own)
        loss_sum, weight = sums.pop("loss")
        return loss_sum, (weight, model_state, sums)

    def evaluate(self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray) -> Sums:
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
        """Returns the report of each class and the confusion matrix, also as ``text``.

        ``mistakes`` are the wrong predictions with the highest probabilities, the highest first.
        """
        predictions = outputs["probability"].argmax(axis=-1)
        scores = classification_scores(references["label"], predictions, self.class_names)
        matrix = np.array2string(np.array(scores["confusion_matrix"]))
        certainty = outputs["probability"].max(axis=-1)
        wrong = np.flatnonzero(predictions != references["label"])
        worst = wrong[np.argsort(-certainty[wrong], kind="stable")][:MISTAKES]
        mistakes: list[dict[str, Any]] = [
            {
                "index": int(index),
                "label": self._name(references["label"][index]),
                "predicted": self._name(predictions[index]),
                "probability": float(certainty[index]),
            }
            for index in worst
        ]
        for mistake in mistakes if self.words else ():
            tokens = references["tokens"][mistake["index"]]
            mistake["text"] = " ".join(self.words[token] for token in tokens if token)
        return scores | {
            "mistakes": mistakes,
            "text": f"\nClassification report\n{scores['text']}\n"
            f"Confusion matrix (rows = true, columns = predicted)\n{matrix}",
        }

    def _inputs(self, batch: Batch) -> list[Array]:
        return [batch[name] for name in self.inputs]

    def _name(self, label: Any) -> str:
        return self.class_names[label] if label < len(self.class_names) else str(label)

    def _logits(self, params: Any, model_state: Any, batch: Batch) -> Float[Array, "batch classes"]:
        variables = {"params": params, **model_state}
        logits: Any = self.model.apply(variables, *self._inputs(batch))
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def _sums(
        self,
        logits: Float[Array, "batch classes"],
        batch: Batch,
        own: Float[Array, " batch"] | None = None,
    ) -> Sums:
        # Losses are summed in at least float32, whatever the model's precision.
        dtype = jnp.promote_types(logits.dtype, jnp.float32)
        logits, mask, label = logits.astype(dtype), batch["mask"].astype(dtype), batch["label"]
        weight = mask.sum()
        loss = self._per_example(logits, label)
        if own is not None:
            # Up to a constant the loss is linear in the target, so two mixed losses equal the loss
            # of a mixed target.
            loss = own * loss + (1 - own) * self._per_example(logits, jnp.roll(label, 1))
        return {
            "loss": ((loss * mask).sum(), weight),
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
