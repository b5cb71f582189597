"""The linear layer's product and derivatives against the plain product's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from zoo.layers.tuned.linear import multiply


def problem(shape=(3, 5, 7), features=70, dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], shape, dtype)
    kernel = jax.random.normal(keys[1], (shape[-1], features), dtype)
    return x, kernel, jax.random.normal(keys[2], (*shape[:-1], features), dtype)


def plain(x, kernel):
    return x @ kernel


def gradients(function, x, kernel, dy):
    output, backward = jax.vjp(function, x, kernel)
    return output, *backward(dy)


def ours_and_theirs(x, kernel, dy):
    return gradients(multiply, x, kernel, dy), gradients(plain, x, kernel, dy)


def assert_close(ours, theirs, tolerance):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max(initial=0) <= tolerance * np.abs(b).max(initial=0)


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
    x, kernel, dy = problem((8, 5, 7), dtype=jnp.float32)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    compiled = (
        jax.jit(
            lambda *arrays: gradients(multiply, *arrays),
            in_shardings=(rows, whole, rows),
            out_shardings=(rows, rows, whole),
        )
        .lower(x, kernel, dy)
        .compile()
    )
    assert "all-gather" not in compiled.as_text()
    assert "all-reduce" in compiled.as_text()
    assert_close(compiled(x, kernel, dy), gradients(plain, x, kernel, dy), 1e-5)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_elsewhere_it_is_three_products_and_keeps_what_they_need(platform):
    arrays = problem(dtype=jnp.float32)
    lowered = (
        jax.jit(lambda *arrays: gradients(multiply, *arrays))
        .trace(*arrays)
        .lower(lowering_platforms=(platform,))
        .as_text()
    )
    assert lowered.count("stablehlo.dot_general") == 3
    assert "concatenate" not in lowered

    def kept(function):
        _, backward = jax.vjp(function, *arrays[:2])
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert kept(multiply) <= kept(plain)


@pytest.mark.parametrize(("differentiated", "products"), [((0,), 2), ((1,), 2), ((0, 1), 3)])
def test_no_product_for_what_is_not_differentiated(differentiated, products):
    x, kernel, _ = problem(dtype=jnp.float32)
    gradient = jax.grad(lambda x, kernel: (multiply(x, kernel) ** 2).sum(), differentiated)
    lowered = jax.jit(gradient).lower(x, kernel).as_text()
    assert lowered.count("stablehlo.dot_general") == products


@pytest.mark.parametrize(("features", "widened"), [(63, 0), (64, 1)])
def test_on_a_cpu_the_outputs_gradient_is_widened(features, widened):
    arrays = problem(features=features, dtype=jnp.float32)
    lowered = jax.jit(lambda *arrays: gradients(multiply, *arrays)).lower(*arrays).as_text()
    assert lowered.count("stablehlo.concatenate") == widened
