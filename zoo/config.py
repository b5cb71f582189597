"""Configs: sections, defaults and checks. Imports no jax, so that a typo answers at once.

A config is an ``ml_collections.ConfigDict`` with the sections below. ``base`` makes one with every
field at its default, a config file changes some, the command line others, and ``check`` refuses
what cannot work. Nowhere else is a default written down or a field read that is not named here.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from zoo.errors import UserError, did_you_mean


class ConfigError(UserError):
    """A config that cannot work; the message names the path, the value and the fix."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a section: its default, and what it may be.

    Attributes:
        default: the default; its type is the field's type.
        rule: what a value must be, in words; follows "must be" in the error.
        allows: whether a value of the right type is allowed.
        choices: the names to choose from, where the field is a choice.
    """

    default: Any
    rule: str = ""
    allows: Callable[[Any], bool] = lambda value: True
    choices: tuple[str, ...] = ()


def _choice(default: str, *names: str) -> Field:
    return Field(default, choices=names)


def _at_least(minimum: int, default: Any) -> Field:
    return Field(default, f"at least {minimum}", lambda value: value >= minimum)


def _above_zero(default: float) -> Field:
    return Field(default, "above 0", lambda value: value > 0)


def _fraction(default: float) -> Field:
    return Field(default, "at least 0 and below 1", lambda value: 0 <= value < 1)


_ACTIVATIONS = ("gelu", "gelu_tanh", "identity", "relu", "sigmoid", "silu", "softmax", "tanh")

_TOP = {
    "seed": Field(0, "between 0 and 2**32 - 1", lambda value: 0 <= value < 2**32),
    "platform": _choice("auto", "auto", "cpu", "gpu", "tpu"),
    "precision": _choice("float32", "float32", "tf32", "bfloat16"),
    "process_settings": Field(True),
    "init_from": Field(""),
    "freeze": Field("", "a regular expression", lambda value: _compiles(value)),
    "reset": Field("", "a regular expression", lambda value: _compiles(value)),
}

_CELLS = ("gru", "lstm", "rnn", "rnn_relu")
_INITIALIZATIONS = ("pytorch", "lecun_normal", "he_normal", "xavier_uniform")

_CLASSES = {"num_classes": _at_least(0, 1000)}


def _counts(default: tuple[int, ...]) -> Field:
    return Field(
        default, "numbers, each at least 1", lambda value: len(value) > 0 and min(value) >= 1
    )


def _resnet(stages: tuple[int, ...], *, bottleneck: bool) -> dict[str, Field]:
    return _CLASSES | {
        "stages": _counts(stages),
        "features": _at_least(1, 64),
        "bottleneck": Field(bottleneck),
        "stem": _choice("imagenet", "cifar", "imagenet"),
    }


def _vgg(stages: tuple[int, ...], *, batch_norm: bool) -> dict[str, Field]:
    return _CLASSES | {
        "stages": _counts(stages),
        "features": _counts((64, 128, 256, 512, 512)),
        "batch_norm": Field(batch_norm),
        "hidden_features": _at_least(1, 4096),
        "dropout_rate": _fraction(0.5),
    }


def _vit(features: int, layers: int, heads: int) -> dict[str, Field]:
    return _CLASSES | {
        "image_size": _at_least(1, 224),
        "patch_size": _at_least(1, 16),
        "features": _at_least(1, features),
        "num_layers": _at_least(1, layers),
        "num_heads": _at_least(1, heads),
        "feedforward_features": _at_least(1, 4 * features),
        "dropout_rate": _fraction(0.0),
    }


def _mobilenet(size: str) -> dict[str, Field]:
    return _CLASSES | {"size": _choice(size, "large", "small"), "dropout_rate": _fraction(0.2)}


# By model: its attributes, with the same defaults as the linen module (a test compares them).
# A number of classes or symbols that is 0 is taken from the data.
MODELS: dict[str, dict[str, Field]] = {
    "cnn": {
        "num_classes": _at_least(0, 32),
        "features": Field(
            (32, 64, 128),
            "three numbers, each at least 1",
            lambda value: len(value) == 3 and min(value) >= 1,
        ),
        "kernel_size": _at_least(1, 3),
        "padding": _at_least(0, 1),
        "pool_size": _at_least(1, 2),
        "hidden_features": _at_least(1, 512),
        "dropout_rate": _fraction(0.5),
        "activation": _choice("relu", *_ACTIVATIONS),
        "output_activation": _choice("identity", *_ACTIVATIONS),
        "initialization": _choice("pytorch", *_INITIALIZATIONS),
    },
    "convnext_tiny": _CLASSES
    | {
        "stages": _counts((3, 3, 9, 3)),
        "features": _counts((96, 192, 384, 768)),
        "stochastic_depth_rate": _fraction(0.1),
        "layer_scale": _above_zero(1e-6),
    },
    "densenet121": _CLASSES
    | {
        "blocks": _counts((6, 12, 24, 16)),
        "growth": _at_least(1, 32),
        "features": _at_least(1, 64),
        "bottleneck": _at_least(1, 4),
    },
    "efficientnet_b0": _CLASSES
    | {
        "stages": Field(
            (
                (1, 3, 1, 16, 1),
                (6, 3, 2, 24, 2),
                (6, 5, 2, 40, 2),
                (6, 3, 2, 80, 3),
                (6, 5, 1, 112, 3),
                (6, 5, 2, 192, 4),
                (6, 3, 1, 320, 1),
            ),
            "expansion, kernel, stride, channels and layers of each stage",
            lambda value: all(len(stage) == 5 and min(stage) >= 1 for stage in value),
        ),
        "features": _at_least(1, 32),
        "last_features": _at_least(1, 1280),
        "dropout_rate": _fraction(0.2),
        "stochastic_depth_rate": _fraction(0.2),
    },
    "mobilenet_v3_large": _mobilenet("large"),
    "mobilenet_v3_small": _mobilenet("small"),
    "gpt": {
        "vocab_size": _at_least(0, 50257),
        "context": _at_least(1, 1024),
        "num_layers": _at_least(1, 12),
        "num_heads": _at_least(1, 12),
        "features": _at_least(1, 768),
        "dropout_rate": _fraction(0.1),
        "use_bias": Field(True),
    },
    "resnet18": _resnet((2, 2, 2, 2), bottleneck=False),
    "resnet34": _resnet((3, 4, 6, 3), bottleneck=False),
    "resnet50": _resnet((3, 4, 6, 3), bottleneck=True),
    "resnet101": _resnet((3, 4, 23, 3), bottleneck=True),
    "resnet152": _resnet((3, 8, 36, 3), bottleneck=True),
    "squeezenet1_1": _CLASSES
    | {
        "stages": Field(
            ((16, 16), (32, 32), (48, 48, 64, 64)),
            "numbers, each at least 1, of each stage",
            lambda value: all(len(stage) > 0 and min(stage) >= 1 for stage in value),
        ),
        "features": _at_least(1, 64),
        "dropout_rate": _fraction(0.5),
    },
    "vgg11": _vgg((1, 1, 2, 2, 2), batch_norm=False),
    "vgg11_bn": _vgg((1, 1, 2, 2, 2), batch_norm=True),
    "vgg16": _vgg((2, 2, 3, 3, 3), batch_norm=False),
    "vgg16_bn": _vgg((2, 2, 3, 3, 3), batch_norm=True),
    "vit_b_16": _vit(768, 12, 12),
    "vit_l_16": _vit(1024, 24, 16),
    "vit_s_16": _vit(384, 12, 6),
    "forecaster": {
        "horizon": _at_least(0, 52),
        "quantiles": Field(
            (0.05, 0.5, 0.95),
            "an odd number of probabilities between 0 and 1, increasing",
            lambda value: (
                len(value) % 2 == 1
                and 0 < value[0] <= value[-1] < 1
                and list(value) == sorted(set(value))
            ),
        ),
        "period": _above_zero(52.18),
        "cell": _choice("gru", *_CELLS),
        "features": _at_least(1, 64),
        "num_layers": _at_least(1, 1),
        "dropout_rate": _fraction(0.0),
    },
    "speech_recognizer": {
        "num_symbols": _at_least(0, 11),
        "sample_rate": _at_least(1, 8000),
        "window": Field(
            256, "an even number, at least 2", lambda value: value >= 2 and value % 2 == 0
        ),
        "hop": _at_least(1, 80),
        "num_mels": _at_least(1, 32),
        "stack": _at_least(1, 3),
        "features": _at_least(1, 128),
        "num_layers": _at_least(1, 2),
        "dropout_rate": _fraction(0.0),
    },
    "text_classifier": {
        "num_classes": _at_least(0, 2),
        "vocab_size": _at_least(0, 4000),
        "cell": _choice("lstm", *_CELLS),
        "embed_features": _at_least(1, 64),
        "features": _at_least(1, 64),
        "num_layers": _at_least(1, 1),
        "dropout_rate": _fraction(0.0),
    },
    "rnn": {
        "vocab_size": _at_least(0, 256),
        "cell": _choice("lstm", *_CELLS),
        "embed_features": _at_least(1, 256),
        "features": _at_least(1, 256),
        "num_layers": _at_least(1, 2),
        "dropout_rate": _fraction(0.0),
        "initialization": _choice("pytorch", *_INITIALIZATIONS),
    },
    "text_to_image": {
        "vocab_size": _at_least(0, 256),
        "text_features": _at_least(1, 64),
        "text_layers": _at_least(1, 2),
        "text_heads": _at_least(1, 4),
        "max_length": _at_least(1, 16),
        "channels": _at_least(1, 3),
        "patch_size": _at_least(1, 1),
        "features": Field(
            (32, 64, 96),
            "numbers, each at least 1",
            lambda value: len(value) > 0 and min(value) >= 1,
        ),
        "attention": Field((False, True, True), "as many as model.features"),
        "layers_per_level": _at_least(1, 1),
        "num_heads": _at_least(1, 4),
        "norm_groups": _at_least(1, 8),
        "dropout_rate": _fraction(0.0),
        "scale_shift": Field(False),
    },
    "transformer": {
        "source_vocab_size": _at_least(0, 32000),
        "target_vocab_size": _at_least(0, 32000),
        "features": _at_least(1, 512),
        "num_heads": _at_least(1, 8),
        "num_encoder_layers": _at_least(1, 6),
        "num_decoder_layers": _at_least(1, 6),
        "feedforward_features": _at_least(1, 2048),
        "dropout_rate": _fraction(0.1),
        "activation": _choice("relu", *_ACTIVATIONS),
        "norm_first": Field(False),
        "positions": _choice("sinusoidal", "sinusoidal", "learned"),
        "max_length": _at_least(1, 512),
        "tie_weights": Field(False),
    },
}

TASKS: dict[str, dict[str, Field]] = {
    "classification": {
        "loss": _choice(
            "cross_entropy", "cross_entropy", "binary_cross_entropy", "mean_squared_error"
        ),
        "label_smoothing": _fraction(0.0),
        "mixup": _at_least(0, 0.0),
        "cutmix": _at_least(0, 0.0),
    },
    "diffusion": {
        "noise_schedule": _choice("cosine", "cosine", "linear"),
        "noise_steps": _at_least(1, 1000),
        "prediction": _choice("v_prediction", "epsilon", "sample", "v_prediction"),
        "unconditional": _fraction(0.1),
        "guidance": _at_least(0, 3.0),
        "sampling_steps": _at_least(1, 50),
        "sampler": _choice("ddim", "ddim", "ddpm"),
    },
    "forecasting": {},
    "language_modelling": {},
    "sequence_to_sequence": {
        "label_smoothing": _fraction(0.1),
        "num_beams": _at_least(1, 4),
        "length_penalty": Field(1.0, "finite", math.isfinite),
    },
    "text_classification": {"label_smoothing": _fraction(0.0)},
    "transcription": {},
}

# By task: the models that it trains.
TASK_MODELS = {
    "classification": (
        "cnn",
        "convnext_tiny",
        "densenet121",
        "efficientnet_b0",
        "mobilenet_v3_large",
        "mobilenet_v3_small",
        "resnet101",
        "resnet152",
        "resnet18",
        "resnet34",
        "resnet50",
        "squeezenet1_1",
        "vgg11",
        "vgg11_bn",
        "vgg16",
        "vgg16_bn",
        "vit_b_16",
        "vit_l_16",
        "vit_s_16",
    ),
    "diffusion": ("text_to_image",),
    "forecasting": ("forecaster",),
    "language_modelling": ("gpt", "rnn"),
    "sequence_to_sequence": ("transformer",),
    "text_classification": ("text_classifier",),
    "transcription": ("speech_recognizer",),
}

# By task: what its evaluation measures; ``checkpoint.metric`` is one of them.
TASK_METRICS = {
    "classification": ("accuracy", "loss"),
    "diffusion": ("loss",),
    "forecasting": ("loss", "absolute_error"),
    "language_modelling": ("loss", "accuracy"),
    "sequence_to_sequence": ("loss", "accuracy"),
    "text_classification": ("accuracy", "loss"),
    "transcription": ("loss", "accuracy"),
}

# By task: its kind of data. The first field of each is the name.
DATA: dict[str, dict[str, Field]] = {
    "classification": {
        "name": _choice(
            "mnist_subset",
            "cifar10",
            "digit_scenes",
            "image_folder",
            "mnist",
            "mnist_subset",
            "npz",
        ),
        "data_dir": Field(""),
        "path": Field(""),
        "transform": _choice("seed", "cifar", "imagenet", "seed"),
        "image_size": _at_least(1, 48),
        "mean": Field(0.1307, "finite", math.isfinite),
        "std": _above_zero(0.3081),
        "rotation_degrees": Field(10.0, "between 0 and 180", lambda value: 0 <= value <= 180),
        "brightness": Field(0.2, "between 0 and 1", lambda value: 0 <= value <= 1),
        "contrast": Field(0.2, "between 0 and 1", lambda value: 0 <= value <= 1),
        "rand_augment": _at_least(0, 0),
        "rand_augment_magnitude": Field(9, "between 0 and 30", lambda value: 0 <= value <= 30),
        "validation_fraction": _fraction(0.0),
    },
    "diffusion": {"name": _choice("digit_scenes", "digit_scenes")},
    "language_modelling": {
        "name": _choice(
            "tiny_shakespeare", "sentences", "tatoeba_german", "text", "tiny_shakespeare"
        ),
        "path": Field(""),
        "context": _at_least(1, 64),
        "eval_context": _at_least(0, 0),
        "stride": _at_least(0, 0),
        "order": _choice("shuffled", "shuffled", "lanes"),
        "vocabulary_size": _at_least(3, 8000),
    },
    "forecasting": {
        "name": _choice("co2_weekly", "co2_weekly", "series"),
        "path": Field(""),
        "time_column": Field("date"),
        "value_column": Field("value"),
        "context": _at_least(2, 156),
        "horizon": _at_least(1, 52),
        "period": _at_least(1, 52),
    },
    "text_classification": {
        "name": _choice("sms_spam", "messages", "sms_spam"),
        "path": Field(""),
        "text_column": Field("text"),
        "label_column": Field("label"),
        "max_length": _at_least(1, 64),
        "vocabulary_size": _at_least(3, 4000),
    },
    "transcription": {
        "name": _choice("spoken_digits", "spoken_digits", "wav_folder"),
        "path": Field(""),
        "max_seconds": _above_zero(4.0),
        "max_symbols": _at_least(1, 6),
        "gap_seconds": _at_least(0, 0.3),
        "noise": _at_least(0, 0.003),
    },
    "sequence_to_sequence": {
        "name": _choice("cmudict", "cmudict", "pairs"),
        "path": Field(""),
        "source_column": Field("source"),
        "target_column": Field("target"),
        "target_symbols": _choice("words", "words", "characters"),
        "stress": Field(False),
        "max_source_length": _at_least(1, 20),
        "max_target_length": _at_least(1, 20),
        "validation_fraction": _fraction(0.02),
        "test_fraction": _fraction(0.05),
    },
}

_BATCHING = {"workers": _at_least(0, 0), "prefetch": _at_least(1, 4)}

_OPTIMIZER = {
    "name": _choice("adam", "adam", "adamw", "lion", "rmsprop", "sgd"),
    "learning_rate": _above_zero(1e-3),
    "schedule": _choice(
        "constant", "constant", "cosine", "inverse_sqrt", "linear", "step", "warmup_cosine"
    ),
    "warmup_steps": _at_least(0, 0),
    "end_value": _at_least(0, 0.0),
    "step_size": _at_least(0, 0),
    "gamma": _above_zero(0.1),
    "weight_decay": _at_least(0, 0.0),
    "decay_mode": _choice("auto", "auto", "coupled", "decoupled"),
    "decay_exclude": Field("", "a regular expression", lambda value: _compiles(value)),
    "clip_norm": _at_least(0, 0.0),
    "momentum": _fraction(0.0),
    "nesterov": Field(False),
    "b1": _fraction(0.9),
    "b2": _fraction(0.999),
    "eps": _above_zero(1e-8),
    "rms_decay": _fraction(0.99),
    "centered": Field(False),
}

_TRAIN = {
    "batch_size": _at_least(1, 64),
    "epochs": _at_least(0, 5),
    "steps": _at_least(0, 0),
    "accumulate": _at_least(1, 1),
    "ema_decay": _fraction(0.0),
    "eval_every": _at_least(0, 0),
    "eval_batch_size": _at_least(1, 256),
    "log_every": _at_least(1, 10),
}

_CHECKPOINT = {"every": _at_least(1, 100), "keep": _at_least(1, 2)}

_MESH = {
    "data": Field(-1, "-1 (all devices) or at least 1", lambda value: value == -1 or value > 0)
}

# Fields that decide no number of the run, or only how far it goes: a resumed run may change them.
_MAY_DIFFER = re.compile(
    r"platform|process_settings|mesh\..*|checkpoint\.(every|keep)|data\.(data_dir|workers|prefetch)"
    r"|train\.(log_every|eval_every|eval_batch_size)"
)
_LENGTH = ("train.epochs", "train.steps")


def base(model: str, task: str) -> ConfigDict:
    """Returns a config with every field at its default, for a config file to change.

    Args:
        model: name of the model.
        task: name of the task.

    Raises:
        ConfigError: a name is unknown.
    """
    _check_name("model.name", model, MODELS)
    _check_name("task.name", task, TASKS)
    fields = _fields(model, task)
    nested: dict[str, Any] = {}
    for path, field in fields.items():
        section, _, name = path.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = field.default
    config = ConfigDict(nested)
    config.model.name, config.task.name = model, task
    return config.lock()


def check(config: ConfigDict) -> ConfigDict:
    """Checks all that can be known without data or devices, and fills in absent fields.

    Returns:
        A locked copy with every field.

    Raises:
        ConfigError: an unknown name, a wrong type, a value out of range, or fields that cannot
            work together.
    """
    given = flatten(config)
    for section in ("model", "task"):
        if f"{section}.name" not in given:
            raise ConfigError(f"{section}.name is missing: give the name of the {section}")
    _check_name("model.name", given["model.name"], MODELS)
    _check_name("task.name", given["task.name"], TASKS)
    fields = _fields(given["model.name"], given["task.name"])
    resolved = base(given["model.name"], given["task.name"])
    with resolved.ignore_type():
        for path, value in given.items():
            resolved_value = _check_value(path, value, fields)
            section, _, name = path.rpartition(".")
            (resolved[section] if section else resolved)[name] = resolved_value
    _check_combinations(resolved)
    return resolved


def check_override(config: ConfigDict, path: str) -> None:
    """Raises ConfigError if ``path``, as in ``--config.PATH=value``, is no field of ``config``."""
    known = list(flatten(config))
    sections = {name.rpartition(".")[0] for name in known} - {""}
    if path not in known and path not in sections:
        raise _unknown(path, known)


def steps_in_all(config: ConfigDict, steps_per_epoch: int) -> int:
    """Number of updates of a run: ``train.steps`` where it is given, else ``train.epochs``."""
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
        ConfigError: the text is no config of this version of the zoo.
    """
    try:
        loaded = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"config.json is not valid JSON: {error}") from error
    return check(ConfigDict(loaded))


