"""Configs: what is refused, with which words, and what a resumed run may change."""

import subprocess
import sys

import pytest

from zoo import commands
from zoo.config import ConfigError, base, check, differences, from_json, to_json
from zoo.errors import UserError


def cnn(**overrides):
    """The default config with ``section__field=value`` changed, unchecked."""
    config = base(model="cnn", task="classification")
    config.unlock()
    with config.ignore_type():
        for name, value in overrides.items():
            section, _, field = name.rpartition("__")
            (config[section] if section else config)[field] = value
    return config


def test_defaults_are_valid_and_survive_json():
    config = check(cnn())
    assert from_json(to_json(config)).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model__name": "cnm"}, ["model.name", "'cnm'", "Did you mean 'cnn'"]),
        ({"task__name": "clasification"}, ["task.name", "Did you mean 'classification'"]),
        ({"data__name": "mnits"}, ["data.name", "'mnits'", "Did you mean 'mnist'"]),
        ({"data__transform": "sed"}, ["data.transform", "Did you mean 'seed'"]),
        ({"optimizer__name": "adma"}, ["optimizer.name", "Did you mean 'adam'"]),
        ({"optimizer__schedule": "cosin"}, ["optimizer.schedule", "Did you mean 'cosine'"]),
        ({"checkpoint__metric": "accurcay"}, ["checkpoint.metric", "Did you mean 'accuracy'"]),
        ({"platform": "cuda"}, ["platform", "'cuda'", "gpu"]),
        ({"precision": "float16"}, ["precision", "Did you mean 'bfloat16'"]),
        (
            {"model__dropuot_rate": 0.1},
            ["config.model.dropuot_rate", "Did you mean 'dropout_rate'"],
        ),
        ({"train__stesp": 3}, ["config.train.stesp", "Did you mean 'steps'"]),
        ({"sede": 3}, ["config.sede", "Did you mean 'seed'"]),
        ({"seed": -1}, ["seed=-1", "between 0 and"]),
        ({"seed": True}, ["seed=True", "int", "bool"]),
        ({"train__batch_size": 0}, ["train.batch_size=0", "at least 1"]),
        ({"train__batch_size": 6.5}, ["train.batch_size=6.5", "int"]),
        ({"train__batch_size": "64"}, ["train.batch_size='64'", "int", "str"]),
        ({"optimizer__learning_rate": 0.0}, ["optimizer.learning_rate=0.0", "above 0"]),
        ({"optimizer__learning_rate": float("nan")}, ["optimizer.learning_rate", "finite"]),
        ({"optimizer__decay_exclude": "("}, ["optimizer.decay_exclude", "regular expression"]),
        ({"model__features": (1, 2)}, ["model.features=(1, 2)", "three"]),
        ({"model__features": 3}, ["model.features=3", "tuple"]),
        ({"model__dropout_rate": 1.0}, ["model.dropout_rate=1.0", "below 1"]),
        ({"model__num_classes": 1}, ["model.num_classes=1", "at least 2"]),
        ({"model__output_activation": "softmax"}, ["model.output_activation", "logits"]),
        ({"train__steps": 0, "train__epochs": 0}, ["train.steps=0", "train.epochs=0"]),
        ({"train__accumulate": 3}, ["train.batch_size=64", "train.accumulate=3"]),
        ({"train__remat": "block"}, ["train.remat='block'", "model.name='cnn'", "gpt", "vit_b_16"]),
        ({"train__remat": "blocks"}, ["train.remat", "Did you mean 'block'"]),
        ({"optimizer__nesterov": True, "optimizer__name": "sgd"}, ["nesterov", "momentum"]),
        ({"optimizer__momentum": 0.9}, ["optimizer.momentum=0.9", "'adam'", "sgd"]),
        ({"optimizer__name": "adamw", "optimizer__decay_mode": "coupled"}, ["adamw", "'adam'"]),
        ({"optimizer__schedule": "step"}, ["optimizer.step_size"]),
        ({"optimizer__warmup_steps": 5}, ["optimizer.warmup_steps=5", "warmup_cosine"]),
        ({"task__loss": "mean_squared_error", "task__label_smoothing": 0.1}, ["label_smoothing"]),
        ({"data__validation_fraction": 0.1}, ["data.validation_fraction", "mnist_subset"]),
    ],
)
def test_what_cannot_work_is_refused_with_path_value_and_fix(overrides, words):
    with pytest.raises(ConfigError) as refusal:
        check(cnn(**overrides))
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_an_unknown_section_is_refused():
    config = cnn()
    config.trian = {"steps": 3}
    with pytest.raises(ConfigError, match="section 'trian'. Did you mean 'train'"):
        check(config)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--config.trian.steps=3", ["config.trian.steps", "Did you mean 'train'"]),
        ("--config.train.stesp=3", ["config.train.stesp", "Did you mean 'steps'"]),
        ("--config.train.steps=abc", ["config.train.steps", "abc"]),
        ("--config.train.steps=2.5", ["config.train.steps", "2.5"]),
        ("--config.optimizer.nesterov=perhaps", ["optimizer.nesterov", "perhaps"]),
    ],
)
def test_overrides_name_path_and_value(argument, words):
    with pytest.raises((UserError, commands.flags.Error)) as refusal:
        commands.override(cnn(), [argument])
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_overrides_change_a_copy():
    config = cnn()
    arguments = ["--config.train.steps=20", "--config.model.features", "(1,2,3)"]
    changed = commands.override(config, arguments)
    assert (changed.train.steps, changed.model.features) == (20, (1, 2, 3))
    assert (config.train.steps, config.model.features) == (0, (32, 64, 128))


