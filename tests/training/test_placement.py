"""Where parameters lie on a mesh, and what is said of those that lie whole."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec

from zoo.families import FAMILIES, create_model
from zoo.training import create_state
from zoo.training.layout import Layout, make_mesh
from zoo.training.placement import LARGE, placement_of

# Of a layer of a transformer.
TABLE = (
    (r"up/kernel$", ("embed", "hidden")),
    (r"up/bias$", ("hidden",)),
    (r"tokens/embedding$", ("vocab", "embed")),
)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def placed(params, *mesh, table=()):
    placement, said = placement_of(table, params, make_mesh(*mesh))
    return {path: place.spec for path, place in placement.items()}, said


@pytest.mark.parametrize(
    ("sizes", "spec"),
    [
        # The largest that 4 divides; of equal ones the last.
        ((12, 8), PartitionSpec("fsdp")),
        ((8, 12), PartitionSpec(None, "fsdp")),
        ((8, 8), PartitionSpec(None, "fsdp")),
        ((3, 3, 16, 30), PartitionSpec(None, None, "fsdp")),
        ((7,), PartitionSpec()),
        ((), PartitionSpec()),
    ],
)
def test_without_a_table_the_largest_axis_that_can_be_is_divided_over_fsdp(sizes, spec):
    specs, said = placed({"a": shape(*sizes)}, 2, 4)
    assert specs == {"a": spec}
    assert bool(said) == (spec == PartitionSpec())


def test_named_axes_take_their_mesh_axes():
    params = {
        "up": {"kernel": shape(16, 64), "bias": shape(64)},
        "tokens": {"embedding": shape(100, 16)},
        "scale": shape(16),
    }
    specs, said = placed(params, 1, 4, 2, table=TABLE)
    assert specs == {
        "up/kernel": PartitionSpec("fsdp", "tensor"),
        # Nothing else of it is left for fsdp.
        "up/bias": PartitionSpec(("tensor", "fsdp")),
        "tokens/embedding": PartitionSpec("tensor", "fsdp"),
        "scale": PartitionSpec("fsdp"),
    }
    assert not said
    # Without the axis in the mesh nothing is divided over it.
    assert placed(params, 8, table=TABLE)[0] == dict.fromkeys(specs, PartitionSpec())


def test_layers_stacked_in_one_array_have_an_axis_in_front():
    specs, _ = placed({"up": {"kernel": shape(12, 16, 64)}}, 1, 4, 2, table=TABLE)
    assert specs == {"up/kernel": PartitionSpec(None, "fsdp", "tensor")}


def test_what_lies_whole_and_is_large_is_said_with_the_reason():
    params = {"tokens": {"embedding": shape(50257, 770)}, "odd": shape(501, 501), "few": shape(7)}
    specs, said = placed(params, 1, 4, 2, table=TABLE)
    assert specs["tokens/embedding"] == PartitionSpec()
    assert said == [
        "odd 501x501: fsdp=4 divides none of its axes",
        "tokens/embedding 50257x770: tensor=2 does not divide its 50257 (vocab; 50258 would do); "
        "fsdp=4 divides none of its axes",
        "1 parameters of less than 1 MB are not divided either",
        "no parameter is divided over mesh.tensor=2, so its devices compute the same: take "
        "mesh.fsdp or mesh.data for this model",
    ]
    assert placed(params, 8, table=TABLE) == (dict.fromkeys(specs, PartitionSpec()), [])


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adamw(0.1),
        optax.adafactor(0.1, min_dim_size_to_factor=8),
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, 0.9)),
    ],
    ids=["adamw", "adafactor", "momentum"],
)
def test_what_is_kept_for_a_parameter_lies_where_it_does(optimizer):
    params = {"a": {"kernel": jnp.zeros((16, 64))}, "bias": jnp.zeros(64)}
    mesh = make_mesh(1, 4, 2)
    table = ((r"kernel", ("embed", "hidden")),)
    layout = Layout(mesh, placement_of(table, params, mesh)[0])
    make = lambda: create_state({"params": params}, optimizer, jax.random.key(0), ema=True)  # noqa: E731
    state = jax.eval_shape(make)
    by_shape = {
        (16, 64): PartitionSpec("fsdp", "tensor"),
        (64,): PartitionSpec("fsdp"),
        (16,): PartitionSpec("fsdp"),
    }
    found = []
    leaves = jax.tree_util.tree_leaves_with_path((state, layout.of(state)))
    state_leaves, shardings = leaves[: len(leaves) // 2], leaves[len(leaves) // 2 :]
    for (path, leaf), (_, sharding) in zip(state_leaves, shardings, strict=True):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        factored = "v_col" in where or "v_row" in where
        if factored and leaf.shape == (64,):
            # Statistics of the kernel's columns lie where its columns do.
            assert sharding.spec == PartitionSpec("tensor" if "kernel" in where else "fsdp"), where
        else:
            assert sharding.spec == by_shape.get(leaf.shape, PartitionSpec()), where
        found.append((where, leaf.shape))
    assert any(shape == (16, 64) and "ema_params" in where for where, shape in found)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params))
    assert layout.bytes_per_device(state.params) == (16 * 64 / 8 + 64 / 4) * 4 < whole


TABLES = [family for family in FAMILIES if family.axes]


def shapes_of(family):
    module = create_model(next(iter(family.sizes)))
    return jax.eval_shape(
        lambda: module.init(jax.random.key(0), **family.example(module))["params"]
    )


@pytest.fixture(scope="module")
def published():
    """The parameters of each family with a table, at a published size."""
    return [(family, shapes_of(family)) for family in TABLES]


def test_each_pattern_of_the_tables_names_a_parameter(published):
    patterns = {pattern for family, _ in published for pattern, _ in family.axes}
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for _, shapes in published
        for path, _ in jax.tree_util.tree_leaves_with_path(shapes)
    ]
    for pattern in patterns:
        assert any(re.search(pattern, path) for path in paths), pattern


def test_large_models_are_divided_over_all_devices(published):
    """Of a transformer's bytes each of 4 x 2 devices has an eighth, but for what is said."""
    for family, shapes in published:
        mesh = make_mesh(1, 4, 2)
        placement, said = placement_of(family.axes, shapes, mesh)
        layout = Layout(mesh, placement)
        told = {line.partition(" ")[0] for line in said}
        in_all = divided = 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            size = leaf.size * leaf.dtype.itemsize
            used = jax.tree.leaves(tuple(placement[where].spec))
            if size > LARGE:
                assert "fsdp" in used or where in told, where
            in_all += size
            divided += size * ("tensor" in used)
        name = next(iter(family.sizes))
        least = {"gpt": 0.65, "transformer": 0.99, "vit_b_16": 0.98, "text_to_image": 0.1}
        assert divided >= least.get(name, 0) * in_all, name
        assert layout.bytes_per_device(shapes) <= 1.01 * (divided / 8 + (in_all - divided) / 4), (
            name
        )