def differences(
    saved: ConfigDict, wanted: ConfigDict, *, steps_per_epoch: int, extend: bool = False
) -> list[str]:
    """Returns why a run saved with one config cannot be continued with another; empty if it can.

    Fields that decide no number (logging, evaluation, checkpoints, mesh, platform, workers) may
    differ, and the run may become longer. Where the learning rate depends on the length, a longer
    run is another run: it needs ``extend``.
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
    """Whether the learning rate of a step depends on how many steps there are in all."""
    return config.optimizer.schedule in ("cosine", "linear", "warmup_cosine")


def _fields(model: str, task: str) -> dict[str, Field]:
    sections = {
        "model": {"name": _choice(model, *MODELS)} | MODELS[model],
        "task": {"name": _choice(task, *TASKS)} | TASKS[task],
        "data": DATA[task] | _BATCHING,
        "optimizer": _OPTIMIZER,
        "train": _TRAIN,
        "checkpoint": _CHECKPOINT | {"metric": _choice(TASK_METRICS[task][0], *TASK_METRICS[task])},
        "mesh": _MESH,
    }
    nested = {
        f"{s}.{name}": field for s, fields in sections.items() for name, field in fields.items()
    }
    return _TOP | nested


def _check_name(path: str, value: Any, known: Iterable[str]) -> None:
    if value not in known:
        raise ConfigError(f"{path}={value!r} is unknown.{did_you_mean(str(value), known)}")


def _check_value(path: str, value: Any, fields: Mapping[str, Field]) -> Any:
    if path not in fields:
        raise _unknown(path, fields)
    field = fields[path]
    value = _of_type(path, value, field.default)
    if field.choices:
        _check_name(path, value, field.choices)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path}={value} must be a finite number")
    if not field.allows(value):
        raise ConfigError(f"{path}={value!r} must be {field.rule}")
    return value


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
        inner = type(default[0])
        fits = isinstance(value, tuple | list) and all(
            type(v) is inner or (inner is tuple and type(v) is list) for v in value
        )
    else:
        fits = isinstance(value, kind)
    if not fits:
        article = "a tuple like " + repr(default) if kind is tuple else f"of type {kind.__name__}"
        raise ConfigError(f"{path}={value!r} must be {article}, not {type(value).__name__}")
    # JSON has lists only, nested ones too.
    return _tuples(value) if kind is tuple else kind(value)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, tuple | list) else value


def _check_combinations(config: ConfigDict) -> None:
    optimizer, train, data = config.optimizer, config.train, config.data
    if config.reset and not config.init_from:
        raise ConfigError(
            f"reset={config.reset!r} has no meaning without init_from: nothing else is loaded"
        )
    if not train.steps and not train.epochs:
        raise ConfigError("train.steps=0 and train.epochs=0: give one of them, at least 1")
    if train.batch_size % train.accumulate:
        raise ConfigError(
            f"train.batch_size={train.batch_size} is not a multiple of "
            f"train.accumulate={train.accumulate}: change one of them"
        )
    if optimizer.nesterov and not optimizer.momentum:
        raise ConfigError(
            "optimizer.nesterov=True needs optimizer.momentum above 0, for example 0.9"
        )
    for name, owners in {
        "momentum": ("sgd", "rmsprop"), "nesterov": ("sgd",), "centered": ("rmsprop",),
    }.items():  # fmt: skip
        if optimizer[name] and optimizer.name not in owners:
            raise ConfigError(
                f"optimizer.{name}={optimizer[name]} has no meaning for "
                f"optimizer.name={optimizer.name!r}: it belongs to {' and '.join(owners)}"
            )
    if optimizer.name in ("adamw", "lion") and optimizer.decay_mode == "coupled":
        raise ConfigError(
            f"optimizer.name={optimizer.name!r} decays weights decoupled by definition; for "
            "optimizer.decay_mode='coupled' take optimizer.name='adam'"
        )
    if optimizer.schedule == "step" and not optimizer.step_size:
        raise ConfigError(
            "optimizer.schedule='step' needs optimizer.step_size, the steps between two drops"
        )
    if optimizer.schedule == "inverse_sqrt" and not optimizer.warmup_steps:
        raise ConfigError(
            "optimizer.schedule='inverse_sqrt' needs optimizer.warmup_steps, at least 1"
        )
    if optimizer.warmup_steps and optimizer.schedule not in ("inverse_sqrt", "warmup_cosine"):
        raise ConfigError(
            f"optimizer.warmup_steps={optimizer.warmup_steps} has no meaning for "
            f"optimizer.schedule={optimizer.schedule!r}: take 'warmup_cosine' or 'inverse_sqrt'"
        )
    if config.task.name == "classification":
        if config.model.get("output_activation", "identity") != "identity":
            raise ConfigError(
                f"model.output_activation={config.model.output_activation!r}: the loss takes "
                "logits; train with 'identity'"
            )
        if config.task.label_smoothing and config.task.loss != "cross_entropy":
            raise ConfigError(
                f"task.label_smoothing={config.task.label_smoothing} has no meaning for "
                f"task.loss={config.task.loss!r}: take 'cross_entropy'"
            )
        if config.model.num_classes == 1:
            raise ConfigError("model.num_classes=1: a classification needs at least 2")
        if config.model.name.startswith("vit") and config.model.image_size != data.image_size:
            raise ConfigError(
                f"model.image_size={config.model.image_size} must be "
                f"data.image_size={data.image_size}: the positions depend on it"
            )
        _check_transform(data)
    if config.model.name not in TASK_MODELS[config.task.name]:
        raise ConfigError(
            f"task.name={config.task.name!r} does not train model.name={config.model.name!r}: it "
            f"trains {' and '.join(TASK_MODELS[config.task.name])}"
        )
    if config.task.name == "diffusion":
        if config.task.sampling_steps > config.task.noise_steps:
            raise ConfigError(
                f"task.sampling_steps={config.task.sampling_steps} must be at most "
                f"task.noise_steps={config.task.noise_steps}"
            )
        if len(config.model.attention) != len(config.model.features):
            raise ConfigError(
                f"model.attention={config.model.attention} must have as many entries as "
                f"model.features={config.model.features}"
            )
    if "num_heads" in config.model and isinstance(config.model.features, int):
        _check_heads(config)
    if config.model.name == "gpt" and (max(data.context, data.eval_context) > config.model.context):
        raise ConfigError(
            f"data.context={data.context}, data.eval_context={data.eval_context}: the model reads "
            f"at most model.context={config.model.context} tokens"
        )
    if config.task.name == "language_modelling" and data.order == "lanes":
        if config.model.name != "rnn":
            raise ConfigError(
                f"data.order='lanes' carries a recurrent state from batch to batch, and model.name="
                f"{config.model.name!r} has none: take 'shuffled'"
            )
        if train.accumulate > 1:
            raise ConfigError(
                f"train.accumulate={train.accumulate} with data.order='lanes': every row has a "
                "state of its own, which parts of a batch cannot share; take train.accumulate=1"
            )
    if data.name == "mnist_subset" and data.validation_fraction:
        raise ConfigError(
            f"data.validation_fraction={data.validation_fraction}: 'mnist_subset' has a validation "
            "split of its own; leave the field at 0"
        )


# Fields of one image transform, which mean nothing to the others.
_TRANSFORM_FIELDS = {
    ("seed",): ("mean", "std", "rotation_degrees", "brightness", "contrast"),
    ("cifar", "imagenet"): ("rand_augment", "rand_augment_magnitude"),
}


def _check_transform(data: ConfigDict) -> None:
    for owners, names in _TRANSFORM_FIELDS.items():
        for name in names:
            if data.transform not in owners and data[name] != DATA["classification"][name].default:
                raise ConfigError(
                    f"data.{name}={data[name]} has no meaning for "
                    f"data.transform={data.transform!r}: it belongs to {' and '.join(owners)}"
                )


def _check_heads(config: ConfigDict) -> None:
    model = config.model
    if model.features % model.num_heads:
        raise ConfigError(
            f"model.num_heads={model.num_heads} must divide model.features={model.features}"
        )


def _compiles(expression: str) -> bool:
    try:
        re.compile(expression)
    except re.error:
        return False
    return True