def test_the_last_override_of_a_field_counts_also_of_a_tuple():
    given = [
        "--config.model.features=(4,4,4)", "--config.train.steps=2", "--config.train.steps=3",
        "--config.model.features", "(8,8)",
    ]  # fmt: skip
    changed = commands.override(cnn(), given)
    assert (changed.train.steps, changed.model.features) == (3, (8, 8))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", ["--config is missing"]),
        ("configs/cn.py", ["configs/cn.py", "Did you mean 'configs/cnn.py'"]),
        ("configs/cnn.py:ful", ["ful", "full"]),
    ],
)
def test_config_files_are_named(given, words):
    with pytest.raises(UserError) as refusal:
        commands.load_config(given)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


@pytest.mark.parametrize(
    ("saved", "wanted", "extend", "reasons"),
    [
        ({}, {}, False, []),
        ({}, {"train__log_every": 1, "checkpoint__every": 7, "mesh__data": 1}, False, []),
        ({}, {"train__epochs": 6}, False, []),
        ({}, {"seed": 1}, False, ["seed is 0 there and 1 here"]),
        ({}, {"optimizer__eps": 0.1, "train__batch_size": 8}, False, ["eps", "batch"]),
        ({}, {"train__epochs": 4}, False, ["500 steps, more than the 400"]),
        ({}, {"train__steps": 20}, False, ["500 steps, more than the 20"]),
        ({"train__steps": 20}, {}, False, []),
        ({"optimizer__schedule": "cosine"}, {"optimizer__schedule": "cosine", "train__epochs": 6},
         False, ["--extend"]),
        ({"optimizer__schedule": "cosine"}, {"optimizer__schedule": "cosine", "train__epochs": 6},
         True, []),
    ],
)  # fmt: skip
def test_what_a_resumed_run_may_change(saved, wanted, extend, reasons):
    found = differences(
        check(cnn(**saved)), check(cnn(**wanted)), steps_per_epoch=100, extend=extend
    )
    assert len(found) == len(reasons)
    for part in reasons:
        assert any(part in reason for reason in found), found


def test_a_typo_answers_before_data_and_checkpoints_are_thought_of():
    command = [sys.executable, "-X", "importtime", "train.py", "--config", "configs/cnn.py"]
    done = subprocess.run(
        [*command, "--config.optimizer.name=adma"], capture_output=True, text=True, check=False
    )
    assert done.returncode == commands.USER_ERROR
    assert done.stderr.splitlines()[-1] == (
        "error: optimizer.name='adma' is unknown. Did you mean 'adam'?"
    )
    assert "import time:" in done.stderr
    for heavy in (" orbax", " grain", " matplotlib", " sklearn", " tensorflow"):
        assert heavy not in done.stderr
