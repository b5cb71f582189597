"""Convolution by our own kernels (``winograd.cc``, ``windows.cc``) and its gradients."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Array, Float

from zoo.layers.tuned import bilinear
from zoo.layers.tuned.platform import kernel_call

Image = Float[Array, "batch height width channels"]
Output = Float[Array, "batch new_height new_width features"]
Kernel = Float[Array, "kernel_height kernel_width channels features"]
Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the shapes of images and outputs follow from; each pair is along height and width.

    Attributes:
        image: of the images.
        taps: of the kernel.
        strides: steps of the window.
        padding: zeros on each side of an image.
        tiled: whether Winograd's algorithm is used, for 3x3 taps, strides of 1 and padding up to 2.
    """

    image: Pair
    taps: Pair
    strides: Pair
    padding: Pair
    tiled: bool

    @property
    def kernel(self) -> str:
        """Name of the kernel that convolves."""
        return "convolve_tiles" if self.tiled else "convolve_windows"

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


def _our_convolution(x: Image, kernel: Kernel, sizes: Sizes) -> Output:
    return _call(sizes.kernel, x, kernel, (x.shape[0], *sizes.output, kernel.shape[3]), sizes)


def _our_input_gradient(dy: Output, kernel: Kernel, sizes: Sizes) -> Image:
    shape = (dy.shape[0], *sizes.image, kernel.shape[2])
    return _call("input_gradient_tiles", dy, kernel, shape, sizes)


def _our_kernel_gradient(x: Image, dy: Output, sizes: Sizes) -> Kernel:
    name = "kernel_gradient_tiles" if sizes.tiled else "kernel_gradient_windows"
    return _call(name, x, dy, (*sizes.taps, x.shape[3], dy.shape[3]), sizes)


def _call(name: str, a: Array, b: Array, shape: tuple[int, ...], sizes: Sizes) -> Array:
    options = {"top": sizes.padding[0], "left": sizes.padding[1]}
    if not sizes.tiled:
        options |= {"row_stride": sizes.strides[0], "column_stride": sizes.strides[1]}
    function = kernel_call(name, a.dtype, jax.ShapeDtypeStruct(shape, a.dtype))
    y: Array = function(a, b, **{name: np.int64(size) for name, size in options.items()})
    return y


convolve, input_gradient, kernel_gradient = bilinear.differentiable(
    "convolution",
    bilinear.Form("b h w c, i j c f -> b p q f", _xlas_convolution, _our_convolution),
    bilinear.Form(
        "b p q f, i j c f -> b h w c",
        _xlas_input_gradient,
        _our_input_gradient,
        worthwhile=lambda sizes: sizes.tiled,
    ),
    bilinear.Form("b h w c, b p q f -> i j c f", _xlas_kernel_gradient, _our_kernel_gradient),
)
