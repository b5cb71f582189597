"""Products by the processor's matrix unit: exact numbers, XLA's products, and all who call it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tuned_forms import (
    MATRICES,
    assert_close,
    contractions,
    gradients,
    gradients_of_divided_rows,
    kept,
    lowered_gradients,
    on_a_matrix_unit,
    second_derivatives,
)

from zoo.layers import recurrence
from zoo.layers.tuned import convolution
from zoo.layers.tuned.linear import multiply, multiply_matrices
from zoo.native import library

every_form = pytest.mark.parametrize(
    "turned",
    [
        {},
        {"turned_right": True},
        {"turned_left": True},
        {"turned_left": True, "turned_right": True},
    ],
    ids=lambda turned: "-".join(turned) or "as_they_are",
)
# Blocks of 32 rows and columns and 32 of the depth, whole or not; depths of 128 and of 256; more
# columns than a part of the right operand has; one thread's share, and several.
sizes = pytest.mark.parametrize(
    ("rows", "depth", "columns"),
    [
        (1, 1, 1),
        (31, 33, 17),
        (32, 32, 32),
        (65, 31, 64),
        (16, 127, 100),
        (130, 129, 33),
        (97, 300, 95),
        (40, 1030, 70),
        (70, 256, 1500),
        (1000, 90, 160),
        (160, 513, 1000),
    ],
)


def operands(rows, depth, columns, turned, draw):
    """Both operands as they are, and as the kernel is given them."""
    generator = np.random.default_rng(0)
    left, right = draw(generator, (rows, depth)), draw(generator, (depth, columns))
    given = (
        left.T if turned.get("turned_left") else left,
        right.T if turned.get("turned_right") else right,
    )
    return left, right, [jnp.asarray(array, jnp.float32) for array in given]


def normal(generator, shape):
    return generator.standard_normal(shape).astype(np.float32)


def error(product, exact):
    return np.linalg.norm(np.asarray(product, np.float64) - exact) / np.linalg.norm(exact)


def problem(shape, features):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], shape)
    kernel = jax.random.normal(keys[1], (shape[-1], features)) / shape[-1] ** 0.5
    return x, kernel, jax.random.normal(keys[2], (*shape[:-1], features))


def plain(x, kernel):
    return jnp.matmul(x, kernel, precision="highest")


@on_a_matrix_unit
@every_form
@sizes
def test_whole_numbers_are_multiplied_exactly(turned, rows, depth, columns):
    """Of 17 bits and 3, so that no sum has more than float32's 24 for a depth of 16."""

    def draw(generator, shape):
        return generator.integers(-(2**17) + 1, 2**17, shape).astype(np.float32)

    left, right, given = operands(rows, depth, columns, turned, draw)
    right = np.sign(right) * (np.abs(right) % 8)
    given[1] = jnp.asarray(right.T if turned.get("turned_right") else right, jnp.float32)
    # All but 16 of each row are zeros.
    some = np.random.default_rng(1).permuted(np.tile(np.arange(depth) < 16, (rows, 1)), axis=1)
    left = left * some
    given[0] = jnp.asarray(left.T if turned.get("turned_left") else left, jnp.float32)
    np.testing.assert_array_equal(
        multiply_matrices(*given, **turned), left.astype(np.int64) @ right.astype(np.int64)
    )


@on_a_matrix_unit
@every_form
@sizes
def test_no_less_exact_than_xlas_product_in_float32(turned, rows, depth, columns):
    left, right, given = operands(rows, depth, columns, turned, normal)
    exact = left.astype(np.float64) @ right.astype(np.float64)
    ours = error(multiply_matrices(*given, **turned), exact)
    assert ours <= 1.5e-7
    assert ours <= max(6e-8, error(plain(left, right), exact))


@on_a_matrix_unit
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
def test_numbers_of_any_size(size):
    left, right, given = operands(70, 90, 80, {}, normal)
    exact = left.astype(np.float64) @ right.astype(np.float64)
    product = multiply_matrices(size * given[0], given[1])
    assert error(product, float(np.float32(size)) * exact) <= 2e-7


@on_a_matrix_unit
def test_numbers_of_all_sizes_in_one_sum():
    """The largest decides how exact a sum is, as it does of float32 products."""

    def draw(generator, shape):
        return normal(generator, shape) * 10.0 ** generator.integers(-6, 6, shape)

    left, right, given = operands(64, 200, 64, {}, draw)
    left, right = (np.asarray(array, np.float64) for array in given)
    bound = np.abs(left) @ np.abs(right)
    assert (np.abs(multiply_matrices(*given) - left @ right) <= 4e-7 * bound).all()


