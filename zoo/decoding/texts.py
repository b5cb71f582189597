"""From tokens to text, as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zoo.errors import UserError

# Stands for bytes that are no character, or not yet.
_NO_CHARACTER = "\ufffd"


class TextStream:
    """Turns the tokens of one text into pieces of text that cannot change any more.

    Held back are the bytes of an unfinished UTF-8 character, and what may be the beginning of a
    stop string.

    Attributes:
        ended: whether a token or a string has ended the text. What comes later is ignored.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        after: Sequence[int] = (),
        ends: Sequence[int] = (),
        stops: Sequence[str] = (),
    ) -> None:
        """Begins a text.

        Args:
            decode: makes a text of tokens.
            after: the tokens that the text follows, which may decide about a space at its
                beginning. They are no part of it.
            ends: the tokens that end the text and are no part of it.
            stops: the strings that end the text and are no part of it.

        Raises:
            UserError: a stop string is empty.
        """
        if "" in stops:
            raise UserError("an empty stop string would end every text: leave it out")
        self.ended = False
        self._decode, self._ends, self._stops = decode, frozenset(ends), tuple(stops)
        # Tokens are decoded together with those of the piece before: their text may depend on it.
        self._before, self._held = list(after), ""
        self._new: list[int] = []

    def add(self, token: int) -> str:
        """Returns the text that is certain now that one more token is known; it may be empty."""
        if self.ended:
            return ""
        if token in self._ends:
            return self.finish()
        self._new.append(token)
        text = self._text_of_new()
        if not text or text.endswith(_NO_CHARACTER):
            return ""
        self._before, self._new = self._new, []
        return self._until_stop(text)

    def finish(self) -> str:
        """Returns the rest of the text, after which it has ended."""
        if self.ended:
            return ""
        text = self._until_stop(self._text_of_new()) + ("" if self.ended else self._held)
        self.ended = True
        return text

    def _text_of_new(self) -> str:
        before = self._decode(self._before) if self._before else ""
        return self._decode([*self._before, *self._new])[len(before) :]

    def _until_stop(self, text: str) -> str:
        self._held += text
        found = [(place, stop) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.ended = True
            # The one that is complete first, however the tokens cut the text.
            place, _ = min(found, key=lambda each: (each[0] + len(each[1]), each[0]))
            return self._held[:place]
        unsure = max(
            (n for stop in self._stops for n in range(len(stop)) if self._held.endswith(stop[:n])),
            default=0,
        )
        sure, self._held = (
            self._held[: len(self._held) - unsure],
            self._held[len(self._held) - unsure :],
        )
        return sure
