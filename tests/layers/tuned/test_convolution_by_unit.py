"""Convolution by the processor's matrix unit against XLA's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from tuned_forms import (
    assert_close,
    contractions,
    gradients,
    gradients_of_divided_rows,
    kept,
    lowered_gradients,
    on_a_matrix_unit,
    second_derivatives,
)

from zoo.layers.tuned.convolution import Window, convolve

pytestmark = on_a_matrix_unit

SAME = Window(strides=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1)
STEPS = Window(strides=(2, 3), padding=(3, 1), dilation=(1, 1), groups=1)
# So many channels that tiles are not for them.
WIDE = {"channels": 384, "features": 352, "size": (7, 6), "batch": 2}
FEATURES = WIDE | {"features": 353}
WINDOWS = {"kernel_size": (5, 4), "size": (17, 22)}
FORMS = [(SAME, WIDE), (SAME, FEATURES), (STEPS, WINDOWS)]
TUNED = pytest.mark.parametrize(("window", "sizes"), FORMS)


def plain(x, kernel, window):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        [(p, p) for p in window.padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )


def problem(window, *, size=(9, 8), kernel_size=(3, 3), channels=64, features=48, batch=3):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, *size, channels))
    kernel = jax.random.normal(keys[1], (*kernel_size, channels, features))
    shape = jax.eval_shape(lambda: plain(x, kernel, window)).shape
    return x, kernel, jax.random.normal(keys[2], shape)


def ours_and_theirs(window):
    return functools.partial(convolve, window=window), functools.partial(plain, window=window)


@pytest.mark.parametrize(
    ("window", "sizes"),
    [
        *FORMS,
        (SAME, WIDE | {"batch": 41}),  # several parts of the depth for the kernel's gradient
        (SAME, WIDE | {"size": (1, 40)}),
        (Window((1, 1), (2, 0), (1, 1), 1), {"kernel_size": (3, 1), "features": 32}),
        (Window((1, 1), (0, 0), (1, 1), 1), {"kernel_size": (2, 4), "size": (11, 11)}),
        (Window((1, 1), (3, 5), (1, 1), 1), {"kernel_size": (2, 3), "features": 64}),  # zeros alone
        (Window((2, 2), (1, 1), (1, 1), 1), {"channels": 32, "features": 37, "size": (13, 15)}),
        (Window((3, 1), (0, 2), (1, 1), 1), {"batch": 1, "size": (40, 23)}),
        (Window((7, 6), (0, 0), (1, 1), 1), {"kernel_size": (7, 6), "size": (56, 48)}),
        (Window((1, 1), (1, 1), (1, 1), 1), {"kernel_size": (1, 1), "channels": 96}),
    ],
)
def test_gradients_are_those_in_float64(window, sizes):
    arrays = problem(window, **sizes)
    ours, theirs = ours_and_theirs(window)
    tuned = jax.jit(functools.partial(gradients, ours))
    text = tuned.lower(*arrays).as_text()
    # One kernel turns the images' gradient into a convolution.
    own = window.strides == (1, 1) and arrays[1].shape[3] % 32 == 0
    assert text.count("_convolve_by_unit") == 1 + own
    assert text.count("_kernel_gradient_by_unit") == 1
    with jax.enable_x64(True):
        exact = gradients(theirs, *(np.asarray(array, np.float64) for array in arrays))
    for array, expected in zip(tuned(*arrays), exact, strict=True):
        error = np.linalg.norm(np.asarray(array, np.float64) - np.asarray(expected))
        assert error <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("window", "sizes"),
    [
        (SAME, WIDE | {"channels": 400}),  # no multiple of 32
        (SAME, WIDE | {"batch": 1}),  # few pixels
        (SAME, WIDE | {"features": 31}),  # few features
        (Window((2, 1), (1, 1), (1, 2), 1), {"size": (17, 22)}),  # dilation
    ],
)
def test_what_it_is_not_for(window, sizes):
    arrays = problem(SAME, **sizes)
    lowered = jax.jit(lambda x, kernel: convolve(x, kernel, window)).lower(*arrays[:2])
    assert "by_unit" not in lowered.as_text()


@TUNED
def test_every_derivative(window, sizes):
    x, kernel, _ = problem(window, **sizes)
    second = jax.jit(second_derivatives, static_argnums=0)
    assert_close(*(second(f, x, kernel) for f in ours_and_theirs(window)), 1e-5)


@TUNED
def test_mapped(window, sizes):
    x, kernel, dy = problem(window, **sizes)
    x, dy = x[:, None], dy[:, None]
    kernels = jnp.stack([kernel * (i + 1) for i in range(x.shape[0])])
    for places, given in ((0, None, 0), kernel), ((0, 0, 0), kernels):
        ours, theirs = (
            jax.vmap(lambda *a, f=f: gradients(f, *a), places)(x, given, dy)
            for f in ours_and_theirs(window)
        )
        assert_close(ours, theirs, 3e-6)


@TUNED
def test_on_several_devices(window, sizes):
    arrays = problem(window, **sizes | {"batch": 8})
    ours, theirs = ours_and_theirs(window)
    assert_close(gradients_of_divided_rows(ours, *arrays), gradients(theirs, *arrays), 5e-6)


@TUNED
def test_inside_a_shard_map(window, sizes):
    x, kernel, dy = problem(window, **sizes | {"batch": 8})
    ours, theirs = ours_and_theirs(window)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    rows, whole = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(
        functools.partial(gradients, ours),
        mesh=mesh,
        in_specs=(rows, whole, rows),
        out_specs=(rows, rows, whole),
    )
    assert_close(jax.jit(mapped)(x, kernel, dy), gradients(theirs, x, kernel, dy), 5e-6)


@TUNED
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_elsewhere_there_are_three_convolutions(window, sizes, platform):
    x, kernel, dy = problem(window, **sizes)
    ours, theirs = ours_and_theirs(window)
    lowered = lowered_gradients(ours, x, kernel, dy, platform)
    assert (contractions(lowered), lowered.count("custom_call")) == (3, 0)
    assert kept(ours, x, kernel) <= kept(theirs, x, kernel)


@TUNED
def test_each_time_the_same_bits(window, sizes):
    arrays = problem(window, **sizes | {"batch": 32})
    program = jax.jit(functools.partial(gradients, ours_and_theirs(window)[0]))
    first = program(*arrays)
    for _ in range(3):
        assert_close(program(*arrays), first, 0.0)


@TUNED
def test_without_the_unit(window, sizes, no_matrix_unit):
    arrays = problem(window, **sizes)
    ours, theirs = ours_and_theirs(window)
    assert "by_unit" not in lowered_gradients(ours, *arrays)
    assert_close(gradients(ours, *arrays), gradients(theirs, *arrays), 5e-6)
