"""The tuned gradient against XLA's own, wherever it may run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from zoo.layers.tuned.convolution import Window, convolve

SAME = Window(strides=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1)


def plain(x, kernel, window):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        [(p, p) for p in window.padding],
        rhs_dilation=window.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=window.groups,
    )


def problem(window, *, size=(9, 7), kernel_size=(3, 3), channels=8, batch=3, dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, *size, channels), dtype)
    kernel = jax.random.normal(keys[1], (*kernel_size, channels // window.groups, 6), dtype)
    shape = jax.eval_shape(lambda: plain(x, kernel, window)).shape
    return x, kernel, jax.random.normal(keys[2], shape, dtype)


def gradients(function, window, x, kernel, dy):
    output, backward = jax.vjp(lambda x, kernel: function(x, kernel, window), x, kernel)
    return output, *backward(dy)


def assert_close(ours, theirs, tolerance):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize(
    ("window", "sizes"),
    [
        (SAME, {}),
        (SAME, {"size": (1, 1)}),
        (SAME, {"size": (13, 5), "batch": 1}),
        (Window((2, 2), (1, 1), (1, 1), 1), {}),
        (Window((2, 3), (0, 2), (2, 1), 1), {"size": (11, 10), "kernel_size": (2, 5)}),
        (Window((1, 1), (0, 0), (1, 1), 1), {"kernel_size": (1, 1)}),
        (Window((2, 2), (3, 3), (1, 1), 1), {"kernel_size": (7, 7), "size": (8, 8)}),
        (Window((1, 1), (1, 1), (1, 1), 2), {}),
        (SAME, {"channels": 3}),
    ],
)
def test_gradients_are_xlas(window, sizes):
    with jax.enable_x64(True):
        arrays = problem(window, **sizes)
        ours = jax.jit(functools.partial(gradients, convolve, window))(*arrays)
        assert_close(ours, gradients(plain, window, *arrays), 1e-13)


def test_many_chunks_add_up(monkeypatch):
    monkeypatch.setattr("zoo.layers.tuned.convolution._CHUNK", 1)
    with jax.enable_x64(True):
        arrays = problem(SAME)
        assert_close(gradients(convolve, SAME, *arrays), gradients(plain, SAME, *arrays), 1e-13)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
def test_lower_precisions_keep_their_type(dtype, tolerance):
    arrays = problem(SAME, dtype=dtype)
    assert_close(gradients(convolve, SAME, *arrays), gradients(plain, SAME, *arrays), tolerance)


def test_mapped_over_examples_and_kernels():
    x, kernel, dy = problem(SAME, dtype=jnp.float32)
    kernels = jnp.stack([kernel, 2 * kernel, -kernel])
    one_by_one = [
        gradients(convolve, SAME, x[i : i + 1], kernels[i], dy[i : i + 1]) for i in range(3)
    ]
    mapped = jax.vmap(functools.partial(gradients, convolve, SAME))(
        x[:, None], kernels, dy[:, None]
    )
    assert_close(mapped, jax.tree.map(lambda *a: jnp.stack(a), *one_by_one), 1e-5)


def test_second_derivatives_in_reverse():
    with jax.enable_x64(True):
        x, kernel, _ = problem(SAME, size=(4, 3))

        def second(function):
            def inner(x, kernel):
                return (function(x, kernel, SAME) ** 3).sum()

            def outer(x, kernel):
                return sum((g**2).sum() for g in jax.grad(inner, argnums=(0, 1))(x, kernel))

            return jax.grad(outer, argnums=(0, 1))(x, kernel)

        assert_close(second(convolve), second(plain), 1e-12)


def test_forward_mode_is_refused():
    x, kernel, _ = problem(SAME, dtype=jnp.float32)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: convolve(x, kernel, SAME), (x,), (x,))


def test_divided_batches_stay_divided():
    x, kernel, dy = problem(SAME, batch=8, dtype=jnp.float32)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    compiled = (
        jax.jit(
            functools.partial(gradients, convolve, SAME),
            in_shardings=(rows, whole, rows),
            out_shardings=(rows, rows, whole),
        )
        .lower(x, kernel, dy)
        .compile()
    )
    assert "all-gather" not in compiled.as_text()
    assert "all-reduce" in compiled.as_text()
    assert_close(compiled(x, kernel, dy), gradients(plain, SAME, x, kernel, dy), 1e-5)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_platforms_get_xlas_own_form_and_keep_no_more(platform):
    arrays = problem(SAME, dtype=jnp.float32)
    lowered = (
        jax.jit(functools.partial(gradients, convolve, SAME))
        .trace(*arrays)
        .lower(lowering_platforms=(platform,))
        .as_text()
    )
    assert lowered.count("stablehlo.convolution") == 3
    assert "stablehlo.while" not in lowered
    assert "stablehlo.dot_general" not in lowered

    def kept(function):
        _, backward = jax.vjp(lambda x, kernel: function(x, kernel, SAME), *arrays[:2])
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert kept(convolve) <= kept(plain)
