"""Decoding one token after another: the likeliest token, or one drawn at random."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.decoding.prompts import piece_lengths
from zoo.errors import UserError

# (tokens, cache) -> (logits, cache)
Step = Callable[[Int[Array, "batch time"], Any], tuple[Float[Array, "batch time vocab"], Any]]
# For each row, the tokens that it has so far; None where nobody asks.
Seen = Bool[Array, "batch vocab"] | None


def check_filters(
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> None:
    """Raises ``UserError`` if a number that ``sample`` takes is out of range."""
    for name, value, fits, rule in (
        ("temperature", temperature, temperature >= 0, "at least 0; 0 takes the likeliest"),
        ("top_k", top_k, top_k >= 0, "at least 0; 0 keeps all"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1; 1 keeps all"),
        ("min_p", min_p, 0 <= min_p <= 1, "at least 0 and at most 1; 0 keeps all"),
        (
            "repetition_penalty",
            repetition_penalty,
            repetition_penalty > 0,
            "above 0; 1 changes nothing",
        ),
    ):
        if not fits:
            raise UserError(f"{name}={value} must be {rule}")


def penalize(
    logits: Float[Array, "*batch vocab"], seen: Bool[Array, "*batch vocab"], penalty: float
) -> Float[Array, "*batch vocab"]:
    """Returns logits in which the tokens that a text already has are less likely.

    A positive logit is divided by the penalty, a negative one multiplied by it (Keskar et al. 2019,
    section 4.1; negative ones as in ``transformers.generate``).

    Args:
        logits: the logits of the next token, or their log-probabilities.
        seen: True for the tokens of the text so far.
        penalty: a number above 0; values below 1 make repetition likelier.
    """
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def filter_logits(
    logits: Float[Array, "*batch vocab"],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Float[Array, "*batch vocab"]:
    """Returns logits divided by the temperature, with -inf for tokens that must not be drawn.

    The filters are applied in the order of the arguments, as in ``transformers.generate``.

    Args:
        logits: the logits of the next token.
        temperature: a number above 0; values below 1 make the likely tokens likelier.
        top_k: keep this many of the likeliest tokens (Fan et al. 2018); 0 keeps all.
        top_p: keep the smallest set of likeliest tokens whose probabilities add up to this, in
            (0, 1] (Holtzman et al. 2020).
        min_p: keep the tokens that are at least this share as likely as the likeliest, in [0, 1]
            (Nguyen et al. 2025); 0 keeps all.

    Raises:
        UserError: a number is out of range.
    """
    if temperature == 0:
        raise UserError("temperature=0 must be above 0 here: choose() takes the likeliest token")
    check_filters(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
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
    if min_p > 0:
        probabilities = jax.nn.softmax(logits)
        likeliest = probabilities.max(axis=-1, keepdims=True)
        logits = jnp.where(probabilities < min_p * likeliest, -jnp.inf, logits)
    return logits


def choose(
    logits: Float[Array, "*batch vocab"],
    key: PRNGKeyArray,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Int[Array, "*batch"]:
    """Draws a token from ``filter_logits``; a ``temperature`` of 0 takes the likeliest token."""
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    kept = filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    return jax.random.categorical(key, kept).astype(jnp.int32)


def sample(
    step: Step,
    cache: Any,
    prompt: Int[Array, "batch time"],
    key: PRNGKeyArray,
    *,
    max_new_tokens: int,
    end: int | Sequence[int] | None = None,
    padding: int = 0,
    prompt_padding: Int[Array, " batch"] | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> Int[Array, "batch max_new_tokens"]:
    """Returns all drawn tokens at once; can be compiled. Stops when all rows have ended.

    Args:
        step: the model.
        cache: the cache before the prompt, with room for the prompt and the new tokens.
        prompt: the tokens that the new ones follow, at least one. Rows of different lengths begin
            with padding, so that they end at the same place; the cache must know it, as that of
            ``initial_cache(..., padding=prompt_padding)`` does.
        key: token ``i`` is drawn with ``fold_in(key, i)``.
        max_new_tokens: the number of tokens to return, at least 1.
        end: the token that ends a row, or several; ``padding`` follows it. None if there is no such
            token.
        padding: see ``end``.
        prompt_padding: for each row, how many of the first tokens of ``prompt`` are padding; None:
            none are. It is not penalised as repeated.
        temperature: see ``filter_logits``; 0 always takes the likeliest token.
        top_k: see ``filter_logits``.
        top_p: see ``filter_logits``.
        min_p: see ``filter_logits``.
        repetition_penalty: see ``penalize``, for the tokens of the prompt and the new ones; 1
            changes nothing. It comes before the temperature.

    Raises:
        UserError: the prompt is empty, or a number is out of range.
    """
    check_request(prompt, max_new_tokens)
    next_token = functools.partial(
        _next_token,
        key=key,
        ends=ends_of(end),
        padding=padding,
        repetition_penalty=repetition_penalty,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
    )

    def goes_on(state: Any) -> Any:
        index, _, ended, _, _ = state
        return (index < max_new_tokens) & ~ended.all()

    def body(state: Any) -> Any:
        index, tokens, ended, seen, cache = state
        logits, cache = step(tokens[:, index - 1, None], cache)
        token, ended, seen = next_token(logits, index, ended, seen)
        return index + 1, tokens.at[:, index].set(token), ended, seen, cache

    logits, cache = step(prompt, cache)
    seen = seen_tokens(prompt, logits.shape[-1], prompt_padding, repetition_penalty)
    token, ended, seen = next_token(logits, 0, jnp.zeros(prompt.shape[0], bool), seen)
    tokens = jnp.full((prompt.shape[0], max_new_tokens), padding, jnp.int32).at[:, 0].set(token)
    state = (jnp.int32(1), tokens, ended, seen, cache)
    return jax.lax.while_loop(goes_on, body, state)[1]


def greedy(
    step: Step,
    cache: Any,
    prompt: Int[Array, "batch time"],
    *,
    max_new_tokens: int,
    end: int | Sequence[int] | None = None,
    padding: int = 0,
    prompt_padding: Int[Array, " batch"] | None = None,
    repetition_penalty: float = 1.0,
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
        prompt_padding=prompt_padding,
        repetition_penalty=repetition_penalty,
        temperature=0,
    )


def stream(
    step: Step,
    initial_cache: Callable[..., Any],
    prompt: Int[Array, "batch time"],
    key: PRNGKeyArray,
    *,
    max_new_tokens: int,
    context: int | None = None,
    end: int | Sequence[int] | None = None,
    padding: int = 0,
    prompt_padding: Int[Array, " batch"] | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> Iterator[Int[Array, " batch"]]:
    """Yields the tokens of ``sample`` as they are drawn, one for each row at a time.

    The prompt is read in pieces whose lengths are powers of two, so that prompts of all lengths
    share a few compiled programs. A prompt whose own length is a power of two is one piece.

    Args:
        step: the model. If it is a ``jax.tree_util.Partial``, such as
            ``Partial(model.apply, variables)``, its arrays are arguments of the compiled program,
            and a second call with the same function compiles nothing.
        initial_cache: makes an empty cache with room for ``context`` tokens, or for the prompt and
            the new ones if they are fewer. It gets ``padding=`` if there is ``prompt_padding``.
        prompt: see ``sample``.
        key: see ``sample``.
        max_new_tokens: the number of tokens to yield, at least 1.
        context: the largest number of tokens that the model can see. When this number is reached,
            decoding goes on with the newer half of the tokens. None: there is no limit.
        end: see ``sample``; nothing is yielded after all rows have ended.
        padding: see ``sample``.
        prompt_padding: see ``sample``.
        temperature: see ``filter_logits``; 0 always takes the likeliest token.
        top_k: see ``filter_logits``.
        top_p: see ``filter_logits``.
        min_p: see ``filter_logits``.
        repetition_penalty: see ``sample``. Tokens that the model no longer sees count as well.

    Raises:
        UserError: the prompt is empty, or a number is out of range.
    """
    check_request(prompt, max_new_tokens)
    check_filters(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    if not isinstance(step, jax.tree_util.Partial):
        step = jax.tree_util.Partial(step)
    ends = ends_of(end)
    advance = functools.partial(
        _advance,
        step,
        key=key,
        ends=ends,
        padding=padding,
        repetition_penalty=repetition_penalty,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
    )

    def empty(hidden: np.ndarray | None) -> Any:
        return initial_cache() if hidden is None else initial_cache(padding=jnp.asarray(hidden))

    tokens = np.asarray(prompt, np.int32)
    hidden = None if prompt_padding is None else np.asarray(prompt_padding, np.int32)
    if context is not None and tokens.shape[1] > context:
        tokens, hidden = _newest(tokens, hidden, context)
    # The tokens that the model sees; the number of those that the cache lacks.
    text, unread, cache = [tokens], tokens.shape[1], empty(hidden)
    ended, seen = jnp.zeros(len(tokens), bool), None
    if repetition_penalty != 1:
        vocab = jax.eval_shape(step, jnp.asarray(tokens[:, :1]), cache)[0].shape[-1]
        seen = seen_tokens(jnp.asarray(tokens), vocab, hidden, repetition_penalty)
    length = tokens.shape[1]
    for index in range(max_new_tokens):
        if context is not None and length > context:
            tokens = np.concatenate([np.asarray(part) for part in text], axis=1)
            tokens, hidden = _newest(tokens, hidden, max(context // 2, 1))
            text, unread, cache = [tokens], tokens.shape[1], empty(hidden)
            length = unread
        *earlier, last = _pieces(text[-1], unread)
        for piece in earlier:
            # The program that draws a token reads as well: its token has no use here.
            _, cache, _, _ = advance(piece, cache, index, ended, seen)
        token, cache, ended, seen = advance(last, cache, index, ended, seen)
        yield token[:, 0]
        if ends and ended.all():
            return
        text = [token] if context is None else [*text, token]
        unread, length = 1, length + 1


def _newest(
    tokens: np.ndarray, hidden: np.ndarray | None, count: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns so many of the last tokens, and how many of those are padding."""
    if hidden is not None:
        hidden = np.maximum(hidden - (tokens.shape[1] - count), 0)
    return tokens[:, -count:], hidden


