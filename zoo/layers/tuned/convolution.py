"""Convolution that is faster than XLA's own, or whose gradients are."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.layers.tuned import convolution_native, linear, winograd
from zoo.layers.tuned.devices import vary_alike
from zoo.layers.tuned.platform import are_known, by_platform, has_native, with_native

Image = Float[Array, "batch height width channels"]
Output = Float[Array, "batch new_height new_width features"]
Kernel = Float[Array, "kernel_height kernel_width channels features"]
Pair = tuple[int, int]

_AXES = ("NHWC", "HWIO", "NHWC")
# With fewer, XLA would take a concatenation of channels into its loops all the same.
_LEAST_CHANNELS = 16
# Up to so many pixels, a product by the native function for few rows is faster than XLA's
# convolution; beyond, the one for many rows is.
_FEW_PIXELS = 256
# The same for larger windows, whose pixels are gathered first.
_FEW_WINDOWS = 64


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


def convolve(x: Image, kernel: Kernel, window: Window) -> Output:
    """Convolves images with a kernel; see ``zoo.layers.Conv``."""
    sizes = _sizes_for_native(x, kernel, window)
    if sizes is not None and has_native(sizes.function, x.dtype):
        return convolution_native.convolve(x, kernel, sizes)
    if _is_pointwise(kernel, window):
        return _pointwise(window, x, kernel)
    # With few channels the image's transform takes longer than it saves; with few pixels the
    # kernel's does.
    if (
        _has_fewer_multiplications(x, kernel, window)
        and math.prod(x.shape[:3]) >= max(64, math.prod(kernel.shape[2:]) >> 8)
        and min(kernel.shape[2:]) >= 64
    ):
        return _winograd(window, *vary_alike(x, kernel))
    if kernel.shape[2] >= _LEAST_CHANNELS and window.groups == 1:
        return _direct(window, x, kernel)
    return _plain(window, x, kernel)


def _sizes_for_native(x: Image, kernel: Kernel, window: Window) -> convolution_native.Sizes | None:
    """Returns what a native function needs to know, or None: there is none, or XLA is faster."""
    if window.groups != 1 or window.dilation != (1, 1):
        return None
    if not are_known(*x.shape):
        return None
    height, width, channels, features = kernel.shape
    pixels, many = math.prod(x.shape[:3]), channels * features
    sizes = convolution_native.Sizes(
        (x.shape[1], x.shape[2]), (height, width), window.strides, window.padding, function=""
    )
    outputs = x.shape[0] * math.prod(sizes.output)
    if _is_pointwise(kernel, window):
        fits = outputs > _FEW_PIXELS and min(channels, features) >= 16 and many <= 1 << 20
        by_unit = linear.is_for_matrix_unit(outputs, channels, features, x.dtype)
        name = convolution_native.PIXELS if fits or by_unit else ""
    # With few pixels, or many channels, the kernel's transform takes longer than it saves.
    elif (
        _has_fewer_multiplications(x, kernel, window)
        and pixels >= max(256, many >> 7)
        and min(channels, features) >= 16
        and many <= 1 << 17
    ):
        name = convolution_native.TILES
    elif convolution_native.can_be_by_unit(channels) and linear.is_for_matrix_unit(
        outputs, height * width * channels, features, x.dtype
    ):
        name = convolution_native.BY_UNIT
    # A larger kernel would leave the cache for each row of outputs.
    elif (
        (channels < 16 or max(window.strides) > 1)
        and features >= 16
        and pixels >= 256
        and height * width * many <= 1 << 17
    ):
        name = convolution_native.WINDOWS
    else:
        name = ""
    return dataclasses.replace(sizes, function=name) if name else None


def _is_pointwise(kernel: Kernel, window: Window) -> bool:
    return kernel.shape[:2] == (1, 1) and window.padding == (0, 0) and window.groups == 1


def _has_fewer_multiplications(x: Image, kernel: Kernel, window: Window) -> bool:
    """Whether Winograd's algorithm applies.

    In half precision its sums would cancel. For a symbolic shape it is not known.
    """
    return (
        kernel.shape[:2] == (3, 3)
        and window.strides == window.dilation == (1, 1)
        and window.groups == 1
        and max(window.padding) <= 2
        and are_known(*x.shape)
        and min(x.shape[1:3]) >= 4
        and x.dtype in (jnp.float32, jnp.float64)
    )


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


def _forward(window: Window, x: Image, kernel: Kernel) -> Output:
    """Convolves; few pixels on a CPU as a product, which is faster than XLA's convolution there."""
    plain = functools.partial(_plain, window)
    shape = jax.eval_shape(plain, x, kernel).shape[:-1]
    pixels = math.prod(shape)
    if window.groups != 1 or not linear.has_few_rows(pixels, kernel, _FEW_PIXELS):
        return plain(x, kernel)
    # Larger windows are gathered first.
    if kernel.shape[:2] != (1, 1) and pixels > _FEW_WINDOWS:
        return plain(x, kernel)

    def native(x: Image, kernel: Kernel) -> Output:
        rows, matrix = _windows(window, x, kernel), kernel.reshape(-1, kernel.shape[-1])
        return linear.multiply_few_rows(rows, matrix).reshape(*shape, -1)

    return with_native(native, plain, x, kernel)


