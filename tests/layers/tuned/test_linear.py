"""The linear layer's product and derivatives against the plain product's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tuned_forms import (
    MATRICES,
    assert_close,
    compiled,
    contractions,
    gradients,
    gradients_of_divided_rows,
    kept,
    lowered_gradients,
)

from zoo.layers.tuned.linear import add_up_rows, multiply, multiply_by_each
from zoo.native import library

# What calls a kernel instead of a product.
FEW_ROWS, MANY_ROWS = "multiply_rows", "contract_rows"


def problem(shape=(3, 5, 7), features=70, dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], shape, dtype)
    kernel = jax.random.normal(keys[1], (shape[-1], features), dtype)
    return x, kernel, jax.random.normal(keys[2], (*shape[:-1], features), dtype)


def plain(x, kernel):
    return x @ kernel


def products_of(lowered):
    return contractions(lowered) + sum(map(lowered.count, (FEW_ROWS, MANY_ROWS, MATRICES)))


def ours_and_theirs(x, kernel, dy):
    return gradients(multiply, x, kernel, dy), gradients(plain, x, kernel, dy)


def second_derivatives(function, x, kernel):
    """Forward over reverse, and reverse over reverse."""

    def inner(x, kernel):
        return (function(x, kernel) ** 3).sum()

    gradient = jax.grad(inner, argnums=(0, 1))

    def outer(x, kernel):
        return sum((g**2).sum() for g in gradient(x, kernel))

    forward = jax.jvp(gradient, (x, kernel), (jnp.cos(x), jnp.sin(kernel)))[1]
    return forward, jax.grad(outer, argnums=(0, 1))(x, kernel)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (4, 1), (3, 5, 7), (2, 3, 2, 5), (0, 7)])
@pytest.mark.parametrize("features", [1, 63, 64, 200])
def test_gradients_are_the_plain_products(shape, features):
    with jax.enable_x64(True):
        assert_close(*jax.jit(ours_and_theirs)(*problem(shape, features)), 1e-14)


def test_forward_mode_and_second_derivatives():
    with jax.enable_x64(True):
        x, kernel, _ = problem()
        tangents = (jnp.cos(x), jnp.sin(kernel))
        assert_close(
            jax.jvp(multiply, (x, kernel), tangents), jax.jvp(plain, (x, kernel), tangents), 1e-14
        )

        assert_close(*(second_derivatives(f, x, kernel) for f in (multiply, plain)), 1e-13)


@pytest.mark.parametrize(
    ("x_dtype", "kernel_dtype", "tolerance"),
    [
        (jnp.float32, jnp.float32, 1e-6),
        (jnp.bfloat16, jnp.bfloat16, 1e-2),
        (jnp.bfloat16, jnp.float32, 1e-2),
        (jnp.float32, jnp.bfloat16, 1e-2),
    ],
)
def test_types_are_those_of_the_plain_product(x_dtype, kernel_dtype, tolerance):
    x, kernel, dy = problem(dtype=jnp.float32)
    x, kernel = x.astype(x_dtype), kernel.astype(kernel_dtype)
    dy = dy.astype(jnp.result_type(x, kernel))
    assert_close(*ours_and_theirs(x, kernel, dy), tolerance)


def test_mapped_over_rows_and_kernels():
    with jax.enable_x64(True):
        x, kernel, dy = problem()
        kernels = jnp.stack([kernel, 2 * kernel, -kernel])
        mapped = jax.vmap(ours_and_theirs)(x, kernels, dy)
        assert_close(*mapped, 1e-14)


def test_divided_batches_stay_divided():
    arrays = problem((8, 5, 7), dtype=jnp.float32)
    assert_close(gradients_of_divided_rows(multiply, *arrays), gradients(plain, *arrays), 1e-5)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_elsewhere_it_is_three_products_and_keeps_what_they_need(platform):
    x, kernel, dy = problem(dtype=jnp.float32)
    lowered = lowered_gradients(multiply, x, kernel, dy, platform)
    assert contractions(lowered) == 3
    assert "concatenate" not in lowered
    assert kept(multiply, x, kernel) <= kept(plain, x, kernel)


@pytest.mark.parametrize(("differentiated", "products"), [((0,), 2), ((1,), 2), ((0, 1), 3)])
def test_no_product_for_what_is_not_differentiated(differentiated, products):
    arrays = problem(dtype=jnp.float32)
    lowered = lowered_gradients(multiply, *arrays, differentiated=differentiated)
    assert products_of(lowered) == products


@pytest.mark.parametrize(("features", "widened"), [(63, 0), (64, 1)])
def test_on_a_cpu_the_outputs_gradient_is_widened(features, widened):
    arrays = problem(features=features, dtype=jnp.float32)
    assert lowered_gradients(multiply, *arrays).count("stablehlo.concatenate") == widened


# Groups of 12 rows, whole or not; blocks of 256 inputs; panels of 32 features (16 of float64).
@compiled
@pytest.mark.parametrize("rows", [1, 3, 4, 11, 12, 13, 29, 64])
@pytest.mark.parametrize("inputs", [1, 255, 256, 257, 600])
@pytest.mark.parametrize("features", [64, 65, 95, 130])
def test_the_kernels_product_of_few_rows(rows, inputs, features):
    with jax.enable_x64(True):
        x, kernel, _ = problem((rows, inputs), features)
        assert FEW_ROWS in jax.jit(multiply).lower(x, kernel).as_text()
        exact = np.asarray(x) @ np.asarray(kernel)
        assert_close(multiply(x, kernel), exact, 1e-14)
        x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
        assert_close(multiply(x, kernel), exact.astype(np.float32), 2e-6)


@compiled
@pytest.mark.parametrize(("shape", "used"), [((64, 7), 1), ((4, 16, 7), 1), ((65, 7), 0)])
def test_the_kernel_is_for_few_rows(shape, used):
    x, kernel, _ = problem(shape, dtype=jnp.float32)
    assert jax.jit(multiply).lower(x, kernel).as_text().count(FEW_ROWS) == used


@compiled
def test_numbers_that_are_not_finite_stay_in_their_row():
    x, kernel, _ = problem((14, 300), 70, jnp.float32)
    y = multiply(x.at[13, 2].set(jnp.nan), kernel)
    assert jnp.isnan(y[13]).all()
    np.testing.assert_array_equal(y[:13], multiply(x, kernel)[:13])


# Blocks of 192 rows; groups of 12 inputs; panels of 32 features (16 of float64), of which one or
# several chunks are added up; rows in one part or two.
@compiled
@pytest.mark.parametrize("rows", [65, 192, 193, 385, 1000])
@pytest.mark.parametrize(("inputs", "features"), [(500, 65), (541, 130), (36, 1030), (3000, 64)])
def test_the_kernels_sum_over_many_rows(rows, inputs, features):
    with jax.enable_x64(True):
        x, kernel, dy = problem((rows, inputs), features)
        lowered = lowered_gradients(multiply, x, kernel, dy)
        assert (contractions(lowered), lowered.count(MANY_ROWS)) == (2, 1)
        ours, theirs = (jax.jit(lambda *a, f=f: gradients(f, *a)) for f in (multiply, plain))
        assert_close(ours(x, kernel, dy), theirs(x, kernel, dy), 1e-14)
        exact = (np.asarray(x).T @ np.asarray(dy)).astype(np.float32)
        x, dy = x.astype(jnp.float32), dy.astype(jnp.float32)
        assert_close(jax.jit(add_up_rows)(x, dy), exact, 2e-6)


@compiled
@pytest.mark.parametrize(
    ("shape", "features", "used"),
    [
        ((5, 200, 64), 64, 1),  # rows of all axes but the last
        ((1024, 32), 64, 1),
        ((1023, 32), 64, 0),  # fewer than 2^21 products
        ((64, 600), 64, 0),  # few rows
        ((3000, 15), 64, 0),  # few inputs
        ((1000, 64), 63, 0),  # few features
        ((65, 2048), 512, 1),
        ((65, 2048), 513, 0),  # a kernel of more than 2^20 numbers
        ((65, 4097), 64, 0),  # many inputs
    ],
)
def test_the_kernel_is_for_many_rows(shape, features, used, no_matrix_unit):
    arrays = problem(shape, features, jnp.float32)
    assert lowered_gradients(multiply, *arrays).count(MANY_ROWS) == used


@compiled
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_elsewhere_many_rows_are_three_products(platform):
    x, kernel, dy = problem((300, 100), 100, jnp.float32)
    lowered = lowered_gradients(multiply, x, kernel, dy, platform)
    assert (contractions(lowered), lowered.count("custom_call")) == (3, 0)
    assert kept(multiply, x, kernel) <= kept(plain, x, kernel)


@compiled
def test_only_a_gradient_asks_for_the_kernel_of_many_rows(monkeypatch):
    """What only predicts does not wait for its compilation; where that fails XLA's is used."""
    asked = []
    monkeypatch.setattr(library, "target", lambda kernel, dtype: asked.append(kernel))
    x, kernel, dy = problem((300, 100), 100, jnp.float32)
    jax.jit(multiply).lower(x, kernel)
    # Without a matrix unit this compiles nothing; with one, predicting needs it.
    assert set(asked) == {MATRICES}
    lowered = lowered_gradients(multiply, x, kernel, dy)
    assert set(asked) == {MATRICES, MANY_ROWS}
    assert (contractions(lowered), lowered.count("custom_call")) == (3, 0)
    assert_close(gradients(multiply, x, kernel, dy), gradients(plain, x, kernel, dy), 1e-6)


