"""Decoding one token after another: the likeliest token, or one drawn at random."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.errors import UserError

# (tokens, cache) -> (logits, cache)
Step = Callable[[Int[Array, "batch time"], Any], tuple[Float[Array, "batch time vocab"], Any]]


def filter_logits(
    logits: Float[Array, "*batch vocab"],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Float[Array, "*batch vocab"]:
    """Returns logits divided by the temperature, with -inf for tokens that must not be drawn.

    The filters are applied in the order of the arguments, as in ``transformers.generate``.

    Args:
        logits: the logits of the next token.
        temperature: a number above 0; values below 1 make the likely tokens likelier.
        top_k: keep this many of the likeliest tokens (Fan et al. 2018); 0 keeps all.
        top_p: keep the smallest set of likeliest tokens whose probabilities add up to this, in
            (0, 1] (Holtzman et al. 2020).

    Raises:
        UserError: a number is out of range.
    """
    for name, value, fits, rule in (
        ("temperature", temperature, temperature > 0, "above 0"),
        ("top_k", top_k, top_k >= 0, "at least 0"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
    ):
        if not fits:
            raise UserError(f"{name}={value} must be {rule}")
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        smallest_kept = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < smallest_kept, -jnp.inf, logits)
    if top_p < 1:
        order = jnp.argsort(logits, axis=-1)
        ascending = jnp.take_along_axis(logits, order, axis=-1)
        cumulative = jnp.cumsum(jax.nn.softmax(ascending), axis=-1)
        # The likeliest token is always kept.
        dropped = (cumulative <= 1 - top_p).at[..., -1].set(False)
        ranks = jnp.argsort(order, axis=-1)
        logits = jnp.where(jnp.take_along_axis(dropped, ranks, axis=-1), -jnp.inf, logits)
    return logits


def choose(
    logits: Float[Array, "*batch vocab"],
    key: PRNGKeyArray,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Int[Array, "*batch"]:
    """Draws a token from ``filter_logits``; a ``temperature`` of 0 takes the likeliest token."""
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    kept = filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    return jax.random.categorical(key, kept).astype(jnp.int32)


def sample(
    step: Step,
    cache: Any,
    prompt: Int[Array, "batch time"],
    key: PRNGKeyArray,
    *,
    max_new_tokens: int,
    end: int | None = None,
    padding: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Int[Array, "batch max_new_tokens"]:
    """Returns all drawn tokens at once; can be compiled. Stops when all rows have ended.

    Args:
        step: the model.
        cache: the cache before the prompt, with room for the prompt and the new tokens.
        prompt: the tokens that the new ones follow, at least one; all rows have the same length.
        key: token ``i`` is drawn with ``fold_in(key, i)``.
        max_new_tokens: the number of tokens to return, at least 1.
        end: the token that ends a row; ``padding`` follows it. None if there is no such token.
        padding: see ``end``.
        temperature: see ``filter_logits``; 0 always takes the likeliest token.
        top_k: see ``filter_logits``.
        top_p: see ``filter_logits``.

    Raises:
        UserError: the prompt is empty, or a number is out of range.
    """
    check_request(prompt, max_new_tokens)

    next_token = functools.partial(
        _next_token,
        key=key,
        end=end,
        padding=padding,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )

    def goes_on(state: Any) -> Any:
        index, _, ended, _ = state
        return (index < max_new_tokens) & ~ended.all()

    def body(state: Any) -> Any:
        index, tokens, ended, cache = state
        logits, cache = step(tokens[:, index - 1, None], cache)
        token, ended = next_token(logits, index, ended)
        return index + 1, tokens.at[:, index].set(token), ended, cache

    logits, cache = step(prompt, cache)
    token, ended = next_token(logits, 0, jnp.zeros(prompt.shape[0], bool))
    tokens = jnp.full((prompt.shape[0], max_new_tokens), padding, jnp.int32).at[:, 0].set(token)
    _, tokens, _, _ = jax.lax.while_loop(goes_on, body, (jnp.int32(1), tokens, ended, cache))
    return tokens


def greedy(
    step: Step,
    cache: Any,
    prompt: Int[Array, "batch time"],
    *,
    max_new_tokens: int,
    end: int | None = None,
    padding: int = 0,
) -> Int[Array, "batch max_new_tokens"]:
    """Returns the likeliest token at each place; see ``sample``."""
    return sample(
        step,
        cache,
        prompt,
        jax.random.key(0),
        max_new_tokens=max_new_tokens,
        end=end,
        padding=padding,
        temperature=0,
    )


def stream(
    step: Step,
    initial_cache: Callable[[], Any],
    prompt: Int[Array, "batch time"],
    key: PRNGKeyArray,
    *,
    max_new_tokens: int,
    context: int | None = None,
    end: int | None = None,
    padding: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Iterator[Int[Array, " batch"]]:
    """Yields the tokens of ``sample`` as they are drawn, one for each row at a time.

    Args:
        step: the model. If it is a ``jax.tree_util.Partial``, such as
            ``Partial(model.apply, variables)``, its arrays are arguments of the compiled program,
            and a second call with the same function compiles nothing.
        initial_cache: makes an empty cache with room for ``context`` tokens.
        prompt: see ``sample``.
        key: see ``sample``.
        max_new_tokens: the number of tokens to yield, at least 1.
        context: the largest number of tokens that the model can see. When this number is reached,
            decoding goes on with the newer half of the tokens. None: there is no limit.
        end: see ``sample``; nothing is yielded after all rows have ended.
        padding: see ``sample``.
        temperature: see ``filter_logits``; 0 always takes the likeliest token.
        top_k: see ``filter_logits``.
        top_p: see ``filter_logits``.

    Raises:
        UserError: the prompt is empty, or a number is out of range.
    """
    check_request(prompt, max_new_tokens)
    if not isinstance(step, jax.tree_util.Partial):
        step = jax.tree_util.Partial(step)
    advance = functools.partial(
        _advance,
        step,
        key=key,
        end=end,
        padding=padding,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )

    seen = prompt if context is None else prompt[:, -context:]
    unread, cache, ended = seen, initial_cache(), jnp.zeros(prompt.shape[0], bool)
    for index in range(max_new_tokens):
        if context is not None and seen.shape[1] > context:
            seen = seen[:, -max(context // 2, 1) :]
            unread, cache = seen, initial_cache()
        token, cache, ended = advance(unread, cache, index, ended)
        yield token
        if end is not None and ended.all():
            return
        unread = token[:, None]
        if context is not None:
            seen = jnp.concatenate([seen, unread], axis=1)


# The cache is donated, so that it is written in place and not copied for each token.
@functools.partial(
    jax.jit,
    static_argnames=("end", "padding", "temperature", "top_k", "top_p"),
    donate_argnames=("cache",),
)
def _advance(
    step: Step,
    tokens: Int[Array, "batch time"],
    cache: Any,
    index: int | Int[Array, ""],
    ended: Bool[Array, " batch"],
    *,
    key: PRNGKeyArray,
    **options: Any,
) -> tuple[Int[Array, " batch"], Any, Bool[Array, " batch"]]:
    """Reads tokens; returns the next token, the new cache, and which rows have ended."""
    logits, cache = step(tokens, cache)
    token, ended = _next_token(logits, index, ended, key=key, **options)
    return token, cache, ended


def _next_token(
    logits: Float[Array, "batch time vocab"],
    index: int | Int[Array, ""],
    ended: Bool[Array, " batch"],
    *,
    key: PRNGKeyArray,
    end: int | None,
    padding: int,
    **filters: Any,
) -> tuple[Int[Array, " batch"], Bool[Array, " batch"]]:
    """Draws token ``index`` of each row; returns it, and which rows it has ended."""
    token = choose(logits[:, -1], jax.random.fold_in(key, index), **filters)
    token = jnp.where(ended, padding, token)
    return token, ended if end is None else ended | (token == end)


def check_request(prompt: Int[Array, "batch time"], max_new_tokens: int) -> None:
    """Raises ``UserError`` if the prompt is empty or no token is asked for."""
    if not prompt.shape[1]:
        raise UserError("the prompt is empty: give at least one token")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1")
