"""What ends a program on purpose: errors that a person can mend, and signals."""

import difflib
import signal
from collections.abc import Iterable


class UserError(Exception):
    """An error in what the user gave: shown as one message, without a traceback.

    The message names the field, the value and the fix.
    """


class NotWritten(UserError):
    """The system refused to write a file: the disk is full, for example.

    The message says what could not be written, how much room is missing and what is safe.
    """


class Stopped(Exception):
    """Work ended early because a signal asked for it; what was done is saved."""

    def __init__(self, signum: int) -> None:
        """Takes the signal's number."""
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class DamageWarning(UserWarning):
    """Something that was saved is damaged, and something older was read in its place."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ``" Did you mean 'x'?"`` for the nearest known name, else the list of known names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(known)}."
