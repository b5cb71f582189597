"""A linear layer's product: by native functions, or with gradients of its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zoo.axes import divides_rows_only
from zoo.layers.tuned.bilinear import Form, differentiable
from zoo.layers.tuned.devices import on_each_device
from zoo.layers.tuned.platform import (
    are_known,
    by_platform,
    has_native,
    may_have_native,
    native_call,
    with_native,
)

Input = Float[Array, "*batch inputs"]
Kernel = Float[Array, "inputs features"]
Output = Float[Array, "*batch features"]

# Columns that a concatenation adds to the output's gradient: one vector of 512 bits.
_COLUMNS = 16
# With fewer features the columns cost more than they save, and a native call is not worth it.
_LEAST_FEATURES = 64
# With more rows XLA's product is as fast as the native one.
_FEW_ROWS = 64
_MANY_ROWS = 65
# Without a matrix unit, and beyond these, XLA's gradient of the kernel is as fast as ours: inputs,
# numbers of the kernel, products and sums.
_LEAST_INPUTS, _MOST_INPUTS = 16, 4096
_MOST_NUMBERS = 1 << 20
_LEAST_WORK = 1 << 21
# With one, and beyond these, XLA's products are: inputs and features, products and sums.
_LEAST_SIDE = 32
_LEAST_WORK_OF_UNIT = 1 << 19
# With more numbers of the kernel for each row, most of the time goes into reading the kernel: the
# unit saves a fifth (the first linear layer of the CNN), which is not worth a compilation.
_NUMBERS_OF_A_ROW = 1 << 14
# Products and sums up to which several kernels are multiplied by at once: beyond, to put them
# together takes longer than it saves.
_MOST_TOGETHER = 1 << 27


def multiply(x: Input, kernel: Kernel) -> Output:
    """Returns ``x @ kernel`` in their common type; see ``zoo.layers.Linear``."""
    dtype = jnp.result_type(x, kernel)
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    *rows, inputs = x.shape
    features = kernel.shape[1]
    count = math.prod(rows)
    if is_for_matrix_unit(count, inputs, features, dtype) or (
        _are_many(count, inputs, features) and may_have_native(dtype)
    ):
        return _multiply_many(x.reshape(-1, inputs), kernel, dtype).reshape(*rows, -1)
    return _multiply(x, kernel) if features >= _LEAST_FEATURES else x @ kernel


def multiply_by_each(x: Input, kernels: Sequence[Kernel]) -> list[Output]:
    """Returns ``x @ kernel`` for each of several kernels, in their common type.

    On a CPU small ones are one product, and so are their gradients: a product of its own takes as
    long to begin as to compute.
    """
    dtype = jnp.result_type(x, *kernels)
    x, kernels = x.astype(dtype), [kernel.astype(dtype) for kernel in kernels]
    ends = list(itertools.accumulate(kernel.shape[1] for kernel in kernels))

    def together(x: Input, *kernels: Kernel) -> list[Output]:
        return jnp.split(multiply(x, jnp.concatenate(kernels, axis=1)), ends[:-1], axis=-1)

    def apart(x: Input, *kernels: Kernel) -> list[Output]:
        return [multiply(x, kernel) for kernel in kernels]

    sizes = (*x.shape, ends[-1])
    if (
        len(kernels) > 1
        and are_known(*sizes)
        and math.prod(x.shape[:-1]) > _FEW_ROWS
        and math.prod(sizes) <= _MOST_TOGETHER
    ):
        return by_platform(together, apart, x, *kernels)
    return apart(x, *kernels)


@jax.custom_jvp
def _multiply(x: Input, kernel: Kernel) -> Output:
    rows = x.shape[:-1]
    if not has_few_rows(math.prod(rows), kernel, _FEW_ROWS):
        return x @ kernel

    def native(x: Input, kernel: Kernel) -> Output:
        return multiply_few_rows(x.reshape(-1, x.shape[-1]), kernel).reshape(*rows, -1)

    return with_native(native, jnp.matmul, x, kernel)


@_multiply.defjvp
def _multiply_jvp(
    primals: tuple[Input, Kernel], tangents: tuple[Input, Kernel]
) -> tuple[Output, Output]:
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _multiply(x, kernel)
    by_kernel = jax.linear_transpose(lambda dy: _own_kernel_gradient(x, dy), y)
    return y, dx @ kernel + by_kernel(dkernel)[0]


def has_few_rows(rows: int, kernel: Array, most: int) -> bool:
    """Returns whether ``multiply_few_rows`` can be called, and is worth it.

    Args:
        rows: how many are multiplied.
        kernel: by what; features are the last axis.
        most: of so many rows XLA's form is as fast.
    """
    return (
        are_known(rows, *kernel.shape)
        and 0 < rows <= most
        and kernel.size > 0
        and kernel.shape[-1] >= _LEAST_FEATURES
        and has_native("multiply_rows", kernel.dtype)
    )


def multiply_few_rows(
    x: Float[Array, "rows inputs"], kernel: Kernel
) -> Float[Array, "rows features"]:
    """Returns the product by a native function (``products.cc``), for a CPU alone."""

    def multiply_rows(x: Input, kernel: Kernel) -> Output:
        result = jax.ShapeDtypeStruct((x.shape[0], kernel.shape[1]), x.dtype)
        y: Output = native_call("multiply_rows", x.dtype, result)(x, kernel)
        return y

    y: Output = on_each_device(multiply_rows, "b i, i f -> b f")(x, kernel)
    return y


def has_many_rows(rows: int, inputs: int, features: int, dtype: np.dtype) -> bool:
    """Returns whether ``add_up_rows`` can be called, and is worth it."""
    return is_for_matrix_unit(rows, inputs, features, dtype) or (
        _are_many(rows, inputs, features) and has_native("contract_rows", dtype)
    )


def _are_many(rows: int, inputs: int, features: int) -> bool:
    return (
        are_known(rows, inputs, features)
        and rows >= _MANY_ROWS
        and _LEAST_INPUTS <= inputs <= _MOST_INPUTS
        and features >= _LEAST_FEATURES
        and inputs * features <= _MOST_NUMBERS
        and rows * inputs * features >= _LEAST_WORK
    )


def add_up_rows(x: Input, dy: Output) -> Kernel:
    """Returns ``kernel_gradient`` by a native function, for a CPU alone.

    It is ``matrices.cc`` or, without a matrix unit, ``contraction.cc``.
    """
    x, dy = (array.reshape(-1, array.shape[-1]) for array in (x, dy))
    if has_matrix_unit(x.dtype):
        return multiply_matrices(x, dy, turned_left=True)
    result = jax.ShapeDtypeStruct((x.shape[1], dy.shape[1]), x.dtype)
    sums: Kernel = native_call("contract_rows", x.dtype, result)(x, dy)
    return sums


def has_matrix_unit(dtype: np.dtype) -> bool:
    """Returns whether ``multiply_matrices`` can be called."""
    return has_native("multiply_matrices", dtype)


def is_for_matrix_unit(rows: int, inputs: int, features: int, dtype: np.dtype) -> bool:
    """Returns whether ``multiply_matrices`` can be called, and is worth it."""
    return (
        are_known(rows, inputs, features)
        and rows >= _MANY_ROWS
        and min(inputs, features) >= _LEAST_SIDE
        and rows * inputs * features >= _LEAST_WORK_OF_UNIT
        and inputs * features <= rows * _NUMBERS_OF_A_ROW
        and has_matrix_unit(dtype)
    )


def multiply_matrices(
    left: Array,
    right: Array,
    finish: Sequence[Array] = (),
    *,
    turned_left: bool = False,
    turned_right: bool = False,
    rectify: bool = False,
) -> Float[Array, "rows columns"]:
    """Returns the product of two matrices by a native function, ``matrices.cc``, for a CPU alone.

    Args:
        left: [rows, depth], turned [depth, rows].
        right: [depth, columns], turned [columns, depth].
        finish: nothing; or what the product is multiplied by and then added to, ``[columns]`` each;
            or these two and what is added then, ``[rows, columns]``.
        turned_left: whether ``left`` is.
        turned_right: whether ``right`` is.
        rectify: whether negative results become zero.
    """
    shape = left.shape[1 if turned_left else 0], right.shape[0 if turned_right else 1]
    function = native_call("multiply_matrices", left.dtype, jax.ShapeDtypeStruct(shape, left.dtype))
    y: Array = function(
        left, right, *finish, turned_left=turned_left, turned_right=turned_right, rectify=rectify
    )
    return y


def _add_up_many(x: Input, dy: Output, dtype: np.dtype) -> Kernel:
    (rows, inputs), features = x.shape, dy.shape[1]
    product = add_up_rows if has_many_rows(rows, inputs, features, dtype) else _from_wider
    return product(x, dy)


# A function of rows, a kernel and the type of their numbers. Without a matrix unit, only the
# kernel's gradient is faster than XLA's. Whether there is one is asked where each function is
# traced: a program that is never differentiated need not wait for a compilation.
_multiply_many, _, _ = differentiable(
    "linear",
    Form(
        "b i, i f -> b f",
        lambda x, kernel, _: x @ kernel,
        lambda x, kernel, _: multiply_matrices(x, kernel),
        has_matrix_unit,
    ),
    Form(
        "b f, i f -> b i",
        lambda dy, kernel, _: dy @ kernel.T,
        lambda dy, kernel, _: multiply_matrices(dy, kernel, turned_right=True),
        has_matrix_unit,
    ),
    Form("b i, b f -> i f", lambda x, dy, _: x.T @ dy, _add_up_many),
)


def _own_kernel_gradient(x: Input, dy: Output) -> Kernel:
    if not divides_rows_only():
        # Rows and lengths that are divided both would have to be gathered to become one axis.
        summed = tuple(range(x.ndim - 1))
        return jnp.tensordot(x, dy, axes=(summed, summed))
    return by_platform(_from_wider, kernel_gradient, x, dy)


def kernel_gradient(x: Input, dy: Output) -> Kernel:
    """Returns the kernel's gradient; with two axes to sum over XLA would copy both arrays first."""
    return x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])


def _from_wider(x: Input, dy: Output) -> Kernel:
    """Computes a few of the columns twice, so that ``dy`` is an operand of a concatenation.

    XLA's loops on a CPU take in the sum that they read, and the sums that it reads: along a
    residual stream each kernel's gradient would add up all of them again. A sum that also goes
    into a concatenation along the last axis, which XLA takes into no loop, is computed once.
    """
    wider = jnp.concatenate([dy, dy[..., :_COLUMNS]], axis=-1)
    return kernel_gradient(x, wider)[:, : dy.shape[-1]]
