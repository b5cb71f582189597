"""Convolution whose gradients are fast on a CPU."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Image = Float[Array, "batch height width channels"]
Output = Float[Array, "batch new_height new_width features"]
Kernel = Float[Array, "kernel_height kernel_width channels features"]
Pair = tuple[int, int]

_AXES = ("NHWC", "HWIO", "NHWC")
# Bytes of shifted slices that one product reads: more fall out of a core's cache.
_CHUNK = 2 << 20


@dataclasses.dataclass(frozen=True)
class Window:
    """How a kernel moves over an image; each pair is along height and width.

    Attributes:
        strides: steps of the window.
        padding: zeros on each side of the image.
        dilation: distance between the kernel's taps.
        groups: number of groups of channels that do not see each other.
    """

    strides: Pair
    padding: Pair
    dilation: Pair
    groups: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: Image, kernel: Kernel, window: Window) -> Output:
    """Convolves images with a kernel; see ``zoo.layers.Conv``."""
    return _plain(window, x, kernel)


def _forward(x: Image, kernel: Kernel, window: Window) -> tuple[Output, tuple[Image, Kernel]]:
    return _plain(window, x, kernel), (x, kernel)


def _backward(window: Window, residuals: tuple[Image, Kernel], dy: Output) -> tuple[Image, Kernel]:
    x, kernel = residuals
    dx = _input_gradient(window, x, kernel, dy)
    # Groups are many small products, and of few channels XLA's own form is the faster one.
    if window.groups > 1 or x.shape[-1] < 8:
        return dx, _plain_kernel_gradient(window, x, kernel, dy)
    dkernel = jax.lax.platform_dependent(
        x,
        kernel,
        dy,
        cpu=functools.partial(_kernel_gradient_by_rows, window),
        default=functools.partial(_plain_kernel_gradient, window),
    )
    return dx, dkernel


convolve.defvjp(_forward, _backward)


def _plain(window: Window, x: Image, kernel: Kernel) -> Output:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=window.strides,
        padding=[(p, p) for p in window.padding],
        rhs_dilation=window.dilation,
        dimension_numbers=_AXES,
        feature_group_count=window.groups,
    )


def _input_gradient(window: Window, x: Image, kernel: Kernel, dy: Output) -> Image:
    # Linear in x: XLA does not compute the convolution itself.
    (dx,) = jax.linear_transpose(lambda x: _plain(window, x, kernel), x)(dy)
    return dx


def _plain_kernel_gradient(window: Window, x: Image, kernel: Kernel, dy: Output) -> Kernel:
    (dkernel,) = jax.linear_transpose(lambda k: _plain(window, x, k), kernel)(dy)
    return dkernel


def _kernel_gradient_by_rows(window: Window, x: Image, kernel: Kernel, dy: Output) -> Kernel:
    """One product for a few rows of the output at a time: shifted slices with their gradients.

    XLA's convolution for this gradient is several times slower. Rows of all images together, not
    images one after the other: so the partitioner can still divide the batch.
    """
    kernel_height, kernel_width, channels, features = kernel.shape
    batch, height, width, _ = dy.shape
    row_bytes = batch * width * kernel_height * kernel_width * channels * x.dtype.itemsize
    divisors = (rows for rows in range(1, height + 1) if height % rows == 0)
    rows = max((rows for rows in divisors if rows * row_bytes <= _CHUNK), default=1)
    padded = jnp.pad(x, [(0, 0), *((p, p) for p in window.padding), (0, 0)])
    row_span = (rows - 1) * window.strides[0] + 1
    column_span = (width - 1) * window.strides[1] + 1

    def product(first_row: Array) -> Kernel:
        slices = []
        for i in range(kernel_height):
            top = first_row * window.strides[0] + i * window.dilation[0]
            band = jax.lax.dynamic_slice_in_dim(padded, top, row_span, axis=1)
            for j in range(kernel_width):
                left = j * window.dilation[1]
                slices.append(
                    band[:, :: window.strides[0], left : left + column_span : window.strides[1]]
                )
        gradient = jax.lax.dynamic_slice_in_dim(dy, first_row, rows, axis=1)
        return jnp.einsum("bhwk,bhwf->kf", jnp.concatenate(slices, axis=-1), gradient)

    def add(total: Kernel, first_row: Array) -> tuple[Kernel, None]:
        return total + product(first_row), None

    zero = jnp.zeros((kernel_height * kernel_width * channels, features), kernel.dtype)
    total, _ = jax.lax.scan(add, zero, jnp.arange(0, height, rows))
    return total.reshape(kernel.shape)
