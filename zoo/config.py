"""Configs: sections, checks, and what may differ between a run and its continuation.

A config is an ``ml_collections.ConfigDict``. Its fields, their defaults and their allowed values
come from the code that takes the values: a linen module's attributes, a task's wing, the
optimizer's parameters. ``base`` makes a config with every field at its default. A config file
changes some fields and the command line others. ``check`` refuses what cannot work.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from zoo import fields
from zoo.catalog import Catalog, catalog
from zoo.errors import did_you_mean
from zoo.fields import ConfigError, Field
from zoo.training import lora, optimizers, schedules
from zoo.training.settings import CONFIG_FIELDS, RULES, Settings

__all__ = [
    "ConfigError",
    "base",
    "check",
    "check_override",
    "described",
    "differences",
    "flatten",
    "from_json",
    "settings",
    "steps_in_all",
    "to_json",
]

_TOP = {
    "platform": Field("auto", fields.choice("auto", "cpu", "gpu", "tpu")),
    "process_settings": Field(True),
    "extensions": Field((), fields.Rule("names of modules")),
    "init_from": Field(""),
    "freeze": Field("", fields.PATTERN),
    "reset": Field("", fields.PATTERN),
    "train.epochs": Field(5, fields.at_least(0)),
    "train.steps": Field(0, fields.at_least(0)),
    "train.remat": Field("none", fields.choice("none", "block", "dots")),
    "distributed.coordinator": Field(
        "auto", fields.Rule("HOST:PORT of process 0; auto finds it; none trains in one process")
    ),
    "distributed.processes": Field(0, fields.at_least(0)),
    "distributed.process": Field(
        -1, fields.Rule("-1 (found by itself) or at least 0", lambda value: value >= -1)
    ),
    "distributed.heartbeat_seconds": Field(30, fields.at_least(1)),
}
_SETTINGS = {
    path: Field(getattr(Settings, name), RULES[name]) for name, path in CONFIG_FIELDS.items()
}

# A resumed run may change these fields. They affect no number of the run, or only its length.
_MAY_DIFFER = re.compile(
    r"platform|process_settings|mesh\..*|distributed\..*|checkpoint\.(every|keep)"
    r"|data\.(data_dir|workers|prefetch)"
    r"|train\.(log_every|eval_every|eval_batch_size|remat|profile_steps)"
)
_LENGTH = ("train.epochs", "train.steps")
# Sizes and counts are 32-bit numbers in many places below.
_LARGEST = 2**31 - 1


def base(model: str, task: str, *, extensions: tuple[str, ...] = ()) -> ConfigDict:
    """Returns a config with every field at its default, for a config file to change.

    Args:
        model: the name of the model.
        task: the name of the task.
        extensions: your own modules that have models or tasks; see ``zoo.catalog``.

    Raises:
        ConfigError: a name is unknown.
    """
    known = catalog(extensions)
    nested: dict[str, Any] = {}
    for path, field in _fields(known, model, task).items():
        section, _, name = path.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = field.default
    config = ConfigDict(nested)
    config.model.name, config.task.name = model, task
    # The default does not give the type: an empty tuple says nothing about its elements.
    config.extensions = tuple(extensions)
    return config.lock()


def check(config: ConfigDict) -> ConfigDict:
    """Checks everything that needs neither data nor devices, and fills in absent fields.

    Returns:
        A locked copy with every field.

    Raises:
        ConfigError: a name is unknown, a value has the wrong type or is out of range, or fields
            cannot work together.
    """
    given = flatten(config)
    for section in ("model", "task"):
        if f"{section}.name" not in given:
            raise ConfigError(f"{section}.name is missing: give the name of the {section}")
    extensions = _check_value("extensions", given.get("extensions", ()), _TOP)
    known = catalog(extensions)
    all_fields = _fields(known, given["model.name"], given["task.name"])
    resolved = base(given["model.name"], given["task.name"], extensions=extensions)
    with resolved.ignore_type():
        for path, value in given.items():
            resolved_value = _check_value(path, value, all_fields)
            section, _, name = path.rpartition(".")
            (resolved[section] if section else resolved)[name] = resolved_value
    _check_combinations(resolved, known)
    return resolved


def check_override(config: ConfigDict, path: str) -> None:
    """Raises ConfigError unless ``path``, of ``--config.PATH=value``, is a field of ``config``."""
    known = list(flatten(config))
    sections = {name.rpartition(".")[0] for name in known} - {""}
    if path not in known and path not in sections:
        raise _unknown(path, known)


def described(config: ConfigDict) -> list[tuple[str, Any, str]]:
    """Returns the path, the value and the allowed values, in words, of each field of a config."""
    known = _fields(catalog(config.extensions), config.model.name, config.task.name)
    return [
        (path, value, known[path].rule.words or type(known[path].default).__name__)
        for path, value in flatten(config).items()
    ]


def settings(config: ConfigDict) -> Settings:
    """Returns the settings of a config's run."""
    flat = flatten(config)
    return Settings(**{name: flat[path] for name, path in CONFIG_FIELDS.items()})


