"""All steps of a recurrent layer in one native function, for a CPU.

XLA runs a loop of steps as many small operations, each on all threads; a native function
gives each thread rows of its own and keeps their states and the recurrent kernel in the core's
cache.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.layers.tuned import linear
from zoo.layers.tuned.devices import on_each_device
from zoo.layers.tuned.platform import are_known, has_native, native_call, with_native

Scan = Callable[..., Any]

# A native function first arranges the weights; for so many rows of all steps XLA is done by then.
_FEW_ROWS = 64


def recur_forward(cell: str, scan: Scan, weights: Any, *rows: Any) -> Any:
    """Calls ``scan``, or the native function that does the same forwards.

    Args:
        cell: what native functions call the equations; empty: there are none.
        scan: (weights, *rows) -> any tree of arrays; of the same cell.
        weights: the input's kernel and bias, and those of the state.
        *rows: inputs, state and counts; the last but one axis is the batch, there and in the
            results.
    """
    return _choose("recur_forward", cell, scan, weights, rows)


def recur_backward(cell: str, scan: Scan, weights: Any, *rows: Any) -> Any:
    """Calls ``scan``, or the native function that does the same backwards.

    Args:
        cell: what native functions call the equations; empty: there are none.
        scan: (weights, *rows) -> any tree of arrays; of the same cell.
        weights: the input's kernel, if its gradient is asked for, and the recurrent one.
        *rows: what ``recur_forward`` returned to be kept, the gradients of its outputs and last
            state, and counts; the last but one axis is the batch, there and in the results.
    """
    return _choose("recur_backward", cell, scan, weights, rows)


def kernel_gradient(
    x: Float[Array, "time batch inputs"], dy: Float[Array, "time batch features"]
) -> Float[Array, "inputs features"]:
    """Returns the gradient of a kernel that all steps share: the product, summed over both axes."""
    return _kernel_gradient(x, dy)


def _choose(function: str, cell: str, scan: Scan, weights: Any, rows: Any) -> Any:
    if not (cell and _fits(function, weights, rows)):
        return scan(weights, *rows)
    return _by_platform(function, cell, scan, weights, rows)


def _fits(function: str, weights: Any, rows: Any) -> bool:
    arrays = jax.tree.leaves((weights, rows))
    sizes = [size for array in arrays for size in array.shape]
    (dtype, *others) = {array.dtype for array in arrays}
    return (
        are_known(*sizes)
        and not others
        and math.prod(sizes) > 0
        and math.prod(jax.tree.leaves(rows)[0].shape[:2]) > _FEW_ROWS
        and has_native(function, dtype)
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _by_platform(function: str, cell: str, scan: Scan, weights: Any, rows: Any) -> Any:
    leaves, tree = jax.tree.flatten((weights, rows))
    whole = len(jax.tree.leaves(weights))

    def scan_of_leaves(*leaves: Array) -> list[Array]:
        weights, rows = jax.tree.unflatten(tree, leaves)
        return jax.tree.leaves(scan(weights, *rows))

    results, result_tree = jax.tree.flatten(jax.eval_shape(scan, weights, *rows))

    def call(*leaves: Array) -> list[Array]:
        # A device may have some of the rows only.
        batch = leaves[whole].shape[-2]
        some = [one.update(shape=(*one.shape[:-2], batch, one.shape[-1])) for one in results]
        options = {"cell": cell, "masked": rows[-1] is not None}
        if function == "recur_backward":
            return _run_backward(leaves, whole, some, options)
        return _run_forward(leaves, whole, len(rows[1]), some, options)

    divided = on_each_device(call, _axes(leaves, results, whole), batch="batch")
    made = with_native(divided, scan_of_leaves, *leaves)
    return jax.tree.unflatten(result_tree, made)


def _run_forward(
    leaves: Sequence[Array],
    whole: int,
    states: int,
    results: Sequence[Any],
    options: dict[str, Any],
) -> list[Array]:
    """Calls the native function, to which a matrix unit gives the inputs' products.

    Args:
        leaves: the weights, the input's kernel first, then inputs, state and counts.
        whole: number of weights.
        states: number of arrays of the state.
        results: outputs, last state and what is kept, the gates first; shapes and types.
        options: options of the native function.
    """
    input_kernel, inputs = leaves[0], leaves[whole]
    multiplied = _has_unit(inputs, input_kernel.shape[1])
    aliases = {}
    if multiplied:
        rows = inputs.reshape(-1, inputs.shape[2])
        products = linear.multiply_matrices(rows, input_kernel).reshape(*inputs.shape[:2], -1)
        leaves = [*leaves[1:whole], products, *leaves[whole + 1 :]]
        if len(results) > 1 + states:  # gates are written over the products
            aliases = {whole - 1: 1 + states}
    function = native_call("recur_forward", inputs.dtype, results, aliases)
    return list(function(*leaves, **options, multiplied=multiplied))


def _run_backward(
    leaves: Sequence[Array], whole: int, results: Sequence[Any], options: dict[str, Any]
) -> list[Array]:
    """Calls the native function, and a matrix unit for the gradient of the inputs.

    Args:
        leaves: the weights, the input's kernel first if its gradient is asked for; gates, and what
            else it wants.
        whole: number of weights.
        results: the gradients of the inputs, if asked for, of gates, and others; shapes and types.
        options: options of the native function.
    """
    input_kernel, gates = leaves[0], leaves[whole]
    by_unit = whole == 2 and _has_unit(gates, input_kernel.shape[0])
    if by_unit:
        leaves, results, whole = leaves[1:], results[1:], 1
    # The gradient of the gates is written over them; the inputs' is before it, if it is there.
    function = native_call("recur_backward", gates.dtype, results, {whole: whole - 1})
    made = list(function(*leaves, **options))
    if by_unit:
        rows = made[0].reshape(-1, gates.shape[2])
        d_inputs = linear.multiply_matrices(rows, input_kernel, turned_right=True)
        made = [d_inputs.reshape(*gates.shape[:2], -1), *made]
    return made


def _has_unit(rows: Float[Array, "time batch depth"], columns: int) -> bool:
    time, batch, depth = rows.shape
    return linear.is_for_matrix_unit(time * batch, depth, columns, rows.dtype)


@_by_platform.defjvp
def _by_platform_jvp(
    function: str, cell: str, scan: Scan, primals: tuple[Any, Any], tangents: tuple[Any, Any]
) -> tuple[Any, Any]:
    """Second derivatives are the scan's."""
    return jax.jvp(lambda weights, rows: scan(weights, *rows), primals, tangents)