def _windows(window: Window, x: Image, kernel: Kernel) -> Float[Array, "pixels taps_and_channels"]:
    """Returns what each pixel of the output is a product of."""
    x = jnp.pad(x, ((0, 0), *((p, p) for p in window.padding), (0, 0)))
    rows, columns = (
        [slice(i * d, size - (taps - 1 - i) * d, step) for i in range(taps)]
        for size, taps, d, step in zip(
            x.shape[1:3], kernel.shape[:2], window.dilation, window.strides, strict=True
        )
    )
    pixels = [x[:, i, j] for i in rows for j in columns]
    return jnp.concatenate(pixels, axis=-1).reshape(-1, len(pixels) * x.shape[-1])


# A product over all pixels. For many pixels XLA's convolution computes the output faster, but its
# gradients take up to five times as long as those of a product.
_pointwise = jax.custom_jvp(_forward, nondiff_argnums=(0,))


@_pointwise.defjvp
def _pointwise_jvp(
    window: Window, primals: tuple[Image, Kernel], tangents: tuple[Image, Kernel]
) -> tuple[Output, Output]:
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _pointwise(window, x, kernel)

    def product(x: Image, kernel: Kernel) -> Output:
        return (_windows(window, x, kernel) @ kernel[0, 0]).reshape(y.shape)

    return y, product(dx, kernel) + product(x, dkernel)


def _output(window: Window, x: Image, kernel: Kernel) -> Output:
    tuned = functools.partial(winograd.convolve, padding=window.padding)
    return by_platform(tuned, functools.partial(_plain, window), x, kernel)


def _input_gradient(window: Window, shape: tuple[int, ...], dy: Output, kernel: Kernel) -> Image:
    def plain(dy: Output, kernel: Kernel) -> Image:
        x = jax.typeof(dy).update(shape=shape)
        return jax.linear_transpose(lambda x: _plain(window, x, kernel), x)(dy)[0]

    tuned = functools.partial(winograd.input_gradient, padding=window.padding)
    return by_platform(tuned, plain, dy, kernel)


_winograd = jax.custom_jvp(_output, nondiff_argnums=(0,))


@_winograd.defjvp
def _winograd_jvp(
    window: Window, primals: tuple[Image, Kernel], tangents: tuple[Image, Kernel]
) -> tuple[Output, Output]:
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _winograd(window, x, kernel)

    # The input's gradient is given, and its transpose is the tangent, not the other way round:
    # transposing the algorithm's own steps would add up overlapping tiles.
    by_input = jax.linear_transpose(lambda dy: _input_gradient(window, x.shape, dy, kernel), y)
    return y, by_input(dx)[0] + _output(window, x, dkernel)


_direct = jax.custom_jvp(_forward, nondiff_argnums=(0,))


@_direct.defjvp
def _direct_jvp(
    window: Window, primals: tuple[Image, Kernel], tangents: tuple[Image, Kernel]
) -> tuple[Output, Output]:
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _rolled(window, x, kernel)
    return y, _plain(window, dx, kernel) + _rolled(window, x, dkernel)


def _rolled(window: Window, x: Image, kernel: Kernel) -> Output:
    """Convolves with the channels in another order.

    For the kernel's gradient XLA transposes the images, and its loop would compute anew, in an
    order that takes several times as long, what led to them: normalisation, sums, activation. To
    roll channels is to concatenate them, which XLA takes into no loop; the output needs the same
    channels, so that they also stay last in memory.
    """
    plain = functools.partial(_plain, window)

    def on_cpu(x: Image, kernel: Kernel) -> Output:
        half = x.shape[3] // 2
        return plain(jnp.roll(x, half, axis=3), jnp.roll(kernel, half, axis=2))

    return by_platform(on_cpu, plain, x, kernel)
