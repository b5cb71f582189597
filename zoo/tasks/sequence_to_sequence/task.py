"""Sequence to sequence: one sequence from another, such as a pronunciation from a spelling."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.decoding import beam_search, greedy
from zoo.losses import cross_entropy
from zoo.metrics import correct, edit_errors
from zoo.tasks.task import Batch, Sums, SumsTask, call_options

PAD, BEGIN, END = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class SequenceToSequence(SumsTask):
    """Joins an encoder-decoder with label-smoothed cross-entropy, decoding and error rates.

    A batch has ``source: Int[Array, "batch source_time"]``, ``target: Int[Array, "batch time"]``,
    which includes begin and end, and ``mask: Float[Array, "batch"]``. It also has
    ``references: Int[Array, "batch targets target_time"]``, all the targets that count as correct,
    without begin and end. Token 0 is padding, token 1 begins and token 2 ends a target.

    Attributes:
        model: a linen module such as ``zoo.models.Transformer``.
        label_smoothing: the weight of the uniform distribution in the training target.
        num_beams: the width of the beam search.
        length_penalty: the power of the length by which a beam's log-probability is divided.
        target_symbols: the symbol of each target token.
    """

    model: nn.Module
    label_smoothing: float = 0.1
    num_beams: int = 4
    length_penalty: float = 1.0
    target_symbols: tuple[str, ...] = ()

    references: ClassVar[tuple[str, ...]] = ("source", "references")
    counts_tokens: ClassVar[bool] = True
    """The arrays of a batch that ``score`` needs."""

    def init(self, key: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        """Returns the model's variables for inputs shaped like those of ``batch``."""
        return dict(self.model.init(key, batch["source"][:1], batch["target"][:1, :-1]))

    def predict(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Returns ``greedy`` and ``beam``, each ``Int[Array, "batch target_time"]``."""
        length = batch["references"].shape[-1]
        return {
            name: self.decode(params, batch["source"], length, num_beams=beams)
            for name, beams in (("greedy", 1), ("beam", self.num_beams))
        }

    def decode(
        self, params: Any, source: Int[Array, "batch source_time"], length: int, *, num_beams: int
    ) -> Int[Array, "batch length"]:
        """Returns the likeliest target of each source, without begin and with padding after end.

        Args:
            params: the model's parameters.
            source: tokens, followed by padding.
            length: the largest number of tokens of a target.
            num_beams: the width of the beam search; 1 always takes the likeliest next token.
        """
        variables = {"params": params}
        cache: Any = self.model.apply(variables, source, source != PAD, length + 1, method="begin")

        def step(tokens: Array, cache: Any) -> Any:
            return self.model.apply(variables, tokens, cache, method="step")

        begin = jnp.full((source.shape[0], 1), BEGIN, jnp.int32)
        if num_beams == 1:
            return greedy(step, cache, begin, max_new_tokens=length, end=END, padding=PAD)
        tokens, _ = beam_search(
            step,
            cache,
            begin,
            num_beams=num_beams,
            max_new_tokens=length,
            end=END,
            padding=PAD,
            length_penalty=self.length_penalty,
        )
        return tokens

    def score(
        self, outputs: dict[str, np.ndarray], references: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        """Returns the error rates of each way of decoding, and some examples.

        ``sequence_error`` is the share of outputs that equal none of their references, which for
        words is the word error rate. ``token_error``, the phoneme error rate, is the number of
        edits to the nearest references divided by the total length of these references.
        """
        metrics: dict[str, float] = {}
        for name, tokens in outputs.items():
            wrong, edits, length = edit_errors(
                [until_end(row) for row in tokens],
                [[until_end(r) for r in rows if r[0]] for rows in references["references"]],
            )
            suffix = "" if name == "beam" else f"_{name}"
            metrics[f"sequence_error{suffix}"] = wrong / len(tokens)
            metrics[f"token_error{suffix}"] = edits / length
        return {"metrics": metrics}

    def sums(self, params: Any, batch: Batch, key: PRNGKeyArray | None = None) -> Sums:
        """Returns ``loss`` and ``accuracy`` of the next symbol; only training smooths labels."""
        label_smoothing = 0.0 if key is None else self.label_smoothing
        given, wanted = batch["target"][:, :-1], batch["target"][:, 1:]
        logits: Any = self.model.apply(
            {"params": params},
            batch["source"],
            given,
            source_mask=batch["source"] != PAD,
            target_mask=given != PAD,
            **call_options(key),
        )
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        counts = _counts(wanted, batch["mask"]).astype(logits.dtype)
        losses = cross_entropy(logits, wanted, label_smoothing=label_smoothing)
        return {
            "loss": ((losses * counts).sum(), counts.sum()),
            "accuracy": ((correct(logits, wanted) * counts).sum(), counts.sum()),
        }


def _counts(
    tokens: Int[Array, "batch time"], mask: Float[Array, " batch"]
) -> Bool[Array, "batch time"]:
    return (tokens != PAD) & (mask[:, None] > 0)


def until_end(tokens: np.ndarray) -> list[int]:
    """Returns the tokens before the end."""
    kept = tokens.tolist()
    return kept[: next((i for i, token in enumerate(kept) if token in (PAD, END)), len(kept))]
