"""The tuned forms and derivatives against XLA's own, wherever they may run."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec
from tuned_forms import (
    assert_close,
    contractions,
    gradients,
    gradients_of_divided_rows,
    kept,
    lowered_gradients,
)

from zoo.layers.tuned.convolution import Window, convolve
from zoo.native import library

SAME = Window(strides=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1)
POINT = Window(strides=(2, 1), padding=(0, 0), dilation=(1, 1), groups=1)
# With at least 16 channels this is XLA's own with the channels in another order.
STRIDED = Window(strides=(2, 1), padding=(1, 1), dilation=(1, 2), groups=1)
MANY = {"channels": 17}
# With at least 64 channels, features and pixels this is Winograd's in XLA's operations.
WIDE = {"channels": 64, "features": 66, "size": (9, 8)}
# With at least 256 pixels and 16 channels and features this is Winograd's in a kernel of our own.
LARGE = {"channels": 17, "features": 33, "size": (17, 16)}
# With fewer than 16 channels, or with strides, this is windows times the kernel, ours as well.
STEPS = Window(strides=(2, 1), padding=(2, 1), dilation=(1, 1), groups=1)
FEW = {"channels": 3, "features": 33, "size": (17, 16), "kernel_size": (5, 3)}
# With at least 64 features and few pixels, a product by a kernel of our own, unless differentiated.
POINTS = {"channels": 17, "features": 66}
SMALL = {"channels": 17, "features": 66, "size": (5, 4)}
# With more than 256 pixels and at least 16 channels and features, rows times the kernel, ours as
# well; with many products, so is the kernel's gradient.
PIXELS = {**POINTS, "size": (17, 16)}
MANY_PIXELS = {"channels": 64, "features": 82, "size": (34, 16)}
FORMS = [
    (POINT, {}),
    (POINT, POINTS),
    (POINT, LARGE),
    (POINT, PIXELS),
    (POINT, MANY_PIXELS),
    (STRIDED, MANY),
    (STRIDED, SMALL),
    (SAME, WIDE),
    (SAME, LARGE),
    (STEPS, FEW),
]
TUNED = pytest.mark.parametrize(("window", "sizes"), FORMS)


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


def problem(
    window, *, size=(9, 7), kernel_size=None, channels=8, features=6, batch=3, dtype=jnp.float64
):
    kernel_size = kernel_size or ((1, 1) if window == POINT else (3, 3))
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, *size, channels), dtype)
    kernel = jax.random.normal(keys[1], (*kernel_size, channels // window.groups, features), dtype)
    shape = jax.eval_shape(lambda: plain(x, kernel, window)).shape
    return x, kernel, jax.random.normal(keys[2], shape, dtype)


def ours_and_theirs(window):
    return functools.partial(convolve, window=window), functools.partial(plain, window=window)


@pytest.mark.parametrize(
    ("window", "sizes"),
    [
        (SAME, {}),
        (SAME, {"size": (1, 1)}),
        (SAME, {"size": (13, 5), "batch": 1}),
        (Window((2, 2), (1, 1), (1, 1), 1), {}),
        (Window((2, 3), (0, 2), (2, 1), 1), {"size": (11, 10), "kernel_size": (2, 5)}),
        (Window((1, 1), (0, 0), (1, 1), 1), {"kernel_size": (1, 1)}),
        (Window((1, 1), (0, 0), (3, 2), 1), {"kernel_size": (1, 1), "channels": 1}),
        (Window((1, 1), (0, 0), (1, 1), 2), {"kernel_size": (1, 1)}),
        (Window((1, 1), (1, 0), (1, 1), 1), {"kernel_size": (1, 1)}),
        (POINT, {}),
        (POINT, {"size": (1, 1), "batch": 1}),
        (Window((2, 2), (3, 3), (1, 1), 1), {"kernel_size": (7, 7), "size": (8, 8)}),
        (Window((1, 1), (1, 1), (1, 1), 2), {}),
        (SAME, {"channels": 3}),
        (SAME, MANY),
        (STRIDED, MANY),
        (SAME, WIDE),
        (SAME, WIDE | {"size": (4, 17), "batch": 1}),
        (SAME, WIDE | {"size": (3, 8)}),
        (SAME, WIDE | {"batch": 1, "size": (7, 7)}),
        (SAME, {"channels": 66, "features": 64}),
        (Window((1, 1), (0, 2), (1, 1), 1), WIDE | {"size": (5, 5)}),
        (Window((1, 1), (2, 0), (1, 1), 1), WIDE),
        (Window((1, 1), (3, 1), (1, 1), 1), WIDE),
        (Window((2, 2), (1, 1), (1, 1), 1), WIDE),
        (Window((1, 1), (1, 1), (2, 1), 1), WIDE),
        (Window((1, 1), (1, 1), (1, 1), 2), WIDE | {"channels": 128}),
        (SAME, LARGE),
        (SAME, LARGE | {"batch": 1}),
        (SAME, LARGE | {"size": (4, 65), "batch": 1}),
        (SAME, LARGE | {"channels": 64, "features": 16, "batch": 7}),
        (SAME, LARGE | {"channels": 16, "features": 130}),
        (Window((1, 1), (0, 2), (1, 1), 1), LARGE),
        (Window((1, 1), (2, 0), (1, 1), 1), LARGE),
        (Window((1, 1), (0, 0), (1, 1), 1), LARGE),
        (Window((1, 1), (3, 1), (1, 1), 1), LARGE),
        (Window((1, 1), (1, 1), (1, 2), 1), LARGE),
        (STEPS, FEW),
        (STEPS, FEW | {"channels": 20, "features": 64}),
        (STEPS, FEW | {"channels": 1, "features": 16, "batch": 1}),
        (STEPS, FEW | {"size": (1, 256), "batch": 1}),
        (STEPS, FEW | {"kernel_size": (1, 1)}),
        (Window((3, 2), (5, 4), (1, 1), 1), FEW),
        (Window((1, 1), (0, 0), (1, 1), 1), FEW),
        (Window((7, 7), (0, 0), (1, 1), 1), FEW | {"kernel_size": (7, 7), "features": 130}),
        (Window((2, 2), (1, 1), (1, 2), 1), FEW),
        (Window((2, 2), (1, 1), (1, 1), 3), FEW),
    ],
)
def test_gradients_are_xlas(window, sizes):
    with jax.enable_x64(True):
        arrays = problem(window, **sizes)
        ours, theirs = ours_and_theirs(window)
        tuned = jax.jit(functools.partial(gradients, ours))(*arrays)
        assert_close(tuned, gradients(theirs, *arrays), 1e-13)


@pytest.mark.parametrize(("window", "sizes"), [(SAME, {}), *FORMS])
def test_forward_mode_is_xlas(window, sizes):
    with jax.enable_x64(True):
        x, kernel, _ = problem(window, **sizes)
        tangents = (jnp.cos(x), jnp.sin(kernel))

        def pushed(function):
            return jax.jvp(lambda x, kernel: function(x, kernel, window), (x, kernel), tangents)

        assert_close(pushed(convolve), pushed(plain), 1e-13)


@pytest.mark.parametrize(
    ("window", "sizes", "dtype", "tolerance"),
    [
        (POINT, {}, jnp.float32, 1e-6),
        (POINT, {}, jnp.bfloat16, 2e-2),
        (STRIDED, MANY, jnp.float32, 1e-6),
        (STRIDED, MANY, jnp.bfloat16, 2e-2),
        (SAME, WIDE, jnp.float32, 2e-6),
        (SAME, WIDE, jnp.bfloat16, 2e-2),
        (SAME, LARGE, jnp.float32, 2e-6),
        (SAME, LARGE, jnp.bfloat16, 2e-2),
        (STEPS, FEW, jnp.float32, 1e-6),
        (STEPS, FEW, jnp.bfloat16, 2e-2),
    ],
)
def test_lower_precisions_keep_their_type(window, sizes, dtype, tolerance):
    arrays = problem(window, dtype=dtype, **sizes)
    ours, theirs = ours_and_theirs(window)
    assert_close(gradients(ours, *arrays), gradients(theirs, *arrays), tolerance)


@TUNED
def test_mapped_over_examples_and_kernels(window, sizes):
    x, kernel, dy = problem(window, dtype=jnp.float32, **sizes)
    kernels = jnp.stack([kernel, 2 * kernel, -kernel])
    ours, _ = ours_and_theirs(window)
    one_by_one = [gradients(ours, x[i : i + 1], kernels[i], dy[i : i + 1]) for i in range(3)]
    mapped = jax.vmap(functools.partial(gradients, ours))(x[:, None], kernels, dy[:, None])
    assert_close(mapped, jax.tree.map(lambda *a: jnp.stack(a), *one_by_one), 1e-5)


@TUNED
def test_each_examples_kernel_gradient_of_a_sum(window, sizes):
    """The outputs' gradient is the same for all examples, and not mapped."""
    x, kernel, _ = problem(window, dtype=jnp.float32, **sizes)
    ours, theirs = (
        jax.vmap(jax.grad(lambda kernel, x, f=f: f(x, kernel, window).sum()), (None, 0))(
            kernel, x[:, None]
        )
        for f in (convolve, plain)
    )
    assert_close(ours, theirs, 1e-5)


