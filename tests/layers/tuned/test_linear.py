"""The linear layer's product and derivatives against the plain product's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tuned_forms import (
    assert_close,
    compiled,
    contractions,
    gradients,
    gradients_of_divided_rows,
    kept,
    lowered_gradients,
)

from zoo.layers.tuned.linear import multiply, multiply_by_each

KERNEL = "multiply_rows"


def problem(shape=(3, 5, 7), features=70, dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], shape, dtype)
    kernel = jax.random.normal(keys[1], (shape[-1], features), dtype)
    return x, kernel, jax.random.normal(keys[2], (*shape[:-1], features), dtype)


def plain(x, kernel):
    return x @ kernel


def ours_and_theirs(x, kernel, dy):
    return gradients(multiply, x, kernel, dy), gradients(plain, x, kernel, dy)


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

        def hessian_product(function):
            def inner(x, kernel):
                return (function(x, kernel) ** 3).sum()

            gradient = jax.grad(inner, argnums=(0, 1))
            forward_over_reverse = jax.jvp(gradient, (x, kernel), tangents)[1]

            def outer(x, kernel):
                return sum((g**2).sum() for g in gradient(x, kernel))

            return forward_over_reverse, jax.grad(outer, argnums=(0, 1))(x, kernel)

        assert_close(hessian_product(multiply), hessian_product(plain), 1e-13)


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
    assert contractions(lowered) + lowered.count(KERNEL) == products


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
        assert KERNEL in jax.jit(multiply).lower(x, kernel).as_text()
        exact = np.asarray(x) @ np.asarray(kernel)
        assert_close(multiply(x, kernel), exact, 1e-14)
        x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
        assert_close(multiply(x, kernel), exact.astype(np.float32), 2e-6)


@compiled
@pytest.mark.parametrize(("shape", "used"), [((64, 7), 1), ((4, 16, 7), 1), ((65, 7), 0)])
def test_the_kernel_is_for_few_rows(shape, used):
    x, kernel, _ = problem(shape, dtype=jnp.float32)
    assert jax.jit(multiply).lower(x, kernel).as_text().count(KERNEL) == used


@compiled
def test_numbers_that_are_not_finite_stay_in_their_row():
    x, kernel, _ = problem((14, 300), 70, jnp.float32)
    y = multiply(x.at[13, 2].set(jnp.nan), kernel)
    assert jnp.isnan(y[13]).all()
    np.testing.assert_array_equal(y[:13], multiply(x, kernel)[:13])


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

        def hessian_product(function):
            gradient = jax.grad(lambda *a: (function(*a) ** 3).sum(), argnums=(0, 1))
            return jax.jvp(gradient, (x, kernels), tangents)[1]

        assert_close(hessian_product(by_each), hessian_product(plain), 1e-13)
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
    assert contractions(lowered) + lowered.count(KERNEL) == products


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
