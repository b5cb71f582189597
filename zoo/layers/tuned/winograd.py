"""Convolution with 3x3 kernels in fewer multiplications: Winograd's algorithm F(2x2, 3x3).

A tile of 4x4 pixels gives 2x2 outputs with 16 instead of 36 multiplications:
``Y = A' [(G g G') * (B' d B)] A``, where the product ``*`` over all tiles and channels is 16
matrix products. Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks"
(2015), section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

Image = Float[Array, "batch height width channels"]
Output = Float[Array, "batch new_height new_width features"]
Kernel = Float[Array, "3 3 channels features"]
Pair = tuple[int, int]
# A matrix by rows whose elements are arrays: one place of a tile, over all tiles.
Grid = list[list[Array]]


def convolve(x: Image, kernel: Kernel, padding: Pair) -> Output:
    """Returns the convolution with strides of 1; ``padding`` is at most 2 on each side."""
    return _from_tiles(x, _transformed(kernel), padding)


def input_gradient(dy: Output, kernel: Kernel, padding: Pair) -> Image:
    """Returns the gradient of the input: ``dy`` convolved with the kernel turned by 180 degrees.

    Turning a kernel exchanges the first and the last row of its transform, so that the transform
    is the same as the convolution's and only the products' other axis is summed over.
    """
    turned = (3, 1, 2, 0)
    kernel_grid = _transformed(kernel)
    kernel_grid = [[kernel_grid[i][j].T for j in turned] for i in turned]
    return _from_tiles(dy, kernel_grid, (2 - padding[0], 2 - padding[1]))


def _from_tiles(x: Image, kernel_grid: Grid, padding: Pair) -> Output:
    """Convolves with a transformed kernel."""
    batch, height, width, channels = x.shape
    features = kernel_grid[0][0].shape[-1]
    new_height, new_width = height + 2 * padding[0] - 2, width + 2 * padding[1] - 2
    # The last tile of an odd side computes one row or column too many.
    rows, columns = -(-new_height // 2), -(-new_width // 2)
    bottom, right = 2 * rows + 2 - height - padding[0], 2 * columns + 2 - width - padding[1]
    x = jnp.pad(x, ((0, 0), (padding[0], bottom), (padding[1], right), (0, 0)))
    # Tiles overlap by two pixels, so that each is made of quarters of itself and its neighbours.
    quarters = x.reshape(batch, rows + 1, 2, columns + 1, 2, channels)
    tiles = [
        [
            quarters[:, i // 2 : i // 2 + rows, i % 2, j // 2 : j // 2 + columns, j % 2]
            for j in range(4)
        ]
        for i in range(4)
    ]
    # Sixteen products: as one, with an axis for the sixteen, they would first have to be gathered.
    products = [
        [
            (pixels.reshape(-1, channels) @ weights).reshape(batch, rows, columns, features)
            for pixels, weights in zip(*row, strict=True)
        ]
        for row in zip(_both_axes(_b_transposed, tiles), kernel_grid, strict=True)
    ]
    outputs = _both_axes(_a_transposed, products)
    y = jnp.stack([jnp.stack(row, axis=3) for row in outputs], axis=2)
    return y.reshape(batch, 2 * rows, 2 * columns, features)[:, :new_height, :new_width]


def _transformed(kernel: Kernel) -> Grid:
    return _both_axes(_g, [[kernel[i, j] for j in range(3)] for i in range(3)])


def _both_axes(transform: Callable[[Sequence[Array]], list[Array]], grid: Grid) -> Grid:
    """Transforms each row, then each column."""
    by_rows = [transform(row) for row in grid]
    columns = [transform(column) for column in zip(*by_rows, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


def _b_transposed(d: Sequence[Array]) -> list[Array]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _g(g: Sequence[Array]) -> list[Array]:
    outer, inner = (g[0] + g[2]) / 2, g[1] / 2
    return [g[0], outer + inner, outer - inner, g[2]]


def _a_transposed(m: Sequence[Array]) -> list[Array]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
