"""How one array of a reference becomes one of ours, and back; nothing is rounded."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Shaped

Array = Shaped[np.ndarray, "..."]


@dataclasses.dataclass(frozen=True)
class Transform:
    """A pair of inverse functions.

    Attributes:
        to_ours: from the reference's array.
        to_reference: from ours.
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
    """The first linear layer after an image is flattened.

    PyTorch flattens [channels, height, width], we [height, width, channels].

    Args:
        height: of the image that is flattened.
        width: of the image.
    """

    def to_ours(a: Array) -> Array:
        chw = a.reshape(a.shape[0], -1, height, width)
        return chw.transpose(2, 3, 1, 0).reshape(-1, a.shape[0])

    def to_reference(a: Array) -> Array:
        hwc = a.reshape(height, width, -1, a.shape[-1])
        return hwc.transpose(3, 2, 0, 1).reshape(a.shape[-1], -1)

    return Transform(to_ours, to_reference)
