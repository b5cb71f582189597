"""Pooling over windows of images."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
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
    ceil_mode: bool = False,
) -> Float[Array, "batch new_height new_width channels"]:
    """Takes the largest value of each window, as ``torch.nn.MaxPool2d``, channels last.

    Among equal values the gradient goes to the first.

    Args:
        x: images.
        window: height and width of the window.
        strides: steps of the window; None: the window's own size.
        padding: values that never win, added on each side; fewer than the window has.
        ceil_mode: whether a last window may reach beyond the lower and right edges; otherwise rows
            and columns that fill no window are dropped. No window begins beyond the image.

    Raises:
        UserError: the input is not 4-D or is smaller than the window, the padding is not smaller
            than the window, or an argument is not a number or pair as described.
    """
    window = pair("max_pool", "window", window)
    padding = pair("max_pool", "padding", padding, least=0)
    strides = window if strides is None else pair("max_pool", "strides", strides)
    sides = tuple((p, p) for p in padding)
    if ceil_mode:
        sides = tuple(map(_sides_of_ceil_mode, x.shape[1:3], window, strides, padding))
    if x.ndim != 4 or any(
        size + sum(side) < w for size, side, w in zip(x.shape[1:3], sides, window, strict=True)
    ):
        raise UserError(
            f"max_pool: the input {x.shape} must be [batch, height, width, channels] and, with "
            f"padding {padding}, not smaller than the window {window}"
        )
    if padding[0] >= window[0] or padding[1] >= window[1]:
        raise UserError(f"max_pool: padding {padding} must be smaller than the window {window}")
    if strides == window and sides == ((0, 0), (0, 0)):
        return max_pool_tiles(x, window)
    return nn.max_pool(x, window, strides=strides, padding=sides)


def _sides_of_ceil_mode(size: int, window: int, stride: int, padding: int) -> Pair:
    """The padding on both sides with which the last window is whole, as PyTorch counts windows."""
    lacking = (window - size - 2 * padding) % stride
    # A window that would see nothing but padding does not count.
    return (padding, padding + lacking if padding + lacking < window else padding)


def mean_pool(
    x: Float[Array, "batch height width channels"], window: int | Pair
) -> Float[Array, "batch new_height new_width channels"]:
    """Takes the mean of each window, side by side, as ``torch.nn.AvgPool2d``.

    Rows and columns at the lower and right edges that fill no window are dropped.

    Args:
        x: images.
        window: height and width of the window, or one number for both.

    Raises:
        UserError: the input is not 4-D or is smaller than the window, or the window is not a
            number or pair as described.
    """
    window = pair("mean_pool", "window", window)
    if x.ndim != 4 or any(size < w for size, w in zip(x.shape[1:3], window, strict=True)):
        raise UserError(
            f"mean_pool: the input {x.shape} must be [batch, height, width, channels] and not "
            f"smaller than the window {window}"
        )
    (height, width), (h, w) = x.shape[1:3], window
    rows, columns = height // h, width // w
    tiles = x[:, : rows * h, : columns * w].reshape(-1, rows, h, columns, w, x.shape[-1])
    return tiles.mean(axis=(2, 4))


def adaptive_mean_pool(
    x: Float[Array, "batch height width channels"], size: int | Pair
) -> Float[Array, "batch new_height new_width channels"]:
    """Takes means of windows that divide an image evenly, as ``torch.nn.AdaptiveAvgPool2d``.

    Window ``i`` of ``n`` reaches from ``floor(i * height / n)`` to ``ceil((i + 1) * height / n)``.

    Args:
        x: images.
        size: height and width of the result, or one number for both.

    Raises:
        UserError: the input is not 4-D, or the size is not a number or pair as described.
    """
    if x.ndim != 4:
        raise UserError(
            f"adaptive_mean_pool: the input {x.shape} must be [batch, height, width, channels]"
        )
    size = pair("adaptive_mean_pool", "size", size)
    rows, columns = (_windows(old, new) for old, new in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("bhwc,rh,qw->brqc", x, rows.astype(x.dtype), columns.astype(x.dtype))


def _windows(old: int, new: int) -> Float[Array, "new old"]:
    begin = np.arange(new) * old // new
    end = -(-(np.arange(new) + 1) * old // new)
    place = np.arange(old)
    inside = (place >= begin[:, None]) & (place < end[:, None])
    return jnp.asarray(inside / inside.sum(axis=1, keepdims=True))