@compiled
def test_many_rows_have_every_derivative():
    with jax.enable_x64(True):
        x, kernel, _ = problem((3, 50, 140), 110)
        assert_close(*(second_derivatives(f, x, kernel) for f in (multiply, plain)), 1e-13)
        tangents = (jnp.cos(x), jnp.sin(kernel))
        forward = (jax.jvp(f, (x, kernel), tangents) for f in (multiply, plain))
        assert_close(*forward, 1e-14)


@compiled
def test_many_rows_mapped():
    """Over rows, over kernels, and over examples whose cotangent is the same for all."""
    with jax.enable_x64(True):
        x, kernel, dy = problem((3, 200, 110), 100)
        kernels = jnp.stack([kernel, -kernel, 2 * kernel])
        for places, arrays in (((0, None, 0), (x, kernel, dy)), ((0, 0, 0), (x, kernels, dy))):
            mapped = (
                jax.vmap(lambda *a, f=f: gradients(f, *a), places)(*arrays)
                for f in (multiply, plain)
            )
            assert_close(*mapped, 1e-14)
        of_each = (
            jax.vmap(jax.grad(lambda kernel, x, f=f: f(x, kernel).sum()), (None, 0))(kernel, x)
            for f in (multiply, plain)
        )
        assert_close(*of_each, 1e-14)