@jax.custom_jvp
def _kernel_gradient(x: Array, dy: Array) -> Array:
    # On a CPU, XLA copies an array that has two axes to sum over. Reshaped, it is one axis, which
    # cannot be divided where the batch is: each device has to reshape its own rows.
    many = linear.has_many_rows(math.prod(x.shape[:2]), x.shape[2], dy.shape[2], x.dtype)
    product = linear.add_up_rows if many and x.dtype == dy.dtype else linear.kernel_gradient
    reshaped = on_each_device(product, "t b i, t b g -> i g")
    return with_native(reshaped, _summed_product, x, dy)


@_kernel_gradient.defjvp
def _kernel_gradient_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    return jax.jvp(_summed_product, primals, tangents)


def _summed_product(x: Array, dy: Array) -> Array:
    return jnp.tensordot(x, dy, axes=((0, 1), (0, 1)))


def _axes(arguments: Any, results: Any, whole: int) -> str:
    """The rule for ``on_each_device``.

    The batch is the last axis but one of all arrays but the first ``whole``.
    """

    def named(number: int, array: Any) -> str:
        names = [f"axis{number}_{axis}" for axis in range(len(array.shape))]
        if number >= whole:
            names[-2] = "batch"
        return " ".join(names)

    words = [named(number, array) for number, array in enumerate((*arguments, *results))]
    return f"{', '.join(words[: len(arguments)])} -> {', '.join(words[len(arguments) :])}"
