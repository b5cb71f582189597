"""One sequence from another, such as a pronunciation from a spelling."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.decoding import beam_search, greedy
from zoo.losses import cross_entropy
from zoo.metrics import correct, edit_errors

Batch = dict[str, Array]
PAD, BEGIN, END = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class SequenceToSequence:
    """Joins an encoder-decoder with label-smoothed cross-entropy, decoding and error rates.

    A batch has ``source: Int[Array, "batch source_time"]``; ``target: Int[Array, "batch time"]``,
    begin and end included; ``references: Int[Array, "batch targets target_time"]``, all that
    counts as right, without begin and end; and ``mask: Float[Array, "batch"]``. Token 0 is padding,
    1 begins and 2 ends a target.

    Attributes:
        model: a linen module as ``zoo.models.Transformer``.
        label_smoothing: weight of the uniform distribution in the training target.
        num_beams: width of the beam search.
        length_penalty: power of the length by which a beam's log-probability is divided.
        target_symbols: the symbol of each target token.
    """

    model: nn.Module
    label_smoothing: float = 0.1
    num_beams: int = 4
    length_penalty: float = 1.0
    target_symbols: tuple[str, ...] = ()

    references: ClassVar[tuple[str, ...]] = ("source", "references")
    """Arrays of a batch that ``score`` needs."""
    draws: ClassVar[bool] = False
    """Whether ``predict`` returns images to look at."""

    def init(self, key: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        """Returns the model's variables for inputs shaped like those of ``batch``."""
        return dict(self.model.init(key, batch["source"][:1], batch["target"][:1, :-1]))

    def loss(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Any, dict[str, Any]]]:
        """Returns the summed training loss, and the number of symbols, and metrics."""
        sums = self._sums(params, batch, self.label_smoothing, train=True, rngs={"dropout": key})
        loss_sum, weight = sums.pop("loss")
        return loss_sum, (weight, model_state, sums)

    def evaluate(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        """Returns ``loss``, without smoothing, and ``accuracy`` of the next symbol."""
        return self._sums(params, batch, 0.0)

    def predict(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Returns ``greedy`` and ``beam: Int[Array, "batch target_time"]``."""
        length = batch["references"].shape[-1]
        return {
            name: self.decode(params, batch["source"], length, num_beams=beams)
            for name, beams in (("greedy", 1), ("beam", self.num_beams))
        }

    def decode(
        self, params: Any, source: Int[Array, "batch source_time"], length: int, *, num_beams: int
    ) -> Int[Array, "batch length"]:
        """Returns the likeliest target of each source, without its begin; padding after its end.

        Args:
            params: the model's parameters.
            source: tokens, filled up with padding.
            length: most tokens of a target.
            num_beams: width of the beam search; 1: always the likeliest next token.
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
        """Returns error rates for each way of decoding, and some examples.

        ``sequence_error`` (on words: the word error rate) is the share of outputs that equal none
        of their references; ``token_error`` (the phoneme error rate) the edits to the nearest
        reference, divided by its length in all.
        """
        metrics: dict[str, float] = {}
        for name, tokens in outputs.items():
            wrong, edits, length = edit_errors(
                [_sequence(row) for row in tokens],
                [[_sequence(r) for r in rows if r[0]] for rows in references["references"]],
            )
            suffix = "" if name == "beam" else f"_{name}"
            metrics[f"sequence_error{suffix}"] = wrong / len(tokens)
            metrics[f"token_error{suffix}"] = edits / length
        return {"metrics": metrics}

    def _sums(
        self, params: Any, batch: Batch, label_smoothing: float, **options: Any
    ) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        given, wanted = batch["target"][:, :-1], batch["target"][:, 1:]
        logits: Any = self.model.apply(
            {"params": params},
            batch["source"],
            given,
            source_mask=batch["source"] != PAD,
            target_mask=given != PAD,
            **options,
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


def _sequence(tokens: np.ndarray) -> list[int]:
    """The tokens before the end."""
    kept = tokens.tolist()
    return kept[: next((i for i, token in enumerate(kept) if token in (PAD, END)), len(kept))]
