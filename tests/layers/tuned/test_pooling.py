"""The tuned gradient against XLA's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from zoo.layers.tuned.pooling import max_pool_tiles


def gradient(function, x, dy):
    output, backward = jax.vjp(function, x)
    return output, backward(dy)[0]


def images(shape, dtype=jnp.float32):
    # Few distinct values: many tiles have several largest ones.
    return jax.random.randint(jax.random.key(0), shape, -2, 3).astype(dtype)


@pytest.mark.parametrize("window", [(2, 2), (3, 2), (1, 1), (4, 5)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradient_is_xlas(window, dtype):
    x = images((3, 9, 11, 4), dtype)
    shape = (3, 9 // window[0], 11 // window[1], 4)
    dy = jax.random.normal(jax.random.key(1), shape, dtype)
    ours = jax.jit(lambda x, dy: gradient(lambda x: max_pool_tiles(x, window), x, dy))(x, dy)
    theirs = gradient(lambda x: nn.max_pool(x, window, strides=window), x, dy)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_first_nan_is_the_largest():
    x = jnp.array([[1.0, jnp.nan], [jnp.nan, 2.0]]).reshape(1, 2, 2, 1)
    y, dx = gradient(lambda x: max_pool_tiles(x, (2, 2)), x, jnp.ones((1, 1, 1, 1)))
    assert jnp.isnan(y).all()
    np.testing.assert_array_equal(dx.ravel(), [0, 1, 0, 0])


def test_mapped_and_divided():
    x, dy = images((8, 6, 6, 2)), jnp.ones((8, 3, 3, 2))

    def both(x, dy):
        return gradient(lambda x: max_pool_tiles(x, (2, 2)), x, dy)

    expected = both(x, dy)
    mapped = jax.vmap(both)(x[:, None], dy[:, None])
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    compiled = jax.jit(both, in_shardings=rows, out_shardings=rows).lower(x, dy).compile()
    assert "all-gather" not in compiled.as_text()
    for a, b, c in zip(expected, mapped, compiled(x, dy), strict=True):
        np.testing.assert_array_equal(b[:, 0], a)
        np.testing.assert_array_equal(c, a)


def test_second_derivatives_in_reverse():
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 1))

    def second(function):
        def outer(x):
            return (jax.grad(lambda x: (function(x) ** 3).sum())(x) ** 2).sum()

        return jax.grad(outer)(x)

    np.testing.assert_allclose(
        second(lambda x: max_pool_tiles(x, (2, 2))),
        second(lambda x: nn.max_pool(x, (2, 2), strides=(2, 2))),
        rtol=1e-6,
    )


def test_other_platforms_get_xlas_own_form():
    x, dy = images((1, 4, 4, 1)), jnp.ones((1, 2, 2, 1))
    lowered = (
        jax.jit(lambda x, dy: gradient(lambda x: max_pool_tiles(x, (2, 2)), x, dy))
        .trace(x, dy)
        .lower(lowering_platforms=("tpu",))
        .as_text()
    )
    assert "select_and_scatter" in lowered
    assert "concatenate" not in lowered