@TUNED
def test_second_derivatives_in_reverse(window, sizes):
    with jax.enable_x64(True):
        x, kernel, _ = problem(window, **sizes | {"size": (4, 6), "batch": 11})

        def second(function):
            def inner(x, kernel):
                return (function(x, kernel, window) ** 3).sum()

            def outer(x, kernel):
                return sum((g**2).sum() for g in jax.grad(inner, argnums=(0, 1))(x, kernel))

            return jax.grad(outer, argnums=(0, 1))(x, kernel)

        assert_close(second(convolve), second(plain), 1e-12)


@TUNED
def test_divided_batches_stay_divided(window, sizes):
    arrays = problem(window, batch=8, dtype=jnp.float32, **sizes)
    ours, theirs = ours_and_theirs(window)
    assert_close(gradients_of_divided_rows(ours, *arrays), gradients(theirs, *arrays), 1e-5)


@TUNED
def test_inside_a_shard_map(window, sizes):
    x, kernel, dy = problem(window, batch=8, dtype=jnp.float32, **sizes)
    ours, theirs = ours_and_theirs(window)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    rows, whole = PartitionSpec("data"), PartitionSpec()
    # The kernel is the same on all devices, so its gradient is summed over them.
    mapped = jax.shard_map(
        functools.partial(gradients, ours),
        mesh=mesh,
        in_specs=(rows, whole, rows),
        out_specs=(rows, rows, whole),
    )
    assert_close(jax.jit(mapped)(x, kernel, dy), gradients(theirs, x, kernel, dy), 1e-5)