@on_a_matrix_unit
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row_and_is_not_finite(number):
    _, _, (left, right) = operands(70, 90, 80, {}, normal)
    y = np.asarray(multiply_matrices(left.at[33, 2].set(number), right))
    assert not np.isfinite(y[33]).any()
    np.testing.assert_array_equal(
        np.delete(y, 33, 0), np.delete(multiply_matrices(left, right), 33, 0)
    )


# Of a depth that is added up at once, and of more; outputs that a cache keeps, and that none does.
@on_a_matrix_unit
@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("finished", [0, 2, 3])
@pytest.mark.parametrize(
    ("rows", "depth", "columns"), [(70, 90, 95), (70, 600, 95), (8200, 33, 1024)]
)
def test_products_are_finished_before_they_are_stored(rectify, finished, rows, depth, columns):
    left, right, given = operands(rows, depth, columns, {}, normal)
    generator = np.random.default_rng(1)
    finish = [normal(generator, shape) for shape in ((columns,), (columns,), (rows, columns))]
    finish = finish[:finished]
    exact = left.astype(np.float64) @ right.astype(np.float64)
    if finished:
        exact = exact * finish[0] + finish[1] + sum(finish[2:])
    exact = np.maximum(exact, 0) if rectify else exact
    product = multiply_matrices(*given, tuple(map(jnp.asarray, finish)), rectify=rectify)
    assert error(product, exact) <= 2e-7
    assert (np.asarray(product).min() >= 0) == rectify


@on_a_matrix_unit
def test_again_it_gives_the_same_bits():
    _, _, given = operands(300, 300, 300, {}, normal)
    once, again = multiply_matrices(*given), multiply_matrices(*given)
    assert np.asarray(once).tobytes() == np.asarray(again).tobytes()


@on_a_matrix_unit
@pytest.mark.parametrize(
    ("shape", "features", "used"),
    [
        ((5, 200, 64), 64, 3),  # rows of all axes but the last
        ((65, 100), 100, 3),
        ((64, 100), 200, 0),  # few rows
        ((1000, 31), 64, 0),  # few inputs
        ((1000, 64), 31, 0),  # few features
        ((127, 64), 64, 0),  # fewer than 2^19 products
        ((120, 3000), 600, 3),  # more than the kernel for sums over rows is for
        ((65, 3000), 600, 0),  # few rows for so large a kernel
    ],
)
def test_a_linear_layer_and_its_gradients_are_the_units(shape, features, used):
    arrays = problem(shape, features)
    assert lowered_gradients(multiply, *arrays).count(MATRICES) == used
    assert_close(gradients(multiply, *arrays), gradients(plain, *arrays), 2e-6)


@on_a_matrix_unit
def test_other_numbers_are_xlas():
    with jax.enable_x64(True):
        arrays = (array.astype(jnp.float64) for array in problem((300, 100), 100))
        assert MATRICES not in lowered_gradients(multiply, *arrays)
    arrays = (array.astype(jnp.bfloat16) for array in problem((300, 100), 100))
    assert MATRICES not in lowered_gradients(multiply, *arrays)


@on_a_matrix_unit
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_elsewhere_there_are_three_products(platform):
    x, kernel, dy = problem((300, 100), 100)
    lowered = lowered_gradients(multiply, x, kernel, dy, platform)
    assert (contractions(lowered), lowered.count("custom_call")) == (3, 0)
    assert kept(multiply, x, kernel) <= kept(plain, x, kernel)


@on_a_matrix_unit
def test_every_derivative():
    x, kernel, _ = problem((3, 50, 140), 110)
    assert_close(*(second_derivatives(f, x, kernel) for f in (multiply, plain)), 1e-5)


@on_a_matrix_unit
def test_mapped():
    x, kernel, dy = problem((3, 200, 110), 100)
    kernels = jnp.stack([kernel, -kernel, 2 * kernel])
    for places, arrays in (((0, None, 0), (x, kernel, dy)), ((0, 0, 0), (x, kernels, dy))):
        ours, theirs = (
            jax.vmap(lambda *a, f=f: gradients(f, *a), places)(*arrays) for f in (multiply, plain)
        )
        assert_close(ours, theirs, 2e-6)


@on_a_matrix_unit
def test_on_several_devices():
    arrays = problem((8, 100, 60), 70)
    assert lowered_gradients(multiply, *arrays).count(MATRICES) == 3
    assert_close(gradients_of_divided_rows(multiply, *arrays), gradients(plain, *arrays), 5e-6)


