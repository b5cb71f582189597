"""What a gradient keeps of blocks, and what it computes a second time (Chen et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from zoo.errors import UserError

NAMES = ("none", "block", "dots")


def rematerialized(
    call: Callable[..., Any], how: str, *, in_loop: bool = False
) -> Callable[..., Any]:
    """Returns ``call`` with less kept for its gradient; values and gradients stay the same.

    Args:
        call: calls a block: takes its bound module and arrays, and returns arrays.
        how: ``none`` keeps what JAX keeps; ``block`` keeps the arrays that ``call`` takes and
            computes all else a second time; ``dots`` also keeps the results of linear layers, so
            that only what is cheap, and attention, is computed a second time.
        in_loop: whether ``call`` is the body of a loop. XLA then cannot undo the saving by taking
            the second computation for the first, and need not be kept from it.

    Raises:
        UserError: ``how`` is none of these names.
    """
    if how not in NAMES:
        raise UserError(f"remat={how!r} must be one of {', '.join(map(repr, NAMES))}")
    if how == "none":
        return call
    # By the name that the layers give their products: the products themselves stand inside a choice
    # of the platform, of which a gradient keeps nothing.
    kept = jax.checkpoint_policies.save_only_these_names("linear")
    policy = kept if how == "dots" else None
    remat: Callable[..., Any] = nn.remat(call, policy=policy, prevent_cse=not in_loop)
    return remat