def _pieces(tokens: Any, unread: int) -> list[Any]:
    if unread == 1:
        return [tokens]
    ends = np.cumsum(piece_lengths(unread))[:-1]
    return [jnp.asarray(piece) for piece in np.split(np.asarray(tokens), ends, axis=1)]


# The cache is donated, so that it is written in place and not copied for each token.
@functools.partial(
    jax.jit,
    static_argnames=(
        "ends", "padding", "repetition_penalty", "temperature", "top_k", "top_p", "min_p",
    ),
    donate_argnames=("cache",),
)  # fmt: skip
def _advance(
    step: Step,
    tokens: Int[Array, "batch time"],
    cache: Any,
    index: int | Int[Array, ""],
    ended: Bool[Array, " batch"],
    seen: Seen,
    *,
    key: PRNGKeyArray,
    **options: Any,
) -> tuple[Int[Array, "batch 1"], Any, Bool[Array, " batch"], Seen]:
    """Reads tokens; returns the next token, the new cache, which rows have ended, their tokens."""
    logits, cache = step(tokens, cache)
    token, ended, seen = _next_token(logits, index, ended, seen, key=key, **options)
    return token[:, None], cache, ended, seen


def _next_token(
    logits: Float[Array, "batch time vocab"],
    index: int | Int[Array, ""],
    ended: Bool[Array, " batch"],
    seen: Seen,
    *,
    key: PRNGKeyArray,
    ends: tuple[int, ...],
    padding: int,
    repetition_penalty: float,
    **filters: Any,
) -> tuple[Int[Array, " batch"], Bool[Array, " batch"], Seen]:
    """Draws token ``index`` of each row; returns it, which rows have ended, and their tokens."""
    last = logits[:, -1]
    if seen is not None:
        last = penalize(last, seen, repetition_penalty)
    token = choose(last, jax.random.fold_in(key, index), **filters)
    token = jnp.where(ended, padding, token)
    if seen is not None:
        seen = seen.at[jnp.arange(len(token)), token].set(True)
    return token, ended | is_end(token, ends), seen


