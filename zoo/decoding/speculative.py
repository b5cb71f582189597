"""Speculative decoding: a small model proposes tokens, a large one checks several at once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.decoding.sampling import Step, check_request, ends_of, filter_logits, is_end
from zoo.errors import UserError


class _State(NamedTuple):
    """A text and what both models know of it.

    Attributes:
        round: the number of rounds so far.
        tokens: the new tokens, and room for those that a round may add beyond the last.
        length: the number of new tokens.
        ended: whether one of them ends the text.
        cache: the target's cache of all tokens but the last one.
        draft_cache: the same of the draft model.
    """

    round: Int[Array, ""]
    tokens: Int[Array, " room"]
    length: Int[Array, ""]
    ended: Bool[Array, ""]
    cache: Any
    draft_cache: Any


def speculate(
    step: Step,
    cache: Any,
    draft_step: Step,
    draft_cache: Any,
    prompt: Int[Array, "1 time"],
    key: PRNGKeyArray,
    *,
    max_new_tokens: int,
    ahead: int = 4,
    end: int | Sequence[int] | None = None,
    padding: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> tuple[Int[Array, "1 max_new_tokens"], Int[Array, ""]]:
    """Returns tokens with the distribution of ``sample``, and how often the target was called.

    Leviathan et al. 2023, algorithm 1. In each round the draft model draws ``ahead`` tokens, and
    one call of the target gives its probabilities for all of them. A token that the draft draws
    with probability q and the target with probability p is accepted with probability min(1, p/q).
    The first one that is not is drawn again from max(p - q, 0), divided by its sum; if all are
    accepted the target adds one more. At temperature 0 the tokens are those of ``greedy`` of the
    target. Can be compiled.

    Args:
        step: the target, whose distribution the tokens have.
        cache: the target's cache before the prompt, with room for the prompt, the new tokens and
            ``ahead + 1`` more. Its scalars must be the number of tokens that it holds, and what it
            keeps of later tokens must not matter: then it can forget tokens. A
            ``zoo.layers.attention.KeyValueCache`` is such a cache, a recurrent state is not.
        draft_step: the draft model, which has the same tokens.
        draft_cache: its cache, with the same room.
        prompt: the tokens that the new ones follow, at least one. Only one row, since each row
            would accept another number of tokens; ``jax.vmap`` takes several.
        key: the source of randomness.
        max_new_tokens: the number of tokens to return, at least 1.
        ahead: the number of tokens that the draft model proposes in a round, at least 1.
        end: the token that ends the text, or several; ``padding`` follows it.
        padding: see ``end``.
        temperature: see ``filter_logits``; 0 always takes the likeliest token. It and the filters
            change the distributions of both models.
        top_k: see ``filter_logits``.
        top_p: see ``filter_logits``.
        min_p: see ``filter_logits``.

    Raises:
        UserError: there are several rows, the prompt is empty, or a number is out of range.
    """
    check_request(prompt, max_new_tokens)
    if prompt.shape[0] != 1:
        raise UserError(f"speculate takes one row, not {prompt.shape[0]}: use jax.vmap for several")
    if ahead < 1:
        raise UserError(f"ahead={ahead} must be at least 1")
    ends = ends_of(end)
    probabilities = functools.partial(
        _probabilities, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )

    def draft(
        carry: tuple[Int[Array, ""], Any], key: PRNGKeyArray
    ) -> tuple[Any, tuple[Int[Array, ""], Float[Array, " vocab"]]]:
        token, cache = carry
        logits, cache = draft_step(token[None, None], cache)
        proposed = probabilities(logits[0, -1])
        token = _draw(proposed, key)
        return (token, cache), (token, proposed)

    def body(state: _State) -> _State:
        round_key = jax.random.fold_in(key, state.round)
        draft_key, accept_key, last_key = jax.random.split(round_key, 3)
        last = state.tokens[state.length - 1]
        # One token more than proposed: its draw is not used, but the draft model has then read all
        # that it proposed.
        (_, draft_cache), (drawn, proposed) = jax.lax.scan(
            draft, (last, state.draft_cache), jax.random.split(draft_key, ahead + 1)
        )
        drawn, proposed = drawn[:ahead], proposed[:ahead]
        logits, cache = step(jnp.concatenate([last[None], drawn])[None], state.cache)
        wanted = probabilities(logits[0])

        places = jnp.arange(ahead)
        p, q = wanted[places, drawn], proposed[places, drawn]
        fits = jax.random.uniform(accept_key, (ahead,), p.dtype) * q < p
        accepted = jnp.cumprod(fits.astype(jnp.int32)).sum(dtype=jnp.int32)
        # After the last proposal there is nothing to subtract.
        proposed = jnp.concatenate([proposed, jnp.zeros_like(proposed[:1])])
        rest = jnp.maximum(wanted[accepted] - proposed[accepted], 0)
        added = jnp.concatenate([drawn, drawn[-1:]]).at[accepted].set(_draw(rest, last_key))

        # Later rounds write over what follows the accepted tokens.
        tokens = jax.lax.dynamic_update_slice(state.tokens, added, (state.length,))
        counts = jnp.arange(ahead + 1) <= accepted
        ended = state.ended | (is_end(added, ends) & counts).any()
        forgotten = ahead - accepted
        return _State(
            round=state.round + 1,
            tokens=tokens,
            length=state.length + accepted + 1,
            ended=ended,
            cache=_without(cache, forgotten),
            draft_cache=_without(draft_cache, forgotten),
        )

    def goes_on(state: _State) -> Bool[Array, ""]:
        return (state.length < max_new_tokens) & ~state.ended

    logits, cache = step(prompt, cache)
    _, draft_cache = draft_step(prompt, draft_cache)
    # Rounds count from 1: 0 is this draw.
    first = _draw(probabilities(logits[0, -1]), jax.random.fold_in(key, 0))
    state = _State(
        round=jnp.int32(1),
        tokens=jnp.full(max_new_tokens + ahead + 1, padding, jnp.int32).at[0].set(first),
        length=jnp.int32(1),
        ended=is_end(first, ends),
        cache=cache,
        draft_cache=draft_cache,
    )
    state = jax.lax.while_loop(goes_on, body, state)
    tokens = state.tokens[:max_new_tokens]
    ending = is_end(tokens, ends).astype(jnp.int32)
    over = jnp.cumsum(ending) - ending > 0
    return jnp.where(over, padding, tokens)[None], state.round


def _probabilities(
    logits: Float[Array, "*batch vocab"], *, temperature: float, **filters: Any
) -> Float[Array, "*batch vocab"]:
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if temperature == 0:
        return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=logits.dtype)
    return jax.nn.softmax(filter_logits(logits, temperature=temperature, **filters))


def _draw(shares: Float[Array, " vocab"], key: PRNGKeyArray) -> Int[Array, ""]:
    """Draws a token; the shares need not add up to 1."""
    return jax.random.categorical(key, jnp.log(shares)).astype(jnp.int32)


def _without(cache: Any, count: Int[Array, ""]) -> Any:
    """Returns a cache that has forgotten its last tokens."""
    return jax.tree.map(lambda x: x if x.ndim else x - count.astype(x.dtype), cache)
