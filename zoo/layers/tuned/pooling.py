"""Max-pooling that is fast on a CPU where windows do not overlap."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.layers.tuned.platform import by_platform

Image = Float[Array, "batch height width channels"]
Pooled = Float[Array, "batch new_height new_width channels"]
Pair = tuple[int, int]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool_tiles(x: Image, window: Pair) -> Pooled:
    """Takes the largest value of each tile; rows and columns beyond the last whole tile are left.

    Among equal values the gradient goes to the first, and in a tile with nan to the first nan.
    """
    return by_platform(
        lambda x: _largest(x, window)[0], functools.partial(_plain, window=window), x
    )


def _forward(x: Image, window: Pair) -> tuple[Pooled, Image]:
    return max_pool_tiles(x, window), x


def _backward(window: Pair, x: Image, dy: Pooled) -> tuple[Image]:
    on_cpu = functools.partial(_gradient_by_places, window)
    return (by_platform(on_cpu, functools.partial(_plain_gradient, window), x, dy),)


max_pool_tiles.defvjp(_forward, _backward)


def _plain(x: Image, window: Pair) -> Pooled:
    return nn.max_pool(x, window, strides=window)


def _plain_gradient(window: Pair, x: Image, dy: Pooled) -> Image:
    _, backward = jax.vjp(functools.partial(_plain, window=window), x)
    return backward(dy)[0]


def _largest(x: Image, window: Pair) -> tuple[Pooled, Int[Array, "batch height width channels"]]:
    """Returns the largest value of each tile and its place, counted row by row."""
    height, width = (size // side for size, side in zip(x.shape[1:3], window, strict=True))

    def at(number: int) -> Pooled:
        i, j = divmod(number, window[1])
        return x[:, i : height * window[0] : window[0], j : width * window[1] : window[1]]

    largest = at(0)
    place = jnp.zeros(largest.shape, jnp.int32)
    for number in range(1, window[0] * window[1]):
        value = at(number)
        # Nan counts as the largest of all.
        larger = ~(value <= largest) & ~jnp.isnan(largest)
        largest = jnp.where(larger, value, largest)
        place = jnp.where(larger, number, place)
    return largest, place


def _gradient_by_places(window: Pair, x: Image, dy: Pooled) -> Image:
    """Compares each place of a tile with that of the largest value: one pass over the image."""
    batch, height, width, channels = dy.shape
    _, place = _largest(x, window)
    own = jnp.arange(window[0])[:, None] * window[1] + jnp.arange(window[1])
    hit = place[:, :, None, :, None] == own[:, None, :, None]
    tiles = jnp.where(hit, dy[:, :, None, :, None], 0)
    gradient = tiles.reshape(batch, height * window[0], width * window[1], channels)
    rest = [(0, size - used) for size, used in zip(x.shape, gradient.shape, strict=True)]
    return jnp.pad(gradient, rest)
