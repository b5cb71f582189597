import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from zoo.errors import UserError
from zoo.training import compiler_options, create_state, jit, loop, make_train_step
from zoo.training import layout as layout_module
from zoo.training.checkpoints import Checkpoints
from zoo.training.layout import Layout, compile_step, make_mesh, make_state
from zoo.training.placement import placement_of


def convolve(kernel, image):
    return jax.lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


SHAPES = ((3, 3, 32, 64), (64, 48, 48, 32))
ARRAYS = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in SHAPES)


def uses_the_slower_library(compiled):
    return "ynn_fusion" in compiled.as_text()


def test_convolutions_on_a_cpu_are_the_faster_librarys():
    # When this fails jaxlib has another default: measure again whether the option still pays.
    assert uses_the_slower_library(jax.jit(convolve).lower(*ARRAYS).compile())
    assert not uses_the_slower_library(jit(convolve).lower(*ARRAYS).compile())
    step, _ = compile_step(
        lambda kernel, batch: convolve(kernel, batch["image"]),
        ARRAYS[0], {"image": ARRAYS[1]}, Layout(make_mesh(1)), returns_state=False,
    )  # fmt: skip
    assert not uses_the_slower_library(step)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_other_platforms_are_told_nothing(platform):
    assert compiler_options(platform) == {}


def test_an_option_that_xla_does_not_know_is_left_out_with_a_warning(caplog):
    assert layout_module._known({"xla_backend_optimization_level": 1, "xla_nonsense": "a"}) == {
        "xla_backend_optimization_level": 1
    }
    assert "does not take xla_nonsense=a" in caplog.text


def test_compiled_quickly_the_first_numbers_are_the_same():
    def drawn():
        key = jax.random.key(0)
        return jax.random.uniform(key, (1000,)), jax.random.normal(key, (1000,))

    quickly = make_state(drawn, Layout(make_mesh(1)))
    for quick, usual in zip(quickly, jax.jit(drawn)(), strict=True):
        assert (quick == usual).all()


class Network(nn.Module):
    """Two linear layers, and running statistics that are no parameters."""

    @nn.compact
    def __call__(self, x):
        seen = self.variable("statistics", "seen", jnp.zeros, ())
        seen.value = seen.value + len(x)
        return nn.Dense(4)(nn.relu(nn.Dense(6)(x)))


ROWS, STEPS = 8, 3
OPTIMIZER = optax.adam(0.05)


def first_state():
    variables = Network().init(jax.random.key(0), jnp.zeros((1, 6)))
    return create_state(variables, OPTIMIZER, jax.random.key(1), ema=True)


def on_two(*table):
    """The layout on two devices, for a table of the names of parameters' axes."""
    mesh = make_mesh(2)
    params = jax.eval_shape(first_state).params
    return Layout(mesh, placement_of(table, params, mesh, divided={"divided": ("data",)})[0])


def columns():
    """The columns of every kernel are divided over two devices."""
    return on_two((r"kernel", (None, "divided")))


def loss_fn(params, model_state, batch, key):
    y, model_state = Network().apply(
        {"params": params, **model_state}, batch["x"], mutable=list(model_state)
    )
    noise = 0.1 * jax.random.normal(key, y.shape)
    losses = jnp.square(y + noise - batch["y"]).mean(axis=-1) * batch["mask"]
    return losses.sum(), (batch["mask"].sum(), model_state, {})


def batch_at(k):
    generator = np.random.default_rng(k)
    return {
        "x": generator.normal(size=(ROWS, 6)).astype(np.float32),
        "y": generator.normal(size=(ROWS, 4)).astype(np.float32),
        "mask": np.array([1, 1, 0, 1, 1, 1, 1, 1], np.float32),
    }


def after_three_steps(layout):
    """The first state, the state after three compiled steps, and the pure step."""
    step = make_train_step(loss_fn, OPTIMIZER, ema=0.9)
    first = state = make_state(first_state, layout)
    # Donated below.
    first = jax.tree.map(lambda leaf: leaf.copy(), first)
    compiled, _ = compile_step(step, state, batch_at(0), layout, returns_state=True)
    for k in range(STEPS):
        state, _ = compiled(state, layout.put_batch(batch_at(k)))
    return first, state, step


