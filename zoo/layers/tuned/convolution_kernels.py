"""Convolution by our own kernels (``winograd.cc``, ``windows.cc``), with every derivative.

A convolution, the gradient of its input and the gradient of its kernel are linear in both of their
arguments, and the derivatives of each are the other two. So each is a primitive of JAX that names
them. On anything but a CPU it is XLA's own convolution.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from zoo.layers.tuned.partitioning import by_rows, vary_alike
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
    def output(self) -> Pair:
        """Height and width of the outputs."""
        axes = zip(self.image, self.taps, self.strides, self.padding, strict=True)
        height, width = ((size + 2 * pad - tap) // step + 1 for size, tap, step, pad in axes)
        return height, width


def convolve(x: Image, kernel: Kernel, sizes: Sizes) -> Output:
    """Returns the convolution."""
    axes = "b h w c, i j c f -> b p q f"
    return _bind(_CONVOLUTION, _our_convolution, _xlas_convolution, axes, x, kernel, sizes)


def input_gradient(dy: Output, kernel: Kernel, sizes: Sizes) -> Image:
    """Returns the gradient of the input of ``convolve``."""
    axes = "b p q f, i j c f -> b h w c"
    ours = _our_input_gradient if sizes.tiled else _xlas_input_gradient
    return _bind(_INPUT_GRADIENT, ours, _xlas_input_gradient, axes, dy, kernel, sizes)


def kernel_gradient(x: Image, dy: Output, sizes: Sizes) -> Kernel:
    """Returns the gradient of the kernel of ``convolve``."""
    axes = "b h w c, b p q f -> i j c f"
    return _bind(_KERNEL_GRADIENT, _our_kernel_gradient, _xlas_kernel_gradient, axes, x, dy, sizes)


def _bind(
    primitive: Primitive,
    ours: Callable[..., Array],
    xlas: Callable[..., Array],
    axes: str,
    a: Array,
    b: Array,
    sizes: Sizes,
) -> Array:
    a, b = vary_alike(a, b)
    elsewhere = functools.partial(xlas, sizes=sizes)
    on_cpu = elsewhere if ours is xlas else by_rows(lambda a, b: ours(a, b, sizes), axes)
    form = jax.make_jaxpr(
        lambda a, b: jax.lax.platform_dependent(a, b, cpu=on_cpu, default=elsewhere)
    )
    return primitive.bind(a, b, form=form(a, b), sizes=sizes)


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
    shape = (x.shape[0], *sizes.output, kernel.shape[3])
    if sizes.tiled:
        return _call("convolve_tiles", x, kernel, shape, sizes.padding)
    return _call("convolve_windows", x, kernel, shape, sizes.padding, **_steps(sizes))


def _our_input_gradient(dy: Output, kernel: Kernel, sizes: Sizes) -> Image:
    shape = (dy.shape[0], *sizes.image, kernel.shape[2])
    return _call("input_gradient_tiles", dy, kernel, shape, sizes.padding)


def _our_kernel_gradient(x: Image, dy: Output, sizes: Sizes) -> Kernel:
    shape = (*sizes.taps, x.shape[3], dy.shape[3])
    if sizes.tiled:
        return _call("kernel_gradient_tiles", x, dy, shape, sizes.padding)
    return _call("kernel_gradient_windows", x, dy, shape, sizes.padding, **_steps(sizes))


def _steps(sizes: Sizes) -> dict[str, np.int64]:
    return {
        "row_stride": np.int64(sizes.strides[0]),
        "column_stride": np.int64(sizes.strides[1]),
    }


def _call(
    name: str, a: Array, b: Array, shape: tuple[int, ...], padding: Pair, **options: np.int64
) -> Array:
    function = kernel_call(name, a.dtype, jax.ShapeDtypeStruct(shape, a.dtype))
    y: Array = function(a, b, top=np.int64(padding[0]), left=np.int64(padding[1]), **options)
    return y


def _primitive(name: str, function: Callable[..., Array], xlas: Callable[..., Array]) -> Primitive:
    """Makes known to JAX how to call a function that binds the primitive, and to map it."""
    primitive = Primitive(name)
    compiled = jax.jit(function, static_argnums=2)

    def called(a: Array, b: Array, *, form: Any, sizes: Sizes) -> Array:
        # A kernel is only called by a program: compiled where all else is not, too.
        with jax.disable_jit(False):
            return compiled(a, b, sizes)

    primitive.def_impl(called)
    primitive.def_abstract_eval(lambda a, b, *, form, sizes: form.out_avals[0])
    mlir.register_lowering(
        primitive,
        mlir.lower_fun(
            lambda a, b, *, form, sizes: jaxpr_as_fun(form)(a, b), multiple_results=True
        ),
    )

    def mapped(arrays: Any, places: Any, *, form: Any, sizes: Sizes) -> tuple[Array, int]:
        (a, b), (place, other) = arrays, places
        if other is not None:
            of_both = functools.partial(xlas, sizes=sizes)
            return jax.vmap(of_both, in_axes=places)(a, b), 0
        # Examples of examples are examples.
        a = jnp.moveaxis(a, place, 0)
        result = function(a.reshape(-1, *a.shape[2:]), b, sizes)
        return result.reshape(*a.shape[:2], *result.shape[1:]), 0

    batching.primitive_batchers[primitive] = mapped
    return primitive


_CONVOLUTION = _primitive("convolution", convolve, _xlas_convolution)
_INPUT_GRADIENT = _primitive("convolution_dx", input_gradient, _xlas_input_gradient)
_KERNEL_GRADIENT = _primitive("convolution_dkernel", kernel_gradient, _xlas_kernel_gradient)

ad.defbilinear(
    _CONVOLUTION,
    lambda dy, x, kernel, *, sizes, **_: input_gradient(dy, kernel, sizes),
    lambda dy, x, kernel, *, sizes, **_: kernel_gradient(x, dy, sizes),
)
ad.defbilinear(
    _INPUT_GRADIENT,
    lambda dx, dy, kernel, *, sizes, **_: convolve(dx, kernel, sizes),
    lambda dx, dy, kernel, *, sizes, **_: kernel_gradient(dx, dy, sizes),
)
ad.defbilinear(
    _KERNEL_GRADIENT,
    lambda dkernel, x, dy, *, sizes, **_: input_gradient(dy, dkernel, sizes),
    lambda dkernel, x, dy, *, sizes, **_: convolve(x, dkernel, sizes),
)
