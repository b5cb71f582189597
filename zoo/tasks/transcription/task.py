"""Transcribes sound by connectionist temporal classification (Graves et al. 2006)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from zoo.metrics import edit_errors
from zoo.tasks.task import Batch, Sums, SumsTask, call_options

BLANK = 0
EXAMPLES = 12


@dataclasses.dataclass(frozen=True)
class Transcription(SumsTask):
    """Joins a model that names a symbol or a blank for each frame with the CTC loss.

    A batch has ``samples: Float[Array, "batch time"]``, ``length: Int[Array, "batch"]``, the number
    of samples of each row that count, ``target: Int[Array, "batch symbols"]``, padded with the
    blank, 0, and ``mask: Float[Array, "batch"]``.

    Attributes:
        model: a linen module such as ``zoo.models.SpeechRecognizer``.
        symbols: the symbol of each token, for the report; the first is the blank.
    """

    model: nn.Module
    symbols: tuple[str, ...] = ()

    references: ClassVar[tuple[str, ...]] = ("target",)
    """The arrays of a batch that ``score`` needs."""

    def init(self, key: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        """Returns the model's variables for inputs shaped like those of ``batch``."""
        return dict(self.model.init(key, batch["samples"][:1], batch["length"][:1]))

    def predict(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Returns ``text: Int[Array, "batch frames"]``: symbols, padded with blanks."""
        made: Any = self.model.apply({"params": params}, batch["samples"], batch["length"])
        logits, frames = made
        return {"text": best_path(logits, frames)}

    def score(
        self, outputs: dict[str, np.ndarray], references: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        """Returns the rates ``token_error`` and ``sequence_error``, and ``examples``.

        ``token_error`` is the number of edits divided by the number of symbols, and
        ``sequence_error`` the share of texts with an error. ``examples`` lists texts with errors
        first, and otherwise keeps the order of the split.
        """
        texts, right = (
            [row[row != BLANK].tolist() for row in rows]
            for rows in (outputs["text"], references["target"])
        )
        wrong, edits, length = edit_errors(texts, [[text] for text in right])
        order = sorted(range(len(texts)), key=lambda i: texts[i] == right[i])
        return {
            "metrics": {"token_error": edits / length, "sequence_error": wrong / len(texts)},
            "examples": [
                {"said": self._spelled(right[i]), "heard": self._spelled(texts[i])}
                for i in order[:EXAMPLES]
            ],
        }

    def _spelled(self, tokens: list[int]) -> str:
        return "".join(self.symbols[t] if self.symbols else str(t) for t in tokens)

    def sums(self, params: Any, batch: Batch, key: PRNGKeyArray | None = None) -> Sums:
        """Returns ``loss`` and ``accuracy``, the share of texts without an error."""
        made: Any = self.model.apply(
            {"params": params}, batch["samples"], batch["length"], **call_options(key)
        )
        logits, frames = made
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        mask, target = batch["mask"].astype(logits.dtype), batch["target"]
        padding = (jnp.arange(logits.shape[1]) >= frames[:, None]).astype(logits.dtype)
        losses = optax.ctc_loss(
            logits, padding, target, (target == BLANK).astype(logits.dtype), blank_id=BLANK
        )
        text = best_path(logits, frames)
        longest = max(text.shape[1], target.shape[1])
        right = (_filled(text, longest) == _filled(target, longest)).all(axis=1)
        weight = mask.sum()
        return {
            "loss": ((losses * mask).sum(), weight),
            "accuracy": ((right * mask).sum(), weight),
        }


def best_path(
    logits: Float[Array, "batch frames symbols"], frames: Int[Array, " batch"]
) -> Int[Array, "batch frames"]:
    """Returns the text of the likeliest path: repeated symbols count once, blanks not at all.

    This is the best path decoding of section 3.2.

    Args:
        logits: the logits of each frame.
        frames: the number of frames of each row that count.

    Returns:
        The symbols of each row, followed by blanks.
    """
    best = jnp.argmax(logits, axis=-1)
    before = jnp.pad(best, ((0, 0), (1, 0)), constant_values=BLANK)[:, :-1]
    counts = jnp.arange(best.shape[1]) < frames[:, None]
    kept = (best != BLANK) & (best != before) & counts
    order = jnp.argsort(~kept, axis=1, stable=True)
    return jnp.take_along_axis(jnp.where(kept, best, BLANK), order, axis=1)


def _filled(tokens: Int[Array, "batch time"], length: int) -> Int[Array, "batch length"]:
    return jnp.pad(tokens, ((0, 0), (0, length - tokens.shape[1])), constant_values=BLANK)