@on_a_matrix_unit
@pytest.mark.parametrize(
    ("shape", "taps", "used"),
    [
        ((1, 8, 8), 1, 0),  # few pixels
        ((1, 14, 14), 1, 1),
        ((2, 30, 30), 1, 1),
        ((1, 14, 14), 3, 1),
        ((4, 8, 8), 1, 1),
        ((1, 8, 8), 3, 0),  # few pixels
        ((1, 17, 16), 3, 1),
    ],
)
def test_convolutions_that_are_products(shape, taps, used):
    # So many channels that no other kernel is for them.
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (*shape, 416))
    kernel = jax.random.normal(keys[1], (taps, taps, 416, 416)) / (20 * taps)
    window = convolution.Window((1, 1), (taps // 2, taps // 2), (1, 1), 1)
    ours = jax.jit(lambda x, kernel: convolution.convolve(x, kernel, window))
    name = MATRICES if taps == 1 else "convolve_by_unit"
    assert ours.lower(x, kernel).as_text().count(name) == used
    theirs = jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        [(taps // 2, taps // 2)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    assert_close(ours(x, kernel), theirs, 3e-6)


@on_a_matrix_unit
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
def test_the_gradients_of_pointwise_convolutions(strides):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (3, 28, 34, 40))
    kernel = jax.random.normal(keys[1], (1, 1, 40, 70)) / 40**0.5
    window = convolution.Window(strides, (0, 0), (1, 1), 1)

    def product(x, kernel):
        return plain(x[:, :: strides[0], :: strides[1]], kernel[0, 0])

    def convolve(x, kernel):
        return convolution.convolve(x, kernel, window)

    dy = jnp.cos(product(x, kernel))
    assert lowered_gradients(convolve, x, kernel, dy).count(MATRICES) == 3
    assert_close(gradients(convolve, x, kernel, dy), gradients(product, x, kernel, dy), 2e-6)


@on_a_matrix_unit
@pytest.mark.parametrize("cell", ["rnn", "rnn_relu", "lstm", "gru"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("time", "batch", "features"), [(9, 30, 64), (100, 3, 65)])
def test_recurrent_layers_inputs_are_multiplied_by_it(cell, masked, time, batch, features, request):
    """As by the kernel of all steps alone; with the gradients of all arguments, or without."""
    equations, generator = recurrence.CELLS[cell], np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(generator.standard_normal(shape) / shape[0] ** 0.5, jnp.float32)

    width = equations.gates * features
    weights = draw(48, width), draw(width), draw(features, width), draw(width)
    state = tuple(draw(batch, features) for _ in range(equations.arrays))
    lengths = generator.integers(0, time + 1, batch)
    counts = jnp.asarray((np.arange(time)[:, None] < lengths)[..., None], jnp.float32)
    arguments = draw(time, batch, 48), weights, state

    def of(*arguments):
        def run(*arguments):
            return recurrence.recur(equations, *arguments, counts if masked else None)

        outputs, backward = jax.vjp(run, *arguments)
        return outputs, run(*arguments), backward(jax.tree.map(jnp.sin, outputs))

    program = jax.jit(of).lower(*arguments)
    text = program.as_text()
    # Of the inputs forwards, twice here, their gradient, and that of both kernels.
    assert text.count(MATRICES) == 5
    ours = program.compile()(*arguments)
    request.getfixturevalue("no_matrix_unit")
    without = jax.jit(lambda *a: of(*a)).lower(*arguments)
    assert MATRICES not in without.as_text()
    assert_close(ours, without.compile()(*arguments), 1e-5)


@on_a_matrix_unit
def test_a_refusal_of_the_system_is_named_and_done_without(monkeypatch, caplog):
    class Refused:
        def __init__(self, file):
            del file

        def prepare(self):
            return -1

    monkeypatch.setattr(library.ctypes, "CDLL", Refused)
    assert library._registered.__wrapped__("matrices", "float32") is None
    assert "matrices.cc, XLA's operations are used: the system does not let" in caplog.text


HAS_UNIT = "avx512f avx512bw avx512_bf16 amx_tile amx_bf16"


@pytest.mark.parametrize(
    ("features", "dtype", "switch", "fits"),
    [
        (HAS_UNIT, "float32", "", True),
        (HAS_UNIT, "float32", "no-matrix-unit", False),
        (HAS_UNIT, "float64", "", False),
        (HAS_UNIT.replace("amx_bf16", "amx_int8"), "float32", "", False),
        ("", "float32", "", False),
    ],
)
def test_only_where_there_is_a_unit_it_is_asked_for(monkeypatch, features, dtype, switch, fits):
    asked = []
    monkeypatch.setenv(library.SWITCH, switch)
    monkeypatch.setattr(library.process, "processor_features", lambda: features)
    monkeypatch.setattr(library, "_registered", lambda *source: asked.append(source))
    monkeypatch.setattr(library, "_compiler", lambda: "/usr/bin/c++")
    library.target(MATRICES, dtype)
    assert asked == ([("matrices", dtype)] if fits else [])
    assert library.describe().endswith("matrix unit") == (fits or dtype == "float64")
