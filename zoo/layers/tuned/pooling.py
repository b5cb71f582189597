"""Max-pooling whose gradient is fast on a CPU where windows do not overlap."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Image = Float[Array, "batch height width channels"]
Pooled = Float[Array, "batch new_height new_width channels"]
Pair = tuple[int, int]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool_tiles(x: Image, window: Pair) -> Pooled:
    """Takes the largest value of each tile; rows and columns beyond the last whole tile are left.

    Among equal values the gradient goes to the first.
    """
    return nn.max_pool(x, window, strides=window)


def _forward(x: Image, window: Pair) -> tuple[Pooled, Image]:
    return nn.max_pool(x, window, strides=window), x


def _backward(window: Pair, x: Image, dy: Pooled) -> tuple[Image]:
    dx = jax.lax.platform_dependent(
        x,
        dy,
        cpu=functools.partial(_gradient_by_taps, window),
        default=functools.partial(_plain_gradient, window),
    )
    return (dx,)


max_pool_tiles.defvjp(_forward, _backward)


def _plain_gradient(window: Pair, x: Image, dy: Pooled) -> Image:
    _, backward = jax.vjp(lambda x: nn.max_pool(x, window, strides=window), x)
    return backward(dy)[0]


def _gradient_by_taps(window: Pair, x: Image, dy: Pooled) -> Image:
    """Compares each place of the tile with the tile's largest value: one pass over the image."""
    batch, height, width, channels = dy.shape
    whole = x[:, : height * window[0], : width * window[1]]
    tiles = whole.reshape(batch, height, window[0], width, window[1], channels)
    largest = tiles.max(axis=(2, 4), keepdims=True)
    # Not "equal": a tile with nan has no value that equals its largest.
    hits = ~(tiles < largest)
    taken = jnp.zeros((batch, height, 1, width, 1, channels), bool)
    rows = []
    for i in range(window[0]):
        row = []
        for j in range(window[1]):
            hit = hits[:, :, i : i + 1, :, j : j + 1]
            row.append(jnp.where(hit & ~taken, dy[:, :, None, :, None], 0))
            taken |= hit
        rows.append(jnp.concatenate(row, axis=4))
    gradient = jnp.concatenate(rows, axis=2).reshape(whole.shape)
    rest = [(0, size - used) for size, used in zip(x.shape, whole.shape, strict=True)]
    return jnp.pad(gradient, rest)