@compiled
def test_many_rows_on_several_devices(no_matrix_unit):
    arrays = problem((8, 100, 60), 70, jnp.float32)
    assert MANY_ROWS in lowered_gradients(multiply, *arrays)
    assert_close(gradients_of_divided_rows(multiply, *arrays), gradients(plain, *arrays), 1e-5)


def by_each(x, kernels):
    return jnp.concatenate(multiply_by_each(x, jnp.split(kernels, [40, 110], axis=1)), axis=-1)


# Rows of which kernels are put together, and few rows, of which they are not.
@pytest.mark.parametrize("shape", [(3, 40, 30), (64, 30)])
def test_several_kernels_at_once(shape):
    with jax.enable_x64(True):
        x, kernels, dy = problem(shape, 190)
        assert_close(gradients(by_each, x, kernels, dy), gradients(plain, x, kernels, dy), 1e-14)
        tangents = (jnp.cos(x), jnp.sin(kernels))
        assert_close(
            jax.jvp(by_each, (x, kernels), tangents), jax.jvp(plain, (x, kernels), tangents), 1e-14
        )

        assert_close(*(second_derivatives(f, x, kernels) for f in (by_each, plain)), 1e-13)
        xs, dys = jnp.stack([x, -x, 2 * x]), jnp.stack([dy, dy, -dy])
        mapped = (
            jax.vmap(lambda *a, f=f: gradients(f, *a), (0, None, 0)) for f in (by_each, plain)
        )
        assert_close(*(f(xs, kernels, dys) for f in mapped), 1e-14)


@pytest.mark.parametrize(
    ("shape", "products"),
    [((65, 30), 3), ((64, 30), 9), ((2, 350, 1009), 3), ((701, 1009), 9)],
)
def test_several_kernels_are_put_together_for_some_sizes(shape, products):
    lowered = lowered_gradients(by_each, *problem(shape, 190, jnp.float32))
    assert products_of(lowered) == products


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_elsewhere_several_kernels_stay_apart(platform):
    x, kernels, dy = problem((3, 40, 30), 190, jnp.float32)
    kernels, dys = (jnp.split(a, [40, 110], axis=-1) for a in (kernels, dy))
    lowered = lowered_gradients(multiply_by_each, x, kernels, dys, platform)
    assert contractions(lowered) == 9
    assert "concatenate" not in lowered
    assert kept(multiply_by_each, x, kernels) <= kept(lambda x, ks: [x @ k for k in ks], x, kernels)


def test_several_kernels_of_divided_batches():
    arrays = problem((8, 40, 30), 190, jnp.float32)
    assert_close(gradients_of_divided_rows(by_each, *arrays), gradients(plain, *arrays), 1e-5)


def test_several_kernels_have_a_common_type():
    x, kernel, _ = problem((3, 40, 30), 70, jnp.bfloat16)
    ys = multiply_by_each(x, [kernel, kernel.astype(jnp.float32)])
    assert [y.dtype for y in ys] == [jnp.float32, jnp.float32]
