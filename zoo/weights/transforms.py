"""Converts arrays between a reference's layout and the zoo's, without rounding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Shaped

Array = Shaped[np.ndarray, "..."]


@dataclasses.dataclass(frozen=True)
class Transform:
    """A pair of inverse functions.

    Attributes:
        to_ours: converts a reference's array to the zoo's.
        to_reference: converts one of the zoo's arrays to the reference's.
    """

    to_ours: Callable[[Array], Array]
    to_reference: Callable[[Array], Array]


AS_IT_IS = Transform(lambda a: a, lambda a: a)
"""The same layout."""

CONV_OIHW = Transform(lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))
"""PyTorch's kernels [out, in, height, width] to [height, width, in, out]."""

LINEAR_TRANSPOSED = Transform(np.transpose, np.transpose)
"""PyTorch's linear weights [out, in] to [in, out]."""


def flatten_chw(height: int, width: int) -> Transform:
    """Returns the transform of the first linear layer after an image is flattened.

    PyTorch flattens [channels, height, width]; the zoo flattens [height, width, channels].

    Args:
        height: height of the image that is flattened.
        width: width of the image.
    """

    def to_ours(a: Array) -> Array:
        chw = a.reshape(a.shape[0], -1, height, width)
        return chw.transpose(2, 3, 1, 0).reshape(-1, a.shape[0])

    def to_reference(a: Array) -> Array:
        hwc = a.reshape(height, width, -1, a.shape[-1])
        return hwc.transpose(3, 2, 0, 1).reshape(a.shape[-1], -1)

    return Transform(to_ours, to_reference)
