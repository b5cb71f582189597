"""A kernel refuses arrays that do not fit: nothing outside an array is read or written."""

import jax
import jax.numpy as jnp
import pytest
from tuned_forms import compiled

from zoo.layers.tuned.platform import native_call

ONES = {"row_stride": 1, "column_stride": 1, "top": 0, "left": 0}


def ones(*shape):
    return jnp.ones(shape, jnp.float32)


def call(kernel, arguments, result, **options):
    results = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        result,
        is_leaf=lambda x: isinstance(x, tuple) and all(isinstance(size, int) for size in x),
    )
    function = native_call(kernel, jnp.dtype("float32"), results)
    return jax.block_until_ready(jax.jit(lambda *a: function(*a, **options))(*arguments))


STATE = ones(2, 4)
WEIGHTS = (ones(3, 16), ones(16), ones(4, 16), ones(16))  # of an LSTM: four gates of four units


@compiled
@pytest.mark.parametrize(
    ("kernel", "arguments", "result", "options", "words"),
    [
        ("multiply_rows", (ones(2, 3), ones(4, 5)), (2, 5), {}, "matrix has 4 where 'd'"),
        ("multiply_rows", (ones(2, 3), ones(3, 5)), (2, 6), {}, "y has 6 where 'c'"),
        ("multiply_rows", (ones(2, 3, 1), ones(3, 5)), (2, 5), {}, "x has 3 axes"),
        ("multiply_rows", (ones(2, 0), ones(0, 5)), (2, 5), {}, "x has 0 where 'd'"),
        ("contract_rows", (ones(7, 3), ones(6, 5)), (3, 5), {}, "dy has 6 where 'r'"),
        ("contract_rows", (ones(7, 3), ones(7, 5)), (5, 3), {}, "y has 5 where 'i'"),
        (
            "convolve_pixels", (ones(9, 3), ones(3, 5), ones(5)), (9, 5), {"rectify": False},
            "0, 2 or 3 arrays",
        ),
        (
            "convolve_pixels", (ones(9, 3), ones(3, 5), ones(4), ones(5)), (9, 5),
            {"rectify": False}, "scale has 4 where 'f'",
        ),
        (
            "convolve_pixels", (ones(9, 3), ones(3, 5), ones(5), ones(5), ones(8, 5)), (9, 5),
            {"rectify": False}, "others has 8 where 'p'",
        ),
        (
            "convolve_windows", (ones(1, 8, 8, 3), ones(3, 3, 4, 5)), (1, 6, 6, 5),
            {"rectify": False, **ONES}, "kernel has 4 where 'c'",
        ),
        (
            "convolve_windows", (ones(1, 8, 8, 3), ones(3, 3, 3, 5)), (1, 6, 6, 5),
            {"rectify": False, **ONES, "row_stride": 0}, "a stride is less than 1",
        ),
        (
            "kernel_gradient_windows", (ones(2, 8, 8, 3), ones(1, 6, 6, 5)), (3, 3, 3, 5), ONES,
            "y has 1 where 'b'",
        ),
        (
            "convolve_tiles", (ones(1, 8, 8, 3), ones(5, 3, 3, 4)), (1, 8, 8, 4),
            {"rectify": False, "top": 1, "left": 1}, "kernel has 5 where '3'",
        ),
        (
            "input_gradient_tiles", (ones(1, 8, 8, 4), ones(3, 3, 3, 4)), (1, 8, 8, 4),
            {"top": 1, "left": 1}, "kernel has 3 where 'c'",
        ),
        (
            "kernel_gradient_tiles", (ones(1, 8, 8, 3), ones(1, 8, 8, 4)), (3, 3, 4, 4),
            {"top": 1, "left": 1}, "kernel has 4 where 'c'",
        ),
        (
            "recur_forward", (*WEIGHTS, ones(5, 2, 3), STATE, STATE), [(5, 2, 4), (2, 4), (1, 4)],
            {"cell": "lstm", "masked": False, "multiplied": False}, "last state has 1 where 'b'",
        ),
        (
            "recur_forward", (*WEIGHTS, ones(5, 2, 3), STATE, STATE), [(5, 2, 4), (2, 4), (2, 4)],
            {"cell": "gru", "masked": False, "multiplied": False}, "gates has 2 axes",
        ),
        (
            "recur_forward", (*WEIGHTS, ones(5, 2, 3), STATE), [(5, 2, 4), (2, 4), (2, 4)],
            {"cell": "lstm", "masked": False, "multiplied": False}, "an array is missing",
        ),
        (
            "recur_forward", (*WEIGHTS, ones(5, 2, 3), STATE), [(5, 2, 4), (2, 4)],
            {"cell": "rnn", "masked": False, "multiplied": False}, "'g' is 16, not 4",
        ),
        (
            "recur_backward", (ones(4, 16), ones(5, 2, 16)), [(5, 2, 16)] * 3,
            {"cell": "lstm", "masked": False}, "an array is missing",
        ),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(kernel, arguments, result, options, words):
    with pytest.raises(jax.errors.JaxRuntimeError) as refusal:
        call(kernel, arguments, result, **options)
    assert "INVALID_ARGUMENT" in str(refusal.value)
    assert words in str(refusal.value)


@compiled
def test_arrays_that_fit_are_multiplied():
    made = call("multiply_rows", (ones(2, 3), ones(3, 5)), (2, 5))
    assert (made == 3).all()


@compiled
def test_missing_memory_is_an_error_of_the_call():
    """Two windows so far apart that no machine has the memory between them."""
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        call(
            "convolve_windows",
            (ones(40, 1, 2, 1), ones(1, 1, 1, 1)),
            (40, 1, 2, 1),
            **ONES | {"rectify": False, "column_stride": 2**42},
        )
