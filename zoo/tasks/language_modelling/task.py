"""Language modelling: the next token of a text."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from zoo import axes
from zoo.decoding import sample
from zoo.losses import cross_entropy
from zoo.metrics import correct
from zoo.models.rnn import gradient_by_distance
from zoo.tasks.task import Batch, Sums, TaskDefaults

# The name, in the model state, of the states with which training rows continue. Checkpoints of the
# first runs already use it.
ROW_STATES = "carry"
# The number of time steps over which the gradient of a recurrent model is followed.
DISTANCES = 128
# The report's examples: how many tokens are read (for a word model, including the end token), how
# many are drawn, the number of examples, and the temperature.
GIVEN, GIVEN_WORDS, CONTINUATION, EXAMPLES, TEMPERATURE = 32, 3, 96, 6, 0.8
# The exponential of this is close to the largest float.
_LARGEST = 700.0


@dataclasses.dataclass(frozen=True)
class LanguageModelling(TaskDefaults):
    """Joins a language model with the cross-entropy of the next token.

    A batch has ``tokens: Int[Array, "batch time"]`` and ``targets: Int[Array, "batch time"]``, the
    token after each. It also has ``token_mask: Float[Array, "batch time"]`` and
    ``mask: Float[Array, "batch"]``, which are 1 for what counts, and with ``lanes``
    ``start: Float[Array, "batch"]``.

    Attributes:
        model: a linen module that is a ``zoo.models.kinds.CausalLM``, such as ``zoo.models.RNN``
            or ``GPT``.
        lanes: whether to train with truncated back-propagation through time. Each row then begins
            with the state in which the same row of the previous batch ended, unless ``start`` is
            1. The state is part of the model state, and so of checkpoints. Evaluation always
            begins with zeros.
        symbols: the symbol of each token, for the report.
        end: the token that ends a text and begins one. None: there is no such token, and symbols
            are written without spaces.
        logits_at_once: the largest number of logits that a device holds at once; 0: there is no
            limit.
            A batch with more of them is computed in parts of its time steps, and its gradient
            computes each part's logits a second time. The model must have the methods ``vectors``
            and ``logits`` of ``zoo.models.GPT``; another one holds all logits.
    """

    model: nn.Module
    lanes: bool = False
    symbols: tuple[str, ...] = ()
    end: int | None = None
    logits_at_once: int = 2**26

    references: ClassVar[tuple[str, ...]] = ("tokens",)
    """The arrays of a batch that ``score`` needs."""
    own_state: ClassVar[tuple[str, ...]] = (ROW_STATES,)
    counts_tokens: ClassVar[bool] = True
    """The names in the model state that are not weights."""

    def init(self, key: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        """Returns the model's variables, and the state of each row of ``batch``."""
        variables = dict(self.model.init(key, batch["tokens"][:1]))
        if self.lanes:
            variables[ROW_STATES] = self.model.initial_cache(*batch["tokens"].shape)
        return variables

    def loss(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Any, Sums]]:
        """Returns the summed training loss, and the number of tokens, the new state and metrics."""
        cache = None
        if self.lanes:
            goes_on = 1 - batch["start"]
            cache = jax.tree.map(
                lambda rows: jnp.einsum("b...,b->b...", rows, goes_on.astype(rows.dtype)),
                model_state[ROW_STATES],
            )
        sums, cache = self._sums(params, batch, cache, train=True, rngs={"dropout": key})
        if self.lanes:
            model_state = {**model_state, ROW_STATES: jax.lax.stop_gradient(cache)}
        loss_sum, weight = sums.pop("loss")
        return loss_sum, (weight, model_state, sums)

    def evaluate(self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray) -> Sums:
        """Returns ``loss``, in nats per token, and ``accuracy``, each as (sum, weight)."""
        return self._sums(params, batch)[0]

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """Returns the means and the ``perplexity``, the exponential of the mean loss per token."""
        return means | {"perplexity": math.exp(min(means["loss"], _LARGEST))}

    def predict(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Returns ``continuation``, the tokens drawn after the beginning of each row.

        A recurrent model also returns ``gradient``; see ``gradient_by_distance``.
        """
        begin = batch["tokens"][:, : self._given(batch["tokens"].shape[1])]
        # No text is longer than the row, so it fits the context of every model.
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
        if model.recurrent:
            tokens, last = batch["tokens"][:, :DISTANCES], batch["targets"][:, :DISTANCES][:, -1]
            outputs["gradient"] = gradient_by_distance(model, params, tokens, last)
        return outputs

    def score(
        self, outputs: dict[str, np.ndarray], references: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        """Returns ``examples``: beginnings of the split and their continuations.

        A recurrent model also returns the mean ``gradient_by_distance``, the nearest step first.
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

    def _sums(
        self, params: Any, batch: Batch, cache: Any = None, **options: Any
    ) -> tuple[Sums, Any]:
        """Returns the sums of a batch, and the model's cache after it."""
        tokens, model = batch["tokens"], self.model
        rows, time = tokens.shape
        of_step = rows // axes.row_parts(rows) * getattr(model, "vocab_size", 0)
        parts = self.logits_at_once and hasattr(model, "vectors")
        if not parts or of_step * time <= self.logits_at_once:
            logits, cache = model.apply({"params": params}, tokens, cache, **options)
            return _sums(logits, batch), cache
        vectors, cache = model.apply({"params": params}, tokens, cache, method="vectors", **options)
        steps = max(1, self.logits_at_once // of_step)

        def of_rows(params: Any, rows: tuple[Array, Batch, Array]) -> Sums:
            # Kept for the gradient, the logits of all parts would be there at once after all.
            @jax.checkpoint
            def of_part(vectors: Array, counts: Batch) -> Sums:
                logits: Any = model.apply({"params": params}, vectors, method="logits")
                return _sums(logits, {**counts, "mask": mask})

            *divided, mask = rows
            parts_of = jax.tree.map(lambda x: _in_parts(x, steps), tuple(divided))
            _, sums = jax.lax.scan(lambda _, part: (None, of_part(*part)), None, parts_of)
            return jax.tree.map(lambda x: x.sum(axis=0), sums)

        counts = {"targets": batch["targets"], "token_mask": batch["token_mask"]}
        return axes.sum_over_rows(of_rows, params, (vectors, counts, batch["mask"])), cache

    def _given(self, length: int) -> int:
        """The number of tokens of a row that are read before others are drawn."""
        return min(GIVEN if self.end is None else GIVEN_WORDS, max(1, length // 2))

    def _spelled(self, tokens: np.ndarray) -> str:
        kept = [token for token in tokens.tolist() if token != self.end]
        symbols = [self.symbols[token] if self.symbols else str(token) for token in kept]
        return ("" if self.end is None else " ").join(symbols)


def _in_parts(
    x: Shaped[Array, "batch time ..."], steps: int
) -> Shaped[Array, "parts batch steps ..."]:
    """Divides the time into parts of so many steps; the last is filled up with zeros.

    A part has steps of every row, so that rows stay on their device.
    """
    batch, time, *rest = x.shape
    x = jnp.pad(x, [(0, 0), (0, -time % steps), *[(0, 0)] * len(rest)])
    return x.reshape(batch, -1, steps, *rest).swapaxes(0, 1)


def _sums(logits: Float[Array, "batch time vocab"], batch: Batch) -> Sums:
    # Losses are summed in at least float32, whatever the model's precision.
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    counts = (batch["token_mask"] * batch["mask"][:, None]).astype(logits.dtype)
    weight = counts.sum()
    return {
        "loss": ((cross_entropy(logits, batch["targets"]) * counts).sum(), weight),
        "accuracy": ((correct(logits, batch["targets"]) * counts).sum(), weight),
    }
