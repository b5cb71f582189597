"""Pooling over windows of images."""

import flax.linen as nn
from jaxtyping import Array, Float

from zoo.errors import UserError
from zoo.layers.convolution import Pair, pair
from zoo.layers.tuned.pooling import max_pool_tiles


def max_pool(
    x: Float[Array, "batch height width channels"],
    window: int | Pair,
    *,
    strides: int | Pair | None = None,
    padding: int | Pair = 0,
) -> Float[Array, "batch new_height new_width channels"]:
    """Takes the largest value of each window, as ``torch.nn.MaxPool2d``, channels last.

    Among equal values the gradient goes to the first.

    Args:
        x: images.
        window: height and width of the window.
        strides: steps of the window; None: the window's own size.
        padding: values that never win, added on each side; fewer than the window has.

    Raises:
        UserError: the input has no four axes, or is smaller than the window, or the padding is not.
    """
    window, padding = pair(window), pair(padding)
    if x.ndim != 4 or any(
        size + 2 * p < w for size, p, w in zip(x.shape[1:3], padding, window, strict=True)
    ):
        raise UserError(
            f"max_pool: the input {x.shape} must be [batch, height, width, channels] and, with "
            f"padding {padding}, not smaller than the window {window}"
        )
    if padding[0] >= window[0] or padding[1] >= window[1]:
        raise UserError(f"max_pool: padding {padding} must be smaller than the window {window}")
    strides = window if strides is None else pair(strides)
    if strides == window and padding == (0, 0):
        return max_pool_tiles(x, window)
    return nn.max_pool(x, window, strides=strides, padding=[(p, p) for p in padding])