@pytest.mark.parametrize(
    ("sizes", "convolutions"),
    [
        (WIDE, 0),
        (LARGE, 0),
        (LARGE | {"batch": 1}, 0),
        (WIDE | {"size": (4, 17), "batch": 1}, 0),
        (WIDE | {"size": (5, 5)}, 0),
        (WIDE | {"size": (5, 5), "features": 256}, 0),
        (WIDE | {"size": (5, 5), "features": 320}, 3),
        (WIDE | {"size": (3, 30)}, 3),
        (WIDE | {"size": (7, 7), "batch": 1}, 3),
        (WIDE | {"channels": 63}, 3),
        (WIDE | {"features": 63}, 3),
        (WIDE | {"dtype": jnp.bfloat16}, 3),
        (LARGE | {"size": (15, 17), "batch": 1}, 3),
        # The input's gradient is XLA's.
        (LARGE | {"channels": 15}, 1),
        (LARGE | {"features": 15}, 3),
        (LARGE | {"dtype": jnp.bfloat16}, 3),
    ],
)
def test_on_a_cpu_a_wide_convolution_becomes_products(sizes, convolutions, no_matrix_unit):
    arrays = problem(SAME, **{"dtype": jnp.float32} | sizes)
    ours, _ = ours_and_theirs(SAME)
    assert lowered_gradients(ours, *arrays).count("stablehlo.convolution") == convolutions


@TUNED
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_elsewhere_a_step_has_no_more_than_three_contractions(window, sizes, platform):
    x, kernel, dy = problem(window, dtype=jnp.float32, **sizes)
    ours, theirs = ours_and_theirs(window)
    lowered = lowered_gradients(ours, x, kernel, dy, platform)
    assert contractions(lowered) == 3
    assert "stablehlo.while" not in lowered
    assert kept(ours, x, kernel) <= kept(theirs, x, kernel)