def by_path(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def numbers(leaf):
    return np.asarray(
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    )


def assert_columns_are_divided(tree, arrays):
    """Every kernel, and what is kept for it, is divided over two devices; all else is whole."""
    divided = {path: leaf for path, leaf in by_path(tree).items() if "kernel" in path}
    assert len(divided) == arrays, sorted(divided)
    for path, leaf in divided.items():
        shards = leaf.addressable_shards
        assert len({shard.device for shard in shards}) == 2, path
        for shard in shards:
            assert shard.data.shape == (leaf.shape[0], leaf.shape[1] // 2), path
    for path, leaf in by_path(tree).items():
        assert path in divided or leaf.sharding.is_fully_replicated, path


@pytest.fixture(scope="module")
def trained():
    """What ``after_three_steps`` returns on one device, and on two with divided columns."""
    return (
        after_three_steps(Layout(make_mesh(1))),
        after_three_steps(columns()),
    )


def test_a_state_is_made_and_trained_under_its_placement(trained):
    (one_first, one, _), (two_first, two, _) = trained
    # The kernels of two layers: parameters, their average, and Adam's two moments.
    assert {path.partition("/")[0] for path in by_path(two) if "kernel" in path} == {
        "params",
        "ema_params",
        "opt_state",
    }
    for single, divided in ((one_first, two_first), (one, two)):
        assert_columns_are_divided(divided, 8)
        for path, leaf in by_path(divided).items():
            expected = numbers(by_path(single)[path])
            np.testing.assert_allclose(numbers(leaf), expected, rtol=1e-5, atol=1e-7, err_msg=path)
    assert one.step == STEPS
    moved = np.abs(numbers(one.params["Dense_0"]["kernel"] - one_first.params["Dense_0"]["kernel"]))
    assert moved.min() > 1e-3


def test_a_checkpoint_of_one_device_is_restored_under_a_placement(trained, tmp_path):
    (_, one, step), (two_first, _, _) = trained
    layout = columns()
    shapes = layout.abstract_batch(batch_at(0))
    checkpoints = Checkpoints(tmp_path)
    saved = loop.begin_or_resume(one, step, shapes, checkpoints, Layout(make_mesh(1)))
    checkpoints.save(STEPS, saved.arrays, {})
    checkpoints.wait()
    restored = loop.begin_or_resume(two_first, step, shapes, checkpoints, layout)
    read, at = checkpoints.read_state("latest", layout)
    checkpoints.close()
    assert_columns_are_divided(restored.arrays, 8)
    assert at == STEPS
    assert_columns_are_divided(read, 4)
    for path, leaf in by_path(restored.state).items():
        np.testing.assert_array_equal(numbers(leaf), numbers(by_path(one)[path]), err_msg=path)
    for path, leaf in by_path(read).items():
        np.testing.assert_array_equal(numbers(leaf), numbers(by_path(one)[path]), err_msg=path)


def test_the_first_pattern_holds_and_what_has_too_few_axes_lies_whole():
    layout = on_two(
        (r"Dense_1/kernel", ("divided", None)),
        (r"Dense_1/bias", ("divided",)),
        (r".", (None, "divided")),
    )
    made = by_path(layout.of(jax.eval_shape(first_state)))
    assert made["params/Dense_1/kernel"].spec == PartitionSpec("data")
    assert made["params/Dense_1/bias"].spec == PartitionSpec("data")
    assert made["params/Dense_0/kernel"].spec == PartitionSpec(None, "data")
    for path in ("params/Dense_0/bias", "step", "key", "opt_state/0/count"):
        assert made[path].spec == PartitionSpec(), path


@pytest.mark.parametrize(
    ("axes", "sizes"),
    [
        ({}, (8, 1, 1, 1)),
        ({"data": 2, "fsdp": -1}, (2, 4, 1, 1)),
        ({"data": 1, "fsdp": 2, "tensor": 2, "sequence": 2}, (1, 2, 2, 2)),
        ({"data": 2}, (2, 1, 1, 1)),
        ({"tensor": 4}, (2, 1, 4, 1)),
        ({"fsdp": 2, "devices": jax.devices()[4:]}, (2, 2, 1, 1)),
    ],
)
def test_the_mesh_has_four_axes_of_which_one_is_filled(axes, sizes):
    mesh = make_mesh(**axes)
    assert mesh.axis_names == ("data", "fsdp", "tensor", "sequence")
    assert mesh.devices.shape == sizes
    devices = axes.get("devices", jax.devices())
    assert list(mesh.devices.flat) == list(devices[: mesh.size])


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"fsdp": -1}, r"mesh\.data=-1, mesh\.fsdp=-1: only one can be -1.*Give mesh\.data=1"),
        ({"tensor": 3}, r"mesh\.tensor=3: 3 does not divide the 8 devices that mesh\.data=-1"),
        ({"data": 4, "fsdp": 4}, r"mesh\.data=4, mesh\.fsdp=4, but there are only 8 devices"),
        ({"sequence": 0}, r"mesh\.sequence=0 must be -1 .* or at least 1"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(axes, words):
    with pytest.raises(UserError, match=words):
        make_mesh(**axes)


def test_rows_are_divided_over_data_and_fsdp():
    layout = Layout(make_mesh(2, 2, 2))
    assert layout.row_parts == 4
    rows = layout.put_batch({"x": np.arange(8.0)})["x"]
    assert sorted({tuple(shard.data.tolist()) for shard in rows.addressable_shards}) == [
        (0, 1), (2, 3), (4, 5), (6, 7),
    ]  # fmt: skip
