"""What follows a convolution, taken over by its kernel, against the same program without that."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tuned_forms import MATRICES, assert_close, compiled, contractions, on_a_matrix_unit

from zoo.families import create_model
from zoo.layers import fuse
from zoo.layers.tuned.convolution import Window, convolve
from zoo.native import library

# Of each kernel that convolves: how it moves, its size, channels and features.
TILES = Window((1, 1), (1, 1), (1, 1), 1), (3, 3), 17, 33
WINDOWS = Window((2, 1), (1, 1), (1, 1), 1), (3, 3), 3, 34
PIXELS = Window((2, 1), (0, 0), (1, 1), 1), (1, 1), 17, 83
# By the matrix unit where there is one, in float32.
BY_UNIT = Window((2, 1), (1, 1), (1, 1), 1), (3, 3), 32, 36
KERNELS = pytest.mark.parametrize("form", [TILES, WINDOWS, PIXELS, BY_UNIT])


def problem(form, dtype=jnp.float64, batch=3):
    """Images, a kernel, two vectors of its features and something of the outputs' shape."""
    window, size, channels, features = form
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (batch, 21, 17, channels), dtype)
    kernel = jax.random.normal(keys[1], (*size, channels, features), dtype)
    a, b = (jax.random.normal(key, (features,), dtype) for key in keys[2:4])
    shape = jax.eval_shape(lambda: convolve(x, kernel, window)).shape
    return x, kernel, a, b, jax.random.normal(keys[4], shape, dtype)


def biased(y, a, b, shortcut):
    return y + a


def rectified(y, a, b, shortcut):
    return jax.nn.relu(y)


def biased_and_rectified(y, a, b, shortcut):
    return jnp.maximum(a + y, 0)


def normalised(y, a, b, shortcut):
    return (y - a) * jax.lax.rsqrt(b * b + 1e-5) * b * 3.0 + a


def block(y, a, b, shortcut):
    return jax.nn.relu(normalised(y, a, b, shortcut) + shortcut)


def block_beside_the_shortcut(y, a, b, shortcut):
    return jax.nn.relu(shortcut + 2.0 * y)


def added(y, a, b, shortcut):
    return y + shortcut


# Each takes the outputs of a convolution, and all of it can be taken over.
TAKEN_OVER = [
    biased,
    rectified,
    biased_and_rectified,
    normalised,
    block,
    block_beside_the_shortcut,
    added,
]


def scaled_sum(y, a, b, shortcut):
    return (y + shortcut) * a


def rectified_first(y, a, b, shortcut):
    return jax.nn.relu(y) + shortcut


def twice(y, a, b, shortcut):
    return jax.nn.relu(y) * y


def by_image(y, a, b, shortcut):
    return y * shortcut[:, :1, :1, :]


def subtracted(y, a, b, shortcut):
    return a - y


def above_one(y, a, b, shortcut):
    return jnp.maximum(y, 1)


def with_itself(y, a, b, shortcut):
    return y + y


def rectified_beside_itself(y, a, b, shortcut):
    rectified, same = jax.jit(lambda y: (jax.nn.relu(y), y))(y)
    return rectified * same


# A part of it at most.
LEFT = [
    scaled_sum,
    rectified_first,
    twice,
    by_image,
    subtracted,
    above_one,
    with_itself,
    rectified_beside_itself,
]


def network(form, what):
    window = form[0]
    return lambda x, kernel, *rest: what(convolve(x, kernel, window), *rest)


@pytest.mark.parametrize("what", TAKEN_OVER + LEFT)
@KERNELS
def test_the_same_numbers(form, what):
    with jax.enable_x64(True):
        arrays = problem(form)
        function = network(form, what)
        assert_close(jax.jit(fuse(function))(*arrays), function(*arrays), 1e-13)


@pytest.mark.parametrize("what", TAKEN_OVER)
@KERNELS
def test_the_same_derivatives(form, what):
    with jax.enable_x64(True):
        arrays = problem(form)

        def derivatives(function):
            output, backward = jax.vjp(function, *arrays)
            tangents = jax.tree.map(jnp.cos, arrays)
            return output, backward(jnp.sin(output)), jax.jvp(function, arrays, tangents)

        function = network(form, what)
        ours = jax.jit(functools.partial(derivatives, fuse(function)))()
        assert_close(ours, derivatives(function), 1e-12)


@compiled
@pytest.mark.parametrize("what", TAKEN_OVER)
@KERNELS
def test_one_pass_over_the_outputs(form, what):
    arrays = problem(form, jnp.float32)
    lowered = jax.jit(fuse(network(form, what))).lower(*arrays).as_text()
    outputs = "x".join(map(str, arrays[-1].shape))
    for operation in ("add", "subtract", "multiply", "maximum"):
        lines = [line for line in lowered.splitlines() if f"stablehlo.{operation}" in line]
        assert not [line for line in lines if outputs in line]
    assert lowered.count(form_name(form)) == 1


def form_name(form):
    names = {TILES: "convolve_tiles", WINDOWS: "convolve_windows", PIXELS: "convolve_pixels"}
    names[BY_UNIT] = "convolve_by_unit" if library.target(MATRICES, "float32") else names[WINDOWS]
    return f'_{names[form]}"'


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@KERNELS
def test_elsewhere_nothing_changes(form, platform):
    arrays = problem(form, jnp.float32)
    function = network(form, block)

    def lowered(function):
        traced = jax.jit(function).trace(*arrays)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    ours, theirs = lowered(fuse(function)), lowered(function)
    assert contractions(ours) == contractions(theirs) == 1
    assert "custom_call" not in ours
    assert ours.count("stablehlo.multiply") == theirs.count("stablehlo.multiply")