def seen_tokens(
    prompt: Int[Array, "batch time"],
    vocab: int,
    padding: Int[Array, " batch"] | np.ndarray | None,
    repetition_penalty: float,
) -> Seen:
    """Returns which tokens each prompt has, without its padding; None if nothing is penalised."""
    check_filters(repetition_penalty=repetition_penalty)
    if repetition_penalty == 1:
        return None
    if padding is not None:
        hidden = jnp.arange(prompt.shape[1]) < jnp.asarray(padding)[:, None]
        prompt = jnp.where(hidden, vocab, prompt)  # is dropped
    rows = jnp.arange(prompt.shape[0])[:, None]
    seen = jnp.zeros((prompt.shape[0], vocab), bool)
    return seen.at[rows, prompt].set(True, mode="drop")


def ends_of(end: int | Sequence[int] | None) -> tuple[int, ...]:
    """Returns the tokens that end a text as a tuple."""
    if end is None:
        return ()
    return tuple(int(token) for token in end) if isinstance(end, Sequence) else (int(end),)


def is_end(token: Int[Array, "*batch"], ends: tuple[int, ...]) -> Bool[Array, "*batch"]:
    """Returns which tokens are one of ``ends``."""
    return (token[..., None] == jnp.asarray(ends, jnp.int32)).any(axis=-1)


def check_request(prompt: Int[Array, "batch time"], max_new_tokens: int) -> None:
    """Raises ``UserError`` if the prompt is empty or no token is asked for."""
    if not prompt.shape[1]:
        raise UserError("the prompt is empty: give at least one token")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1")
