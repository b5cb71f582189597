"""Beam search: the likeliest whole sequence among the likeliest beginnings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zoo.decoding.sampling import (
    Step,
    check_request,
    ends_of,
    is_end,
    penalize,
    seen_tokens,
)
from zoo.errors import UserError

_NEVER = -1e9


class _Beams(NamedTuple):
    """The state of a search with ``beams`` sequences for each row.

    Attributes:
        length: the number of tokens in the live sequences.
        live: the sequences that go on.
        live_scores: the log-probabilities of ``live``, the largest first.
        done: the sequences that ended.
        done_scores: the log-probabilities of ``done``, each divided by the length of its sequence
            to the power of the penalty.
        is_done: whether the place in ``done`` is taken.
        may_improve: whether a live sequence of the row may still become better than a done one.
        cache: the cache of the live sequences, [batch * beams, …].
        seen: the tokens of each live sequence and its prompt; None where none is penalised.
    """

    length: Int[Array, ""]
    live: Int[Array, "batch beams time"]
    live_scores: Float[Array, "batch beams"]
    done: Int[Array, "batch beams time"]
    done_scores: Float[Array, "batch beams"]
    is_done: Bool[Array, "batch beams"]
    may_improve: Bool[Array, " batch"]
    cache: Any
    seen: Bool[Array, "batch beams vocab"] | None


def beam_search(
    step: Step,
    cache: Any,
    prompt: Int[Array, "batch time"],
    *,
    num_beams: int,
    max_new_tokens: int,
    end: int | Sequence[int] | None,
    padding: int = 0,
    prompt_padding: Int[Array, " batch"] | None = None,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    repetition_penalty: float = 1.0,
) -> tuple[Int[Array, "batch max_new_tokens"], Float[Array, " batch"]]:
    """Returns the best sequence found for each row, and its score; can be compiled.

    Matches ``transformers.generate(num_beams=…, do_sample=False)``. The search of a row stops when
    the row has ``num_beams`` ended sequences and no live one may become better than the worst of
    them. A sequence that has not ended after ``max_new_tokens`` counts as ended there.

    Args:
        step: the model.
        cache: the cache before the prompt, with room for the prompt and the new tokens.
        prompt: the tokens that the new ones follow; see ``zoo.decoding.sample``.
        num_beams: the number of beginnings that are kept, at least 1.
        max_new_tokens: the largest number of new tokens.
        end: the token that ends a sequence, or several; ``padding`` follows it. None: there is
            no such token.
        padding: see ``end``.
        prompt_padding: see ``zoo.decoding.sample``.
        length_penalty: the log-probability is divided by the number of new tokens, including the
            end, to this power. A larger power prefers longer sequences.
        early_stopping: decides when a live sequence may become better than a done one. False:
            when its present log-probability, divided as if the sequence ended here, is better;
            this is a guess if ``length_penalty`` is above 0. ``"never"``: when its
            log-probability would be better if the sequence went on to ``max_new_tokens`` at no
            cost; the search then misses none. True: never.
        repetition_penalty: see ``zoo.decoding.penalize``; it changes the log-probabilities of the
            tokens that the prompt and the sequence have.

    Raises:
        UserError: the prompt is empty, or a number is out of range.
    """
    check_request(prompt, max_new_tokens)
    if num_beams < 1:
        raise UserError(f"num_beams={num_beams} must be at least 1")
    if early_stopping not in (False, True, "never"):
        raise UserError(f"early_stopping={early_stopping!r} must be False, True or 'never'")
    batch, ends = prompt.shape[0], ends_of(end)
    # If all of the best end, in whatever way, as many as there are beams remain to go on.
    candidates = max(2, 1 + len(ends)) * num_beams

    def of_beams(x: Array) -> Array:
        return jnp.repeat(x[:, None], num_beams, axis=1)

    logits, cache = step(prompt, cache)
    seen = seen_tokens(prompt, logits.shape[-1], prompt_padding, repetition_penalty)
    seen = None if seen is None else of_beams(seen)
    first = _log_probabilities(of_beams(logits[:, -1]), seen, repetition_penalty)
    cache = _of_rows(cache, lambda x: jnp.repeat(x, num_beams, axis=0))
    nothing = jnp.full((batch, num_beams, max_new_tokens), padding, jnp.int32)
    never = jnp.full((batch, num_beams), _NEVER, first.dtype)
    beams = _Beams(
        length=jnp.zeros((), jnp.int32),
        live=nothing,
        # The beams begin alike. Only the first counts; otherwise all would stay the same.
        live_scores=never.at[:, 0].set(0),
        done=nothing,
        done_scores=never,
        is_done=jnp.zeros((batch, num_beams), bool),
        may_improve=jnp.ones(batch, bool),
        cache=cache,
        seen=seen,
    )

    def extend(beams: _Beams, log_probabilities: Float[Array, "batch beams vocab"]) -> _Beams:
        vocab = log_probabilities.shape[-1]
        scores = (log_probabilities + beams.live_scores[..., None]).reshape(batch, -1)
        scores, indices = jax.lax.top_k(scores, min(candidates, scores.shape[1]))
        origin, token = indices // vocab, (indices % vocab).astype(jnp.int32)
        sequences = _take(beams.live, origin).at[:, :, beams.length].set(token)
        length = beams.length + 1
        stops = is_end(token, ends) | (length == max_new_tokens)

        live_scores, chosen = jax.lax.top_k(jnp.where(stops, _NEVER + scores, scores), num_beams)
        origin = jnp.take_along_axis(origin, chosen, axis=1)
        seen = beams.seen
        if seen is not None:
            added = jnp.take_along_axis(token, chosen, axis=1)
            seen = _take(seen, origin) | (jnp.arange(vocab) == added[..., None])

        counts = stops & (jnp.arange(token.shape[1]) < num_beams) & beams.may_improve[:, None]
        penalized = jnp.where(counts, scores / length**length_penalty, _NEVER)
        done_scores, best = jax.lax.top_k(
            jnp.concatenate([beams.done_scores, penalized], axis=1), num_beams
        )
        is_done = jnp.take_along_axis(
            jnp.concatenate([beams.is_done, counts], axis=1), best, axis=1
        )
        hopeful = early_stopping == "never" and length_penalty > 0
        best_live = live_scores[:, 0] / (max_new_tokens if hopeful else length) ** length_penalty
        worst_done = jnp.where(is_done, done_scores.min(axis=1, keepdims=True), _NEVER)
        may_improve = beams.may_improve & (best_live[:, None] > worst_done).any(axis=1)
        if early_stopping is True:
            may_improve &= ~is_done.all(axis=1)
        return _Beams(
            length=length,
            live=_take(sequences, chosen),
            live_scores=live_scores,
            done=_take(jnp.concatenate([beams.done, sequences], axis=1), best),
            done_scores=done_scores,
            is_done=is_done,
            may_improve=may_improve,
            cache=_of_rows(
                beams.cache,
                lambda x: _take(x.reshape(batch, num_beams, *x.shape[1:]), origin).reshape(x.shape),
            ),
            seen=seen,
        )

    def goes_on(beams: _Beams) -> Bool[Array, ""]:
        return (beams.length < max_new_tokens) & beams.may_improve.any()

    def body(beams: _Beams) -> _Beams:
        last = beams.live[:, :, beams.length - 1].reshape(-1, 1)
        logits, cache = step(last, beams.cache)
        logits = logits.reshape(batch, num_beams, -1)
        log_probabilities = _log_probabilities(logits, beams.seen, repetition_penalty)
        return extend(beams._replace(cache=cache), log_probabilities)

    beams = jax.lax.while_loop(goes_on, body, extend(beams, first))
    return beams.done[:, 0], beams.done_scores[:, 0]


def _log_probabilities(
    logits: Float[Array, "batch beams vocab"],
    seen: Bool[Array, "batch beams vocab"] | None,
    repetition_penalty: float,
) -> Float[Array, "batch beams vocab"]:
    logits = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    return logits if seen is None else penalize(logits, seen, repetition_penalty)


def _take(x: Array, indices: Int[Array, "batch chosen"]) -> Array:
    """Returns the beams with the given indices for each row of [batch, beams, …]."""
    return jnp.take_along_axis(x, indices.reshape(*indices.shape, *(1,) * (x.ndim - 2)), axis=1)


def _of_rows(cache: Any, function: Any) -> Any:
    """Applies a function to the arrays of a cache that have rows."""
    return jax.tree.map(lambda x: function(x) if x.ndim else x, cache)
