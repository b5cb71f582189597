"""Random damage to bytes and files."""

import random


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Returns bytes with damage of one sort.

    A cut, a flipped bit, a block of zeros or of noise, a block that is lost or comes twice, or
    nothing is left. Sometimes there is no damage: a loader must also read what is whole.
    """
    made = bytearray(content)
    if not made:
        return b""
    begin = chance.randrange(len(made))
    if chance.random() < 0.5:  # what says how the rest is to be read lies at the beginning
        begin = chance.randrange(min(len(made), 128))
    end = min(begin + chance.randrange(1, 64), len(made))
    sort = chance.choice(("cut", "bit", "zeros", "noise", "lost", "twice", "empty", "whole"))
    if sort == "cut":
        del made[begin:]
    elif sort == "bit":
        made[begin] ^= 1 << chance.randrange(8)
    elif sort == "zeros":
        made[begin:end] = bytes(end - begin)
    elif sort == "noise":
        made[begin:end] = chance.randbytes(end - begin)
    elif sort == "lost":
        del made[begin:end]
    elif sort == "twice":
        made[end:end] = made[begin:end]
    elif sort == "empty":
        made.clear()
    return bytes(made)


# What stands in people's tables: marks, signs without width, quotes, ends of lines, numbers.
PIECES = (
    "\ufeff", "\u2028", "\u0085", "\x0b", "\x00", "\t", ",",
    ";", '"', '""', "'", "\r", "\r\n", "\n",
    "\n\n", "\\", "\\ud800", "e\u0301", "\u200d", "\u0928\u093f", "\u05d0", "\U0001f600", "nan",
    "inf", "-1", "1e999", "9" * 30, "true", "null", "{", "}", "[", "x" * 5000,
)  # fmt: skip


def edited(text: str, chance: random.Random) -> bytes:
    """Returns the bytes of a text with a few odd pieces put in, sometimes in another encoding."""
    made = text
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(made) + 1)
        lost = chance.choice((0, 0, 1, 5))
        made = made[:at] + chance.choice(PIECES) + made[at + lost :]
    encoding = chance.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
    content = made.encode(encoding, errors="replace")
    return damaged(content, chance) if chance.random() < 0.2 else content