def steps_in_all(config: ConfigDict, steps_per_epoch: int) -> int:
    """Number of updates of a run: ``train.steps`` if it is given, otherwise ``train.epochs``."""
    return config.train.steps or config.train.epochs * steps_per_epoch


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``{"section.field": value}``."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= {f"{name}.{inner}": v for inner, v in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def to_json(config: ConfigDict) -> str:
    """Returns the config as JSON, for ``config.json``."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str) -> ConfigDict:
    """Returns the checked config that ``to_json`` wrote.

    Raises:
        ConfigError: the text is not a config of this version of the zoo.
    """
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config.json is not valid JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise ConfigError("config.json is not a JSON object: bring it back from a copy")
    if "fit" in loaded:
        raise ConfigError(
            "config.json describes a run of zoo.fit, which only the code that called it can rebuild"
        )
    try:
        config = ConfigDict(loaded)
    except ValueError as error:  # a name with a dot
        raise ConfigError(f"config.json is not a config: {error}") from error
    return check(config)


def differences(
    saved: ConfigDict, wanted: ConfigDict, *, steps_per_epoch: int, extend: bool = False
) -> list[str]:
    """Returns why a run saved with one config cannot be continued with another; empty if it can.

    Fields that affect no number (logging, evaluation, checkpoints, mesh, platform, workers) may
    differ, and the run may become longer. If the learning rate depends on the length, a longer run
    is a different run and needs ``extend``.
    """
    before, after = flatten(saved), flatten(wanted)
    reasons = [
        f"{path} is {before.get(path)!r} there and {after.get(path)!r} here"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
        and not _MAY_DIFFER.fullmatch(path)
        and path not in _LENGTH
    ]
    steps_before = steps_in_all(saved, steps_per_epoch)
    steps_after = steps_in_all(wanted, steps_per_epoch)
    if steps_after < steps_before:
        reasons.append(f"it has {steps_before} steps, more than the {steps_after} here")
    elif steps_after > steps_before and schedule_depends_on_length(wanted) and not extend:
        reasons.append(
            f"it has {steps_before} steps and this one {steps_after}, on which "
            f"optimizer.schedule={wanted.optimizer.schedule!r} depends: give --extend to continue "
            "with the new schedule"
        )
    return reasons


def schedule_depends_on_length(config: ConfigDict) -> bool:
    """Whether the learning rate of a step depends on the total number of steps."""
    return config.optimizer.schedule in schedules.DEPEND_ON_LENGTH


def _fields(known: Catalog, model: str, task: str) -> dict[str, Field]:
    _check_name("model.name", model, known.families)
    _check_name("task.name", task, known.wings)
    wing = known.wings[task]
    metrics = tuple(wing.metrics)
    sections: dict[str, Mapping[str, Field]] = {
        "model": {
            "name": Field(model, fields.choice(*known.families)),
            **known.families[model].fields(model),
        },
        "task": {"name": Field(task, fields.choice(*known.wings)), **wing.fields},
        "data": wing.data_fields,
        "optimizer": {**optimizers.FIELDS, **schedules.FIELDS},
        "lora": lora.FIELDS,
        "checkpoint": {"metric": Field(metrics[0], fields.choice(*metrics))},
    }
    nested = {
        f"{section}.{name}": field
        for section, of_section in sections.items()
        for name, field in of_section.items()
    }
    return {**_TOP, **_SETTINGS, **nested}


def _check_name(path: str, value: Any, known: Iterable[str]) -> None:
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"{path}={value!r} is unknown.{did_you_mean(str(value), known)}")


def _check_value(path: str, value: Any, known: Mapping[str, Field]) -> Any:
    if path not in known:
        raise _unknown(path, known)
    field = known[path]
    value = _of_type(path, value, field.default)
    if field.rule.choices:
        _check_name(path, value, field.rule.choices)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path}={value} must be a finite number")
    if any(abs(number) > _LARGEST for number in _whole_numbers(value)) and path != "seed":
        raise ConfigError(f"{path}={value!r} must be at most {_LARGEST}, as no array is larger")
    if not field.rule.allows(value):
        raise ConfigError(f"{path}={value!r} must be {field.rule.words}")
    return value


def _whole_numbers(value: Any) -> list[int]:
    if isinstance(value, tuple):
        return [number for inner in value for number in _whole_numbers(inner)]
    return [value] if isinstance(value, int) else []


def _unknown(path: str, known: Iterable[str]) -> ConfigError:
    known = list(known)
    section, _, name = path.rpartition(".")
    sections = {other.rpartition(".")[0] for other in known} - {""}
    if section and section not in sections:
        return ConfigError(
            f"config.{path}: there is no section {section!r}.{did_you_mean(section, sections)}"
        )
    siblings = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == section]
    names = siblings if section else [*siblings, *sections]
    return ConfigError(f"config.{path} is unknown.{did_you_mean(name, names)}")


def _of_type(path: str, value: Any, default: Any) -> Any:
    kind = type(default)
    if isinstance(value, bool) or kind is bool:
        fits = isinstance(value, bool) and kind is bool
    elif kind is float:
        fits = isinstance(value, int | float)
    elif kind is tuple:
        # The elements of a tuple that is empty by default are names.
        inner = type(default[0]) if default else str
        fits = isinstance(value, tuple | list) and all(
            type(v) is inner or (inner is tuple and type(v) is list) for v in value
        )
    else:
        fits = isinstance(value, kind)
    if not fits:
        article = "a tuple like " + repr(default) if kind is tuple else f"of type {kind.__name__}"
        raise ConfigError(f"{path}={value!r} must be {article}, not {type(value).__name__}")
    return fields.as_tuples(value) if kind is tuple else kind(value)


def _check_combinations(config: ConfigDict, known: Catalog) -> None:
    train = config.train
    if config.reset and not config.init_from:
        raise ConfigError(
            f"reset={config.reset!r} has no meaning without init_from: nothing else is loaded"
        )
    if config.lora.rank:
        if not config.init_from:
            raise ConfigError(
                f"lora.rank={config.lora.rank} needs init_from: the weights to which a low rank is "
                "added"
            )
        for name in ("freeze", "reset"):
            if config[name]:
                raise ConfigError(
                    f"{name}={config[name]!r} has no meaning with lora.rank={config.lora.rank}: "
                    "all weights of init_from are loaded and frozen"
                )
    if not train.steps and not train.epochs:
        raise ConfigError("train.steps=0 and train.epochs=0: give one of them, at least 1")
    settings(config).check(CONFIG_FIELDS)
    optimizers.check(config.optimizer)
    schedules.check(config.optimizer)
    wing, family = known.wings[config.task.name], known.families[config.model.name]
    if family.kind not in wing.kinds:
        raise ConfigError(
            f"task.name={wing.name!r} does not train model.name={config.model.name!r}: it "
            f"trains {' and '.join(known.models_of(wing))}"
        )
    if train.remat != "none" and not family.can_rematerialize:
        able = sorted(name for name, other in known.families.items() if other.can_rematerialize)
        raise ConfigError(
            f"train.remat={train.remat!r}: model.name={config.model.name!r} keeps all that its "
            f"gradient needs; take 'none', or one of {', '.join(able)}"
        )
    family.check(config.model)
    wing.check(config, family)
