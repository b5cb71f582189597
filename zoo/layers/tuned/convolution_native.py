"""Convolution by native functions, and its gradients.

They are in ``winograd.cc``, ``windows.cc``, ``pointwise.cc`` and ``matrices.cc``.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import Array, Float

from zoo.layers.tuned import bilinear, linear
from zoo.layers.tuned.platform import native_call

Image = Float[Array, "batch height width channels"]
Output = Float[Array, "batch new_height new_width features"]
Kernel = Float[Array, "kernel_height kernel_width channels features"]
Pair = tuple[int, int]

# Name of the JAX primitive that convolves.
NAME = "convolution"
TILES, WINDOWS, PIXELS = "convolve_tiles", "convolve_windows", "convolve_pixels"
BY_UNIT = "convolve_by_unit"
_KERNEL_GRADIENTS = {
    TILES: "kernel_gradient_tiles",
    WINDOWS: "kernel_gradient_windows",
    BY_UNIT: "kernel_gradient_by_unit",
}
# The matrix unit is given so many channels at once, of one place of a window.
_CHANNELS_AT_ONCE = 32


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the shapes of images and outputs follow from; each pair is along height and width.

    Attributes:
        image: size of the images.
        taps: size of the kernel.
        strides: steps of the window.
        padding: zeros on each side of an image.
        function: name of the one that convolves: TILES, by Winograd's algorithm, for 3x3 taps,
            strides of 1 and padding up to 2; WINDOWS; BY_UNIT, of channels that suit it; or PIXELS,
            for a single tap and no padding.
    """

    image: Pair
    taps: Pair
    strides: Pair
    padding: Pair
    function: str

    @property
    def output(self) -> Pair:
        """Height and width of the outputs."""
        axes = zip(self.image, self.taps, self.strides, self.padding, strict=True)
        height, width = ((size + 2 * pad - tap) // step + 1 for size, tap, step, pad in axes)
        return height, width


def _xlas_convolution(x: Image, kernel: Kernel, sizes: Sizes) -> Output:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        sizes.strides,
        [(pad, pad) for pad in sizes.padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _xlas_input_gradient(dy: Output, kernel: Kernel, sizes: Sizes) -> Image:
    x = jax.typeof(dy).update(shape=(dy.shape[0], *sizes.image, kernel.shape[2]))
    return jax.linear_transpose(lambda x: _xlas_convolution(x, kernel, sizes), x)(dy)[0]


def _xlas_kernel_gradient(x: Image, dy: Output, sizes: Sizes) -> Kernel:
    kernel = jax.typeof(x).update(shape=(*sizes.taps, x.shape[3], dy.shape[3]))
    return jax.linear_transpose(lambda kernel: _xlas_convolution(x, kernel, sizes), kernel)(dy)[0]


def can_be_by_unit(channels: int) -> bool:
    """Returns whether BY_UNIT convolves images of so many channels."""
    return channels % _CHANNELS_AT_ONCE == 0


def _our_convolution(x: Image, kernel: Kernel, sizes: Sizes) -> Output:
    return finished(x, kernel, (), sizes, rectify=False)


def finished(
    x: Image, kernel: Kernel, finish: tuple[Array, ...], sizes: Sizes, *, rectify: bool
) -> Output:
    """Convolves, for a CPU alone, and changes the outputs before they are stored.

    Args:
        x: images.
        kernel: what they are convolved with.
        finish: nothing; or what the outputs are multiplied by and then added to, ``[features]``
            each; or these two and what is added then, in the outputs' shape.
        sizes: which native function, and how.
        rectify: whether negative results become zero.
    """
    shape = (x.shape[0], *sizes.output, kernel.shape[3])
    if sizes.function != PIXELS:
        return _call(sizes.function, (x, kernel, *finish), shape, sizes, rectify=rectify)
    pixels = _pixels(x, sizes)
    rows = pixels.shape[0], shape[3]
    finish = (*finish[:2], *(others.reshape(rows) for others in finish[2:]))
    if linear.is_for_matrix_unit(rows[0], x.shape[3], shape[3], x.dtype):
        y = linear.multiply_matrices(pixels, kernel[0, 0], finish, rectify=rectify)
    else:
        y = _call(PIXELS, (pixels, kernel[0, 0], *finish), rows, sizes, rectify=rectify)
    return y.reshape(shape)


def _our_input_gradient(dy: Output, kernel: Kernel, sizes: Sizes) -> Image:
    shape = (dy.shape[0], *sizes.image, kernel.shape[2])
    if sizes.function == BY_UNIT:
        return _input_gradient_by_unit(dy, kernel, sizes)
    if sizes.function == TILES:
        return _call("input_gradient_tiles", (dy, kernel), shape, sizes)
    pixels = dy.reshape(-1, dy.shape[3])
    rows = pixels.shape[0], shape[3]
    if linear.is_for_matrix_unit(rows[0], shape[3], dy.shape[3], dy.dtype):
        dx = linear.multiply_matrices(pixels, kernel[0, 0], turned_right=True)
    else:
        dx = _call(PIXELS, (pixels, kernel[0, 0].T), rows, sizes, rectify=False)
    x = jax.typeof(dx).update(shape=shape)
    return jax.linear_transpose(lambda x: _pixels(x, sizes), x)(dx)[0]


def _has_own_input_gradient(sizes: Sizes) -> bool:
    return sizes.function in (TILES, PIXELS) or (
        sizes.function == BY_UNIT and sizes.strides == (1, 1)
    )


def _input_gradient_by_unit(dy: Output, kernel: Kernel, sizes: Sizes) -> Image:
    """Convolves the outputs' gradient with the kernel turned, for strides of 1."""
    if not can_be_by_unit(dy.shape[3]):
        return _xlas_input_gradient(dy, kernel, sizes)
    (height, width), (top, left) = sizes.taps, sizes.padding
    padding = height - 1 - top, width - 1 - left
    turned = dataclasses.replace(sizes, image=sizes.output, padding=padding)
    return _our_convolution(dy, kernel[::-1, ::-1].swapaxes(2, 3), turned)


def _our_kernel_gradient(x: Image, dy: Output, sizes: Sizes) -> Kernel:
    if sizes.function == PIXELS:
        pixels = _pixels(x, sizes)
        rows, channels = pixels.shape
        many = linear.has_many_rows(rows, channels, dy.shape[3], x.dtype)
        product = linear.add_up_rows if many else linear.kernel_gradient
        return product(pixels, dy)[None, None]
    shape = (*sizes.taps, x.shape[3], dy.shape[3])
    return _call(_KERNEL_GRADIENTS[sizes.function], (x, dy), shape, sizes)


def _pixels(x: Image, sizes: Sizes) -> Float[Array, "pixels channels"]:
    return x[:, :: sizes.strides[0], :: sizes.strides[1]].reshape(-1, x.shape[3])


def _call(
    name: str, arrays: tuple[Array, ...], shape: tuple[int, ...], sizes: Sizes, **options: bool
) -> Array:
    numbers: dict[str, int] = {}
    if sizes.function != PIXELS:
        numbers = {"top": sizes.padding[0], "left": sizes.padding[1]}
    if sizes.function in (WINDOWS, BY_UNIT):
        numbers |= {"row_stride": sizes.strides[0], "column_stride": sizes.strides[1]}
    function = native_call(name, arrays[0].dtype, jax.ShapeDtypeStruct(shape, arrays[0].dtype))
    y: Array = function(*arrays, **options, **{n: np.int64(size) for n, size in numbers.items()})
    return y


convolve, input_gradient, kernel_gradient = bilinear.differentiable(
    NAME,
    bilinear.Form("b h w c, i j c f -> b p q f", _xlas_convolution, _our_convolution),
    bilinear.Form(
        "b p q f, i j c f -> b h w c",
        _xlas_input_gradient,
        _our_input_gradient,
        worthwhile=_has_own_input_gradient,
    ),
    bilinear.Form("b h w c, b p q f -> i j c f", _xlas_kernel_gradient, _our_kernel_gradient),
)
