"""What holds for every model; a new one joins with a line in ``SMALL``."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import zoo
from zoo import config
from zoo.errors import UserError
from zoo.models import MODELS, create_model, list_models

# Name -> attributes that make it small, and the shape of one input.
SMALL = {
    "cnn": ({"num_classes": 5, "features": (4, 6, 8), "hidden_features": 16}, (13, 13, 3)),
}

every_model = pytest.mark.parametrize("name", list_models())


def make(name, batch=4):
    attributes, shape = SMALL[name]
    model = create_model(name, **attributes)
    x = jax.random.normal(jax.random.key(1), (batch, *shape))
    return model, model.init(jax.random.key(0), x), x


@every_model
def test_parameters_are_float32_and_depend_on_the_key_alone(name):
    model, variables, x = make(name)
    again = model.init(jax.random.key(0), x[:1])
    other = model.init(jax.random.key(2), x)
    for leaf, same in zip(jax.tree.leaves(variables), jax.tree.leaves(again), strict=True):
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, same)
    assert any(
        (leaf != changed).any()
        for leaf, changed in zip(jax.tree.leaves(variables), jax.tree.leaves(other), strict=True)
    )


@every_model
def test_a_row_does_not_depend_on_the_other_rows(name):
    model, variables, x = make(name)
    together = model.apply(variables, x)
    for row in range(len(x)):
        alone = model.apply(variables, x[row : row + 1])
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-4, atol=1e-6)


@every_model
def test_compiled_equals_not_compiled(name):
    model, variables, x = make(name)
    compiled = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(compiled, model.apply(variables, x), rtol=1e-4, atol=1e-6)


@every_model
def test_bfloat16_stays_bfloat16_and_near(name):
    model, variables, x = make(name)
    cast = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (variables, x))
    output, exact = model.apply(*cast), model.apply(variables, x)
    assert output.dtype == jnp.bfloat16
    assert np.abs(output.astype(jnp.float32) - exact).max() < 0.05 * np.abs(exact).max() + 0.01


@every_model
def test_gradient_is_the_same_on_one_device_and_on_two(name):
    model, variables, x = make(name)

    def loss(variables, x):
        return jnp.square(model.apply(variables, x)).mean()

    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    rows = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    one = jax.jit(jax.grad(loss))(variables, x)
    two = jax.jit(jax.grad(loss))(variables, rows)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert len(b.devices()) == 2
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)


@every_model
def test_defaults_of_the_config_are_those_of_the_module(name):
    ours = {
        field.name: field.default
        for field in dataclasses.fields(MODELS[name])
        if field.name not in ("name", "parent")
    }
    assert ours == {path: field.default for path, field in config.MODELS[name].items()}


@every_model
def test_every_choice_of_the_config_is_one_the_module_knows(name):
    attributes, shape = SMALL[name]
    for attribute, field in config.MODELS[name].items():
        for choice in field.choices:
            model = create_model(name, **attributes | {attribute: choice})
            jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))


def test_models_are_listed_and_made_by_name():
    assert zoo.list_models() == list_models("c*") == ["cnn"]
    assert list_models("x*") == []
    assert zoo.create_model("cnn", num_classes=7).num_classes == 7


@pytest.mark.parametrize(
    ("name", "attributes", "words"),
    [
        ("cnm", {}, ["'cnm'", "Did you mean 'cnn'"]),
        ("cnn", {"num_clases": 3}, ["'num_clases'", "Did you mean 'num_classes'"]),
        ("cnn", {"parent": None}, ["'parent'"]),
    ],
)
def test_unknown_names_are_refused(name, attributes, words):
    with pytest.raises(UserError) as refusal:
        create_model(name, **attributes)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
