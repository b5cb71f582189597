"""Runs that cannot work are refused before the first array, with the fields that are the reason."""

import flax.linen as nn
import numpy as np
import optax
import pytest
from families import TINY

import zoo
from zoo import building, commands, process, sizing
from zoo.errors import UserError
from zoo.fields import ConfigError
from zoo.training.layout import Layout, make_mesh


def config(name, *overrides):
    given = [f"--config.{override}" for override in ("train.steps=1", "mesh.data=1", *overrides)]
    return commands.override(commands.load_config(f"configs/{name}.py"), [*TINY[name], *given])


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("cnn", "model.hidden_features=1000000000", "model.hidden_features=1000000000"),
        ("forecast", "model.features=1000000000", "model.features=1000000000"),
        ("vit", "model.features=1000000000", "model.features=1000000000"),
        ("gpt", "model.context=2000000000", "model.context=2000000000"),
        ("cnn", "train.batch_size=1000000000", "train.batch_size=1000000000"),
        ("cnn", "train.eval_batch_size=1000000000", "train.eval_batch_size=1000000000"),
    ],
)
def test_what_needs_more_than_the_memory_is_refused(tmp_path, name, override, words):
    with pytest.raises(sizing.TooLarge) as refused:
        zoo.run(config(name, override), tmp_path / "run")
    said = str(refused.value)
    assert "the run needs at least" in said
    assert "this machine has" in said
    assert words in said.partition("; ")[0], "the largest need stands first"
    assert {file.name for file in (tmp_path / "run").iterdir()} <= {".lock"}


@pytest.mark.parametrize("value", [2**31, 2**63, 10**30, -(2**40)])
def test_whole_numbers_have_a_bound(value):
    for path in ("model.num_layers", "train.batch_size", "data.horizon"):
        with pytest.raises(ConfigError, match=f"{path}={value} must be at most"):
            building.configs.check(config("forecast", f"{path}={value}"))


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        (
            "forecast",
            "model.num_layers=100000",
            "model.num_layers=100000 must be between 1 and 1000",
        ),
        ("resnet", "model.stages=(1,100000)", "of 1000 or less together"),
        ("speech", "model.num_mels=1000", "model.num_mels=1000 must be at most 129"),
        ("forecast", "data.horizon=13", "model.horizon=52 must be data.horizon=13, or 0"),
        ("forecast", "model.horizon=13", "model.horizon=13 must be data.horizon=52, or 0"),
        ("transformer", "model.max_length=8", "model.max_length=8 must be at least 17"),
    ],
)
def test_fields_that_must_agree_are_named_together(name, override, words):
    more = ["model.positions=learned"] if name == "transformer" else []
    with pytest.raises(ConfigError) as refused:
        building.configs.check(config(name, override, *more))
    assert words in str(refused.value)


def test_a_horizon_of_the_data_is_taken_by_the_model():
    checked = building.configs.check(config("forecast", "data.horizon=13", "model.horizon=0"))
    assert building.with_data(checked)[0].model.horizon == 13


def test_shapes_that_do_not_fit_are_explained_by_the_fields(tmp_path, monkeypatch):
    """As if the task did not know that the two must be equal."""
    wing = building.catalog(()).wings["forecasting"]
    monkeypatch.setitem(wing.__dict__, "check", lambda config, family: None)
    with pytest.raises(UserError, match=r"model\.horizon=52 and data\.horizon=13 differ"):
        zoo.run(config("forecast", "data.horizon=13"), tmp_path / "run")
    assert {file.name for file in (tmp_path / "run").iterdir()} <= {".lock"}


def fit(tmp_path, model, loss):
    data = {"x": np.ones((8, 4), np.float32)}
    return zoo.fit(
        zoo.make_task(model, loss), train=data, workdir=tmp_path, optimizer=optax.sgd(0.1),
        steps=1, batch_size=4, devices=1,
    )  # fmt: skip


def test_an_error_in_code_of_ones_own_stays_as_it_is(tmp_path):
    with pytest.raises(TypeError, match="shapes"):
        fit(tmp_path, nn.Dense(3), lambda model, batch, train: model(batch["x"]) - batch["x"])


def test_bytes_are_those_of_the_arrays(tmp_path, monkeypatch):
    """A dense layer of 4 x 3 and SGD: 15 parameters and the gradient of each, and a few numbers."""
    held = {}
    monkeypatch.setattr(sizing, "_hold_against", lambda needs, *rest: held.update(needs))
    fit(tmp_path, nn.Dense(3), lambda model, batch, train: model(batch["x"]).sum(1))
    state, batches = held.values()
    assert 2 * 15 * 4 <= state <= 2 * 15 * 4 + 64
    # Two batches of four rows: four numbers, and the mask.
    assert batches == 2 * 4 * (4 + 1) * 4


def test_memory_that_is_used_up_says_what_to_lower(tmp_path, monkeypatch):
    def used_up(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr("zoo.training.loop.train", used_up)
    with pytest.raises(sizing.TooLarge, match=r"the memory is used up.*Lower batch_size=4"):
        fit(tmp_path, nn.Dense(3), lambda model, batch, train: model(batch["x"]).sum(1))


def test_the_memory_is_that_of_the_machine():
    total = np.iinfo(np.int64).max
    assert 0 < process.memory_bytes() <= total
    assert Layout(make_mesh(1)).devices == 1
