"""Convolution whose gradients are fast where the window is one pixel."""

import dataclasses

import jax
from jaxtyping import Array, Float

Image = Float[Array, "batch height width channels"]
Output = Float[Array, "batch new_height new_width features"]
Kernel = Float[Array, "kernel_height kernel_width channels features"]
Pair = tuple[int, int]

_AXES = ("NHWC", "HWIO", "NHWC")


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
    if kernel.shape[:2] == (1, 1) and window.padding == (0, 0) and window.groups == 1:
        return _pointwise(window, x, kernel)
    return _plain(window, x, kernel)


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


# A product over all pixels. XLA's convolution computes the output faster, but its gradients take
# up to five times as long as a product's.
_pointwise = jax.custom_jvp(_plain, nondiff_argnums=(0,))


@_pointwise.defjvp
def _pointwise_jvp(
    window: Window, primals: tuple[Image, Kernel], tangents: tuple[Image, Kernel]
) -> tuple[Output, Output]:
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _pointwise(window, x, kernel)

    def product(x: Image, kernel: Kernel) -> Output:
        pixels = x[:, :: window.strides[0], :: window.strides[1]]
        return (pixels.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(y.shape)

    return y, product(dx, kernel) + product(x, dkernel)
