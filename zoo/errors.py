"""Errors that a person can mend."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error in what the user gave: shown as one message, without a traceback.

    The message names the field, the value and the fix.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ``" Did you mean 'x'?"`` for the nearest known name, else the list of known names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(known)}."