def test_without_kernels_of_our_own(monkeypatch):
    monkeypatch.setenv(library.SWITCH, "off")
    arrays = problem(TILES, jnp.float32)
    function = network(TILES, block)
    assert "custom_call" not in jax.jit(fuse(function)).lower(*arrays).as_text()
    assert_close(jax.jit(fuse(function))(*arrays), jax.jit(function)(*arrays), 1e-6)


@KERNELS
def test_mapped_over_examples(form):
    arrays = problem(form, jnp.float32)
    function = network(form, block)
    x, kernel, a, b, shortcut = arrays
    places = (0, None, None, None, 0)
    mapped = jax.vmap(fuse(function), places)(x[:, None], kernel, a, b, shortcut[:, None])
    assert_close(mapped[:, 0], function(*arrays), 1e-5)


@KERNELS
def test_divided_batches_stay_divided(form):
    arrays = problem(form, jnp.float32, batch=8)
    function = network(form, block)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    program = (
        jax.jit(fuse(function), in_shardings=(rows, whole, whole, whole, rows), out_shardings=rows)
        .lower(*arrays)
        .compile()
    )
    assert "all-gather" not in program.as_text()
    assert_close(program(*arrays), function(*arrays), 1e-5)


@KERNELS
def test_inside_a_shard_map(form):
    arrays = problem(form, jnp.float32, batch=8)
    function = network(form, block)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    rows, whole = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(
        fuse(function), mesh=mesh, in_specs=(rows, whole, whole, whole, rows), out_specs=rows
    )
    assert_close(jax.jit(mapped)(*arrays), function(*arrays), 1e-5)


@KERNELS
def test_what_is_no_number_stays_none(form):
    x, *others = problem(form, jnp.float32)
    function = network(form, block)
    y = jax.jit(fuse(function))(x.at[0, 0, 0, 0].set(jnp.nan), *others)
    assert np.isnan(y[0, 0, 0]).all()
    assert np.isfinite(y[1:]).all()


def test_several_readers_of_one_convolution():
    x, kernel, a, _, shortcut = problem(TILES, jnp.float32)

    def function(x, kernel):
        y = convolve(x, kernel, TILES[0])
        z = convolve(y[..., :17], kernel, TILES[0]) + a
        return {"first": jax.nn.relu(y), "both": jax.nn.relu(z + shortcut), "inner": z}

    assert_close(jax.jit(fuse(function))(x, kernel), jax.jit(function)(x, kernel), 1e-6)


def test_one_image_that_is_added_to_several():
    x, kernel, _, _, shortcut = problem(TILES, jnp.float32)
    function = network(TILES, lambda y: jax.nn.relu(y + shortcut))
    assert_close(jax.jit(fuse(function))(x[:1], kernel), function(x[:1], kernel), 1e-5)


def test_two_convolutions_that_are_added():
    x, kernel, a, b, _ = problem(PIXELS, jnp.float32)

    def function(x, kernel):
        one, other = (convolve(x, k, PIXELS[0]) * a + b for k in (kernel, 2 * kernel))
        return jax.nn.relu(one + other)

    ours = jax.jit(fuse(function))
    assert_close(ours(x, kernel), jax.jit(function)(x, kernel), 1e-6)
    if library.target("convolve_pixels", "float32"):
        assert "stablehlo.maximum" not in ours.lower(x, kernel).as_text()


def test_of_trees_and_without_convolutions():
    def function(tree, *, scale):
        return {"a": [scale * jnp.sin(tree["x"]), None], "b": (tree["y"],)}

    tree = {"x": jnp.arange(3.0), "y": jax.random.key(0)}
    ours, theirs = fuse(function)(tree, scale=2.0), function(tree, scale=2.0)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    np.testing.assert_array_equal(ours["a"][0], theirs["a"][0])
    assert ours["b"][0] == theirs["b"][0]


def test_traced_within_another_function():
    x, kernel, a, b, shortcut = problem(TILES, jnp.float32)

    @jax.jit
    def outer(x, kernel):
        twice = 2 * kernel
        return fuse(lambda x: block(convolve(x, twice, TILES[0]), a, b, shortcut))(x)

    expected = block(convolve(x, 2 * kernel, TILES[0]), a, b, shortcut)
    assert_close(outer(x, kernel), expected, 1e-6)


@pytest.mark.parametrize("unit", [False, pytest.param(True, marks=on_a_matrix_unit)])
@pytest.mark.parametrize(
    ("name", "options", "side", "before", "after", "after_with_unit"),
    [
        ("resnet50", {"stages": (1, 1, 1, 1)}, 160, 13, 4, 1),
        ("resnet18", {}, 160, 17, 7, 2),
        ("cnn", {}, 48, 4, 1, 1),
    ],
)
def test_models_rectify_in_their_convolutions(
    name, options, side, before, after, after_with_unit, unit, request
):
    """But those that are XLA's, of large kernels or few pixels, and linear layers."""
    if not unit:
        request.getfixturevalue("no_matrix_unit")
    model = create_model(name, num_classes=7, **options)
    x = jax.random.normal(jax.random.key(1), (3, side, side, 3))
    variables = jax.jit(model.init)(jax.random.key(0), x[:1])
    ours, theirs = jax.jit(fuse(model.apply)), jax.jit(model.apply)
    assert_close(ours(variables, x), theirs(variables, x), 1e-5)

    def rectifiers(compiled):
        return compiled.lower(variables, x).as_text().count("call @relu")

    assert rectifiers(theirs) == before
    expected = after_with_unit if unit else after
    assert rectifiers(ours) == (
        expected if library.target("convolve_pixels", "float32") else before
    )
