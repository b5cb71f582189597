"""One token after the other: the likeliest, or drawn at random."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

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

    Applied in this order, as in ``transformers.generate``.

    Args:
        logits: of the next token.
        temperature: above 0; below 1 the likely tokens become likelier.
        top_k: keep this many of the likeliest tokens (Fan et al. 2018); 0: all.
        top_p: keep the fewest likeliest tokens whose probabilities add up to this, in (0, 1]
            (Holtzman et al. 2020).

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
    """Draws a token from ``filter_logits``; with ``temperature`` 0 takes the likeliest."""
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    kept = filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    return jax.random.categorical(key, kept).astype(jnp.int32)


def stream(
    step: Step,
    initial_cache: Callable[[], Any],
    prompt: Int[Array, "batch time"],
    key: PRNGKeyArray,
    *,
    max_new_tokens: int,
    context: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Iterator[Int[Array, " batch"]]:
    """Yields one new token of each row at a time, as they come.

    Args:
        step: the model.
        initial_cache: makes the cache of no tokens, with room for ``context``.
        prompt: what the new tokens follow, at least one token.
        key: token ``i`` is drawn with ``fold_in(key, i)``.
        max_new_tokens: how many to yield.
        context: most tokens that the model can see. When they are reached it goes on with the
            newer half of them. None: there is no limit.
        temperature: see ``filter_logits``; 0: always the likeliest token.
        top_k: see ``filter_logits``.
        top_p: see ``filter_logits``.

    Raises:
        UserError: the prompt is empty, or a number is out of range.
    """
    if not prompt.shape[1]:
        raise UserError("the prompt is empty: give at least one token")

    @jax.jit
    def advance(tokens: Any, cache: Any, key: Any, index: Any) -> Any:
        logits, cache = step(tokens, cache)
        key = jax.random.fold_in(key, index)
        chosen = choose(logits[:, -1], key, temperature=temperature, top_k=top_k, top_p=top_p)
        return chosen, cache

    seen = prompt if context is None else prompt[:, -context:]
    unread, cache = seen, initial_cache()
    for index in range(max_new_tokens):
        if context is not None and seen.shape[1] > context:
            seen = seen[:, -max(context // 2, 1) :]
            unread, cache = seen, initial_cache()
        token, cache = advance(unread, cache, key, index)
        yield token
        unread = token[:, None]
        if context is not None:
            seen = jnp.concatenate([seen, unread], axis=1)


def greedy(
    step: Step,
    cache: Any,
    prompt: Int[Array, "batch time"],
    *,
    max_new_tokens: int,
    end: int | None = None,
    padding: int = 0,
) -> Int[Array, "batch max_new_tokens"]:
    """Returns the likeliest token after the other; can be compiled.

    Args:
        step: the model.
        cache: before the prompt, with room for the prompt and the new tokens.
        prompt: what the new tokens follow.
        max_new_tokens: how many to return.
        end: the token that ends a row; ``padding`` follows it. None: there is none.
        padding: see ``end``.
    """

    def body(carry: Any, _: None) -> Any:
        tokens, cache, ended = carry
        logits, cache = step(tokens, cache)
        chosen = jnp.argmax(logits[:, -1], axis=-1).astype(jnp.int32)
        chosen = jnp.where(ended, padding, chosen)
        return (chosen[:, None], cache, ended | (chosen == end)), chosen

    logits, cache = step(prompt, cache)
    first = jnp.argmax(logits[:, -1], axis=-1).astype(jnp.int32)
    carry = (first[:, None], cache, first == (-1 if end is None else end))
    end = -1 if end is None else end
    _, rest = jax.lax.scan(body, carry, length=max_new_tokens - 1)
    return jnp.concatenate([first[:, None], rest.T], axis=1)
