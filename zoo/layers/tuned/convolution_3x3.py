"""Convolution with 3x3 kernels by our own kernel (``winograd.cc``), with every derivative.

A convolution, the gradient of its input and the gradient of its kernel are linear in both of their
arguments, and the derivatives of each are the other two. So each is a primitive of JAX that names
them. On anything but a CPU it is XLA's own convolution.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from zoo.kernels import library
from zoo.layers.tuned.partitioning import by_rows, vary_alike

Image = Float[Array, "batch height width channels"]
Output = Float[Array, "batch new_height new_width features"]
Kernel = Float[Array, "3 3 channels features"]
Pair = tuple[int, int]
Shape = tuple[int, ...]


def convolve(x: Image, kernel: Kernel, padding: Pair) -> Output:
    """Returns the convolution with strides of 1; ``padding`` is at most 2 on each side."""
    axes = "b h w c, i j c f -> b p q f"
    return _bind(_CONVOLUTION, _our_convolution, _xlas_convolution, axes, x, kernel, padding)


def input_gradient(dy: Output, kernel: Kernel, padding: Pair) -> Image:
    """Returns the gradient of the input of ``convolve``."""
    axes = "b p q f, i j c f -> b h w c"
    return _bind(
        _INPUT_GRADIENT, _our_input_gradient, _xlas_input_gradient, axes, dy, kernel, padding
    )


def kernel_gradient(x: Image, dy: Output, padding: Pair) -> Kernel:
    """Returns the gradient of the kernel of ``convolve``."""
    axes = "b h w c, b p q f -> i j c f"
    return _bind(
        _KERNEL_GRADIENT, _our_kernel_gradient, _xlas_kernel_gradient, axes, x, dy, padding
    )


def _bind(
    primitive: Primitive,
    ours: Callable[..., Array],
    xlas: Callable[..., Array],
    axes: str,
    a: Array,
    b: Array,
    padding: Pair,
) -> Array:
    a, b = vary_alike(a, b)
    on_cpu = by_rows(lambda a, b: ours(a, b, padding), axes)
    elsewhere = functools.partial(xlas, padding=padding)
    form = jax.make_jaxpr(
        lambda a, b: jax.lax.platform_dependent(a, b, cpu=on_cpu, default=elsewhere)
    )
    return primitive.bind(a, b, form=form(a, b), padding=padding)


def _output_shape(x: Any, kernel: Any, padding: Pair) -> Shape:
    height, width = (size + 2 * pad - 2 for size, pad in zip(x.shape[1:3], padding, strict=True))
    return (x.shape[0], height, width, kernel.shape[3])


def _input_shape(dy: Any, kernel: Any, padding: Pair) -> Shape:
    height, width = (size + 2 - 2 * pad for size, pad in zip(dy.shape[1:3], padding, strict=True))
    return (dy.shape[0], height, width, kernel.shape[2])


def _kernel_shape(x: Any, dy: Any, padding: Pair) -> Shape:
    return (3, 3, x.shape[3], dy.shape[3])


def _xlas_convolution(x: Image, kernel: Kernel, padding: Pair) -> Output:
    zeros = [(size, size) for size in padding]
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), zeros, dimension_numbers=axes)


def _xlas_input_gradient(dy: Output, kernel: Kernel, padding: Pair) -> Image:
    x = jax.typeof(dy).update(shape=_input_shape(dy, kernel, padding))
    return jax.linear_transpose(lambda x: _xlas_convolution(x, kernel, padding), x)(dy)[0]


def _xlas_kernel_gradient(x: Image, dy: Output, padding: Pair) -> Kernel:
    kernel = jax.typeof(x).update(shape=_kernel_shape(x, dy, padding))
    return jax.linear_transpose(lambda kernel: _xlas_convolution(x, kernel, padding), kernel)(dy)[0]


def _our_convolution(x: Image, kernel: Kernel, padding: Pair) -> Output:
    shape = _output_shape(x, kernel, padding)
    return _call("convolve", x, kernel, shape, padding, turned=False)


def _our_input_gradient(dy: Output, kernel: Kernel, padding: Pair) -> Image:
    top, left = padding
    shape = _input_shape(dy, kernel, padding)
    return _call("convolve", dy, kernel, shape, (2 - top, 2 - left), turned=True)


def _our_kernel_gradient(x: Image, dy: Output, padding: Pair) -> Kernel:
    return _call("kernel_gradient", x, dy, _kernel_shape(x, dy, padding), padding)


def _call(name: str, a: Array, b: Array, shape: Shape, padding: Pair, **options: bool) -> Array:
    prefix = library.prefix(a.dtype.name)
    function = jax.ffi.ffi_call(f"{prefix}{name}", jax.ShapeDtypeStruct(shape, a.dtype))
    return function(a, b, top=np.int64(padding[0]), left=np.int64(padding[1]), **options)


def _primitive(name: str, function: Callable[..., Array], xlas: Callable[..., Array]) -> Primitive:
    """Makes known to JAX how to call a function that binds the primitive, and to map it."""
    primitive = Primitive(name)
    compiled = jax.jit(function, static_argnums=2)
    primitive.def_impl(lambda a, b, *, form, padding: compiled(a, b, padding))
    primitive.def_abstract_eval(lambda a, b, *, form, padding: form.out_avals[0])
    mlir.register_lowering(
        primitive,
        mlir.lower_fun(
            lambda a, b, *, form, padding: jaxpr_as_fun(form)(a, b), multiple_results=True
        ),
    )

    def mapped(arrays: Any, places: Any, *, form: Any, padding: Pair) -> tuple[Array, int]:
        (a, b), (place, other) = arrays, places
        if other is not None:
            of_both = functools.partial(xlas, padding=padding)
            return jax.vmap(of_both, in_axes=places)(a, b), 0
        # Examples of examples are examples.
        a = jnp.moveaxis(a, place, 0)
        result = function(a.reshape(-1, *a.shape[2:]), b, padding)
        return result.reshape(*a.shape[:2], *result.shape[1:]), 0

    batching.primitive_batchers[primitive] = mapped
    return primitive


_CONVOLUTION = _primitive("convolution_3x3", convolve, _xlas_convolution)
_INPUT_GRADIENT = _primitive("convolution_3x3_dx", input_gradient, _xlas_input_gradient)
_KERNEL_GRADIENT = _primitive("convolution_3x3_dkernel", kernel_gradient, _xlas_kernel_gradient)

ad.defbilinear(
    _CONVOLUTION,
    lambda dy, x, kernel, *, padding, **_: input_gradient(dy, kernel, padding),
    lambda dy, x, kernel, *, padding, **_: kernel_gradient(x, dy, padding),
)
ad.defbilinear(
    _INPUT_GRADIENT,
    lambda dx, dy, kernel, *, padding, **_: convolve(dx, kernel, padding),
    lambda dx, dy, kernel, *, padding, **_: kernel_gradient(dx, dy, padding),
)
ad.defbilinear(
    _KERNEL_GRADIENT,
    lambda dkernel, x, dy, *, padding, **_: input_gradient(dy, dkernel, padding),
    lambda dkernel, x, dy, *, padding, **_: convolve(x, dkernel, padding),
)
