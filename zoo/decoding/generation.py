"""Decoding prompts of any lengths with few compiled programs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, PRNGKeyArray

from zoo.decoding.beam import beam_search
from zoo.decoding.prompts import bucket, pad_left
from zoo.decoding.sampling import Step, check_request, ends_of, stream
from zoo.errors import UserError


def generate(
    step: Step,
    initial_cache: Callable[..., Any],
    prompts: Sequence[Sequence[int]],
    key: PRNGKeyArray,
    *,
    max_new_tokens: int,
    context: int | None,
    end: int | Sequence[int] | None = None,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    repetition_penalty: float = 1.0,
    **filters: Any,
) -> Iterator[Int32[np.ndarray, " batch"]]:
    """Yields the new tokens of several prompts, one for each prompt at a time.

    Prompts are filled up with padding on the left to a power of two, and a cache has room for a
    power of two, so that a few programs serve all lengths. The padding is never seen. Where it
    would leave no room for the new tokens, the longest prompt has none.

    Args:
        step: the model, as for ``stream``.
        initial_cache: makes the cache: ``initial_cache(batch_size, max_length)``, and for a model
            with a context also ``padding=``.
        prompts: the tokens of each text, at least one.
        key: see ``sample``.
        max_new_tokens: the largest number of tokens to add, at least 1.
        context: the largest number of tokens that the model can see. Without a beam search,
            decoding goes on with the newer half of the tokens when the longest text has reached it.
            None: there is no limit, as for a recurrent model, which reads no padding: prompts of
            different lengths are then decoded each by itself.
        end: the token that ends a text, or several. What follows the end of a text has no meaning.
        num_beams: the width of a beam search, whose tokens come when it has ended; 1: the tokens
            are drawn.
        length_penalty: see ``beam_search``.
        repetition_penalty: see ``sample``.
        **filters: ``temperature``, ``top_k``, ``top_p`` and ``min_p`` of ``sample``; a beam search
            takes none.

    Raises:
        UserError: a prompt is empty or longer than the context, there is no room for a beam
            search, the prompts of a recurrent model differ in length, or a number is out of range.
    """
    longest = max((len(prompt) for prompt in prompts), default=0)
    # A width of one takes the empty prompts too, which pad_left refuses.
    rows, padding = pad_left(prompts, max(longest, 1))
    check_request(jnp.asarray(rows), max_new_tokens)
    ends = ends_of(end)
    if context is None:
        if padding.any():
            raise UserError(
                "a recurrent model reads prompts of one length at a time: decode each by itself"
            )
        make = functools.partial(initial_cache, len(prompts), longest + max_new_tokens)
        hidden = None
    else:
        if longest > context:
            raise UserError(
                f"the prompt has {longest} tokens, more than the model's context of {context}: "
                "shorten it"
            )
        room = longest + max_new_tokens
        if num_beams > 1 and room > context:
            raise UserError(
                f"beam search over {room} tokens is more than the model's context of {context}: "
                "shorten the prompt or lower max_new_tokens"
            )
        width = bucket(longest) if bucket(longest) + max_new_tokens <= context else longest
        rows, padding = pad_left(prompts, width)
        room = min(bucket(width + max_new_tokens), context)
        make = functools.partial(initial_cache, len(prompts), room)
        hidden = jnp.asarray(padding)
    tokens = jnp.asarray(rows)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "end": ends,
        "padding": ends[0] if ends else 0,
        "repetition_penalty": repetition_penalty,
    }
    if num_beams == 1:
        for drawn in stream(
            step, make, tokens, key, context=context, prompt_padding=hidden, **options, **filters
        ):
            yield np.asarray(drawn)
        return
    cache = make() if hidden is None else make(padding=hidden)
    if not isinstance(step, jax.tree_util.Partial):
        step = jax.tree_util.Partial(step)
    found = _search(
        step, cache, tokens, hidden, num_beams=num_beams, length_penalty=length_penalty, **options
    )
    yield from np.asarray(found).T


@functools.partial(
    jax.jit,
    static_argnames=(
        "num_beams", "length_penalty", "max_new_tokens", "end", "padding", "repetition_penalty",
    ),
)  # fmt: skip
def _search(
    step: Step,
    cache: Any,
    prompt: Int[Array, "batch time"],
    prompt_padding: Int[Array, " batch"] | None,
    **options: Any,
) -> Int[Array, "batch max_new_tokens"]:
    return beam_search(step, cache, prompt, prompt_padding=prompt_padding, **options)[0]