@TUNED
@pytest.mark.parametrize("differentiated", [(0,), (1,)])
def test_no_contraction_for_what_is_not_differentiated(window, sizes, differentiated):
    arrays = problem(window, dtype=jnp.float32, **sizes)
    ours, _ = ours_and_theirs(window)
    assert contractions(lowered_gradients(ours, *arrays, "tpu", differentiated)) == 2


@TUNED
def test_without_kernels_of_our_own(monkeypatch, window, sizes):
    monkeypatch.setenv(library.SWITCH, "off")
    arrays = problem(window, dtype=jnp.float32, **sizes)
    ours, theirs = ours_and_theirs(window)
    assert "custom_call" not in lowered_gradients(ours, *arrays)
    assert_close(gradients(ours, *arrays), gradients(theirs, *arrays), 2e-6)


@pytest.mark.parametrize(("window", "sizes", "calls"), [(SAME, LARGE, 3), (STEPS, FEW, 2)])
def test_a_kernel_is_called_for_each_part_of_the_gradient(window, sizes, calls):
    arrays = problem(window, dtype=jnp.float32, **sizes)
    ours, _ = ours_and_theirs(window)
    expected = calls if library.target("convolve_tiles", "float32") else 0
    assert lowered_gradients(ours, *arrays).count("stablehlo.custom_call") == expected


@pytest.mark.parametrize(
    ("window", "sizes"),
    [
        (POINT, POINTS),
        (POINT, POINTS | {"batch": 1, "size": (1, 1)}),
        (Window((2, 3), (0, 0), (1, 1), 1), POINTS | {"kernel_size": (1, 1)}),
        (SAME, SMALL),
        (STRIDED, SMALL),
        (Window((2, 3), (0, 2), (2, 1), 1), SMALL | {"size": (9, 8), "kernel_size": (4, 5)}),
        (Window((3, 2), (2, 0), (1, 1), 1), SMALL | {"size": (9, 8), "channels": 70}),
    ],
)
def test_few_pixels_that_are_not_differentiated_are_a_product(window, sizes):
    with jax.enable_x64(True):
        x, kernel, _ = problem(window, **sizes)
        ours, theirs = ours_and_theirs(window)
        lowered = jax.jit(ours).lower(x, kernel).as_text()
        assert lowered.count("multiply_rows") == (
            1 if library.target("multiply_rows", "float64") else 0
        )
        assert_close(jax.jit(ours)(x, kernel), theirs(x, kernel), 1e-14)


@pytest.mark.parametrize(("batch", "used"), [(4, 1), (5, 0)])
def test_with_more_pixels_they_are_not(batch, used):
    x, kernel, _ = problem(SAME, **SMALL | {"size": (4, 4), "batch": batch}, dtype=jnp.float32)
    lowered = jax.jit(ours_and_theirs(SAME)[0]).lower(x, kernel).as_text()
    assert lowered.count("multiply_rows") == (
        used if library.target("multiply_rows", "float32") else 0
    )


@TUNED
def test_without_compilation(window, sizes):
    with jax.enable_x64(True):
        x, kernel, _ = problem(window, **sizes)
        ours, theirs = ours_and_theirs(window)
        with jax.disable_jit():
            y = ours(x, kernel)
        assert_close(y, theirs(x, kernel), 1e-13)


@pytest.mark.parametrize(("window", "sizes"), [(SAME, LARGE), (STEPS, FEW)])
def test_each_time_the_same_bits(window, sizes):
    arrays = problem(window, dtype=jnp.float32, **sizes | {"batch": 32})
    ours, _ = ours_and_theirs(window)
    program = jax.jit(functools.partial(gradients, ours))
    first = program(*arrays)
    for _ in range(3):
        assert_close(program(*arrays), first, 0.0)


def test_exported_for_any_batch_and_size():
    x, kernel, _ = problem(SAME, **WIDE, dtype=jnp.float32)
    sizes = jax.export.symbolic_shape("batch, height, width, 64")
    exported = jax.export.export(jax.jit(lambda x: convolve(x, kernel, SAME)))(
        jax.ShapeDtypeStruct(sizes, x.dtype)
    )
    assert_close(exported.call(x), plain(x, kernel, SAME), 2e-6)
