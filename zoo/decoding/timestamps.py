"""Which tokens Whisper may write next, and the segments of what it wrote (Radford et al. 2022).

Section 2.3 describes the tokens, and section 4.5 the decoding. The rules are those of the original
code, as ``transformers`` has them in its logits processors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.decoding.sampling import Step


@dataclasses.dataclass(frozen=True)
class Rules:
    """What may be written.

    Attributes:
        end: the token that ends a text. The tokens below it are text.
        never: tokens that are never written, such as symbols that nobody says.
        not_first: tokens that are not written first, such as the end.
        first_timestamp: the token of the time 0; each token after it is 0.02 seconds later. None:
            timestamps are not asked for, and no rule is about them.
        most_first: how many steps of 0.02 seconds the first timestamp may be after 0; None: any
            number.
    """

    end: int
    never: tuple[int, ...] = ()
    not_first: tuple[int, ...] = ()
    first_timestamp: int | None = None
    most_first: int | None = None


class Written(NamedTuple):
    """What a text has so far, after its prompt.

    Attributes:
        number: how many tokens there are; -1: the prompt has not been read.
        last: the last token of each row; -1: there is none.
        before: the one before it; -1: there is none.
        timestamp: the last timestamp of each row; -1: there is none.
    """

    number: Int[Array, ""]
    last: Int[Array, " batch"]
    before: Int[Array, " batch"]
    timestamp: Int[Array, " batch"]

    def extended(self, token: Int[Array, " batch"], rules: Rules) -> Written:
        """Returns what it is with the next token, the first of which ends the prompt."""
        counts = self.number >= 0
        last = jnp.where(counts, token, self.last)
        timestamp = self.timestamp
        if rules.first_timestamp is not None:
            timestamp = jnp.where(last >= rules.first_timestamp, last, timestamp)
        return Written(self.number + 1, last, jnp.where(counts, self.last, self.before), timestamp)


def nothing_written(batch_size: int) -> Written:
    """Returns what a text has before its prompt."""
    none = jnp.full(batch_size, -1, jnp.int32)
    return Written(jnp.full((), -1, jnp.int32), none, none, none)


def ruled(step: Step, rules: Rules) -> Step:
    """Returns a step that obeys rules, for ``greedy``, ``sample`` and ``beam_search``.

    Its cache is a pair: the cache of ``step``, and ``Written``. Its first call reads the prompt,
    and each later one a token. It returns the logits after the last token only.

    Args:
        step: the model.
        rules: what may be written.
    """

    def obeying(tokens: Int[Array, "batch time"], cache: Any) -> tuple[Array, Any]:
        inner, written = cache
        logits, inner = step(tokens, inner)
        written = written.extended(tokens[:, -1], rules)
        return allowed(logits[:, -1], written, rules)[:, None], (inner, written)

    return obeying


def allowed(
    logits: Float[Array, "batch vocab"], written: Written, rules: Rules
) -> Float[Array, "batch vocab"]:
    """Returns the logits of the next token, with -inf for those that the rules forbid.

    Timestamps come in pairs, one at the end of a segment and one at the beginning of the next; the
    first token is one, and none is earlier than the one before it. A segment takes some time. Where
    all timestamps together are likelier than any other token, the next token is a timestamp.

    Args:
        logits: the logits of the next token.
        written: the tokens so far.
        rules: what may be written.
    """
    tokens = jnp.arange(logits.shape[-1])
    is_first = written.number == 0
    logits = logits.at[:, jnp.array(rules.never, int)].set(-jnp.inf)
    not_first = jnp.zeros(len(tokens), bool).at[jnp.array(rules.not_first, int)].set(True)
    logits = jnp.where(is_first & not_first, -jnp.inf, logits)
    if rules.first_timestamp is None:
        return logits
    begin = rules.first_timestamp
    is_timestamp = tokens >= begin
    # The token before the first timestamp says that there are none.
    forbidden = jnp.broadcast_to(tokens == begin - 1, logits.shape)
    after_one = (written.last >= begin)[:, None]
    after_two = after_one & ((written.before >= begin) | (written.number < 2))[:, None]
    forbidden |= after_two & is_timestamp
    closed = after_one & ~after_two
    forbidden |= closed & (tokens < rules.end)
    # After the end of a segment the next may begin at once; no segment ends where it begins.
    earliest = jnp.where(closed, written.timestamp[:, None], written.timestamp[:, None] + 1)
    forbidden |= is_timestamp & (tokens < earliest)
    if rules.most_first is None:
        late = jnp.zeros(len(tokens), bool)
    else:
        late = tokens > begin + rules.most_first
    forbidden |= is_first & (~is_timestamp | late)
    logits = jnp.where(forbidden, -jnp.inf, logits)
    exact = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    of_all = jax.nn.logsumexp(exact[:, begin:], axis=-1)
    is_time = of_all > exact[:, :begin].max(axis=-1)
    return jnp.where(is_time[:, None] & ~is_timestamp, -jnp.inf, logits)


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of a text, from one timestamp to another.

    Attributes:
        begin: where it begins, in steps of 0.02 seconds.
        end: where it ends.
        tokens: its tokens, timestamps left out.
    """

    begin: int
    end: int
    tokens: tuple[int, ...]


def segments(tokens: Sequence[int], first_timestamp: int, length: int) -> tuple[list[Segment], int]:
    """Returns the segments of what was written for a window, and where the next window begins.

    Text after the last pair of timestamps is left out: the window ended in the middle of it, and
    the next one begins where it does.

    Args:
        tokens: the tokens after the prompt, without the end.
        first_timestamp: see ``Rules``.
        length: length of the window's sound, in steps of 0.02 seconds.
    """
    is_time = [token >= first_timestamp for token in tokens]
    places = [token - first_timestamp for token in tokens]

    def segment(first: int, last: int) -> Segment:
        text = tuple(token for token in tokens[first : last + 1] if token < first_timestamp)
        return Segment(places[first], places[last], text)

    pairs = [i for i in range(len(tokens) - 1) if is_time[i] and is_time[i + 1]]
    if not pairs:
        times = [place for place, time in zip(places, is_time, strict=True) if time]
        end = times[-1] if times and times[-1] else length
        text = tuple(token for token in tokens if token < first_timestamp)
        return [Segment(0, end, text)], length
    begins = [0, *(i + 1 for i in pairs)]
    found = [segment(first, last) for first, last in zip(begins, pairs, strict=False)]
    if is_time[-2:] == [False, True]:
        # One timestamp at the end: nothing is said after it.
        return [*found, segment(begins[-1], len(tokens) - 1)], length
    return found, places[pairs[-1]]
