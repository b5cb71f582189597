"""Prompts of different lengths as one array, and lengths that few compiled programs serve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from zoo.errors import UserError

# Below this many tokens another length saves nothing.
_LEAST = 16


def bucket(length: int) -> int:
    """Returns the smallest power of two that is at least ``length``, and at least 16."""
    return max(_LEAST, 1 << (length - 1).bit_length())


def piece_lengths(length: int) -> list[int]:
    """Returns powers of two that add up to ``length``, the largest first."""
    return [1 << bit for bit in reversed(range(length.bit_length())) if length >> bit & 1]


def pad_left(
    prompts: Sequence[Sequence[int]], width: int, *, token: int = 0
) -> tuple[Int32[np.ndarray, "batch width"], Int32[np.ndarray, " batch"]]:
    """Returns prompts that end at the same place, and how many tokens of each are padding.

    Args:
        prompts: the tokens of each text.
        width: the number of tokens of a row, at least that of the longest prompt.
        token: the padding.

    Raises:
        UserError: there is no prompt, or one is empty or too long.
    """
    if not prompts:
        raise UserError("there is no prompt: give at least one")
    if not all(len(prompt) for prompt in prompts):
        raise UserError("the prompt is empty: give at least one token")
    padding = np.array([width - len(prompt) for prompt in prompts], np.int32)
    if padding.min() < 0:
        raise UserError(f"a prompt of {width - padding.min()} tokens is longer than width={width}")
    rows = np.full((len(prompts), width), token, np.int32)
    for row, prompt in zip(rows, prompts, strict=True):
        row[width - len(prompt) :] = prompt
    return rows, padding
