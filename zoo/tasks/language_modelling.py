"""The next token of a text."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from zoo.decoding import sample
from zoo.losses import cross_entropy
from zoo.metrics import correct
from zoo.models.rnn import RNN, gradient_by_distance

Batch = dict[str, Array]
# The name in the model state of what the rows of training carry on; no collection of the model's.
CARRY = "carry"
# Steps in time over which the gradient of a recurrent model is followed.
DISTANCES = 128
# For the report's examples: tokens that are read (of a model of words the end among them), and
# that are drawn, and how.
GIVEN, GIVEN_WORDS, CONTINUATION, EXAMPLES, TEMPERATURE = 32, 3, 96, 6, 0.8


@dataclasses.dataclass(frozen=True)
class LanguageModelling:
    """Joins a language model with the cross-entropy of the next token.

    A batch has ``tokens`` and ``targets: Int[Array, "batch time"]``, the token after each;
    ``token_mask: Float[Array, "batch time"]`` and ``mask: Float[Array, "batch"]``, 1 for what
    counts; and with ``carry_state`` also ``start: Float[Array, "batch"]``.

    Attributes:
        model: a linen module ``(tokens, cache, train) -> (logits, cache)`` with
            ``initial_cache(batch_size, max_length)``, such as ``zoo.models.RNN`` or ``GPT``.
        carry_state: truncated back-propagation through time: a row begins with the state in which
            the same row of the batch before ended, unless ``start`` is 1. The state is part of the
            model state, and so of checkpoints. Evaluation always begins with zeros.
        symbols: what each token stands for, for the report.
        end: the token that ends a text, and begins one; None: there is none, and symbols are
            written without spaces.
    """

    model: nn.Module
    carry_state: bool = False
    symbols: tuple[str, ...] = ()
    end: int | None = None

    references: ClassVar[tuple[str, ...]] = ("tokens",)
    """Arrays of a batch that ``score`` needs."""
    draws: ClassVar[bool] = False
    """Whether ``predict`` returns images to look at."""

    def init(self, key: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        """Returns the model's variables, and the state of each row of ``batch``."""
        variables = dict(self.model.init(key, batch["tokens"][:1]))
        if self.carry_state:
            variables[CARRY] = self.model.initial_cache(*batch["tokens"].shape)
        return variables

    def loss(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Any, dict[str, Any]]]:
        """Returns the summed training loss, and the number of tokens, the new state and metrics."""
        carry = None
        if self.carry_state:
            goes_on = 1 - batch["start"]
            carry = jax.tree.map(
                lambda rows: jnp.einsum("b...,b->b...", rows, goes_on.astype(rows.dtype)),
                model_state[CARRY],
            )
        logits, carry = self.model.apply(
            {"params": params}, batch["tokens"], carry, train=True, rngs={"dropout": key}
        )
        if self.carry_state:
            model_state = {**model_state, CARRY: jax.lax.stop_gradient(carry)}
        sums = _sums(logits, batch)
        loss_sum, weight = sums.pop("loss")
        return loss_sum, (weight, model_state, sums)

    def evaluate(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        """Returns ``loss``, in nats a token, and ``accuracy`` as (sum, weight)."""
        logits, _ = self.model.apply({"params": params}, batch["tokens"])
        return _sums(logits, batch)

    def predict(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Returns ``continuation``, drawn tokens after the beginning of each row.

        Of a recurrent model also ``gradient``: see ``gradient_by_distance``.
        """
        begin = batch["tokens"][:, : self._given(batch["tokens"].shape[1])]
        # Within the context of every model: as long as the row.
        length = min(batch["tokens"].shape[1] - begin.shape[1], CONTINUATION)
        model: Any = self.model
        outputs = {
            "continuation": sample(
                lambda tokens, cache: model.apply({"params": params}, tokens, cache),
                model.initial_cache(begin.shape[0], begin.shape[1] + length),
                begin,
                key,
                max_new_tokens=length,
                end=self.end,
                temperature=TEMPERATURE,
            )
        }
        if isinstance(self.model, RNN):
            tokens, last = batch["tokens"][:, :DISTANCES], batch["targets"][:, :DISTANCES][:, -1]
            outputs["gradient"] = gradient_by_distance(self.model, params, tokens, last)
        return outputs

    def score(
        self, outputs: dict[str, np.ndarray], references: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        """Returns ``examples``: beginnings of the split and how they were continued.

        Of a recurrent model also the mean ``gradient_by_distance``, nearest first.
        """
        continued, tokens = outputs["continuation"], references["tokens"]
        given = self._given(tokens.shape[1])
        chosen = np.linspace(0, len(tokens) - 1, min(EXAMPLES, len(tokens))).round().astype(int)
        scores: dict[str, Any] = {
            "examples": [
                {
                    "given": self._spelled(tokens[i, :given]),
                    "continued": self._spelled(continued[i]),
                }
                for i in chosen
            ]
        }
        if "gradient" in outputs:
            scores["gradient_by_distance"] = outputs["gradient"].mean(axis=0).tolist()
        return scores

    def _given(self, length: int) -> int:
        """How many tokens of a row are read before others are drawn."""
        return min(GIVEN if self.end is None else GIVEN_WORDS, max(1, length // 2))

    def _spelled(self, tokens: np.ndarray) -> str:
        kept = [token for token in tokens.tolist() if token != self.end]
        symbols = [self.symbols[token] if self.symbols else str(token) for token in kept]
        return ("" if self.end is None else " ").join(symbols)


def _sums(
    logits: Float[Array, "batch time vocab"], batch: Batch
) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
    # Losses are added up in float32 at least, whatever the model computes in.
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    counts = (batch["token_mask"] * batch["mask"][:, None]).astype(logits.dtype)
    weight = counts.sum()
    return {
        "loss": ((cross_entropy(logits, batch["targets"]) * counts).sum(), weight),
        "accuracy": ((correct(logits, batch["targets"]) * counts).sum(), weight),
    }
