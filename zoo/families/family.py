"""The record of a family of models: everything about it except its linen module."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from zoo import fields
from zoo.errors import UserError
from zoo.weights.tables import Table

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Prepares an image for published weights, as torchvision's presets and timm do.

    The shorter side is resized to ``resize``, a square of ``size`` is cut out of the centre, and
    each channel in [0, 1] is normalised.

    Attributes:
        size: side of the image that the network sees, in pixels.
        resize: length of the shorter side before the centre is cut out.
        interpolation: ``bilinear`` or ``bicubic``.
        mean: mean of each channel.
        std: standard deviation of each channel.
    """

    size: int = 224
    resize: int = 256
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models: one linen module in one or several sizes.

    The linen module defines the models' attributes and their defaults; a family does not repeat
    them.

    Attributes:
        module: the class of the linen module.
        kind: the kind of model that a task asks for, such as ``image_classifier``: see
            ``zoo.models.kinds``.
        sizes: the models by name, each with the attributes that differ from the module's defaults.
        rules: the values that attributes may have, if their types alone do not say so.
        example: returns example inputs by argument name, with which a module is initialised.
        weights: tables of weights by the library whose names they use, such as those of older
            versions too. Each is made from a module and its parameters, or their shapes. Export
            uses the first one; without any, the names are the zoo's own.
        published: the models by the name that a published ``config.json`` has for them under
            ``architectures``, such as ``GPT2LMHeadModel``.
        attributes_of: returns the attributes from the ``config.json`` beside published weights;
            None if the zoo reads nothing from such a file.
        config_of: returns what an export's ``config.json`` has so that the library of its names can
            open the folder; None if that library reads no such file.
        preprocessing: how images are prepared for published weights, by model; None if the inputs
            are not images.
        axes: what the axes of parameters are: patterns of paths, such as ``up/kernel``, each with
            the names in ``zoo.axes`` of the parameter's last axes, None for an axis without a name.
            The first match counts. A parameter without one is divided over ``mesh.fsdp`` along its
            largest axis.
        check: raises ConfigError if the attributes of a model for training do not fit together.
    """

    module: type[nn.Module]
    kind: str
    sizes: Mapping[str, Mapping[str, Any]]
    rules: fields.Rules
    example: Callable[[Any], dict[str, Any]]
    weights: Mapping[str, Callable[[Any, Params], Table]] = dataclasses.field(default_factory=dict)
    published: Mapping[str, str] = dataclasses.field(default_factory=dict)
    attributes_of: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    config_of: Callable[[Any], dict[str, Any]] | None = None
    preprocessing: Mapping[str, Preprocessing] | None = None
    axes: tuple[tuple[str, tuple[str | None, ...]], ...] = ()
    check: Callable[[Mapping[str, Any]], None] = lambda attributes: None

    def fields(self, name: str) -> dict[str, fields.Field]:
        """Returns the attributes of one of the models as fields of a config.

        ``remat`` is left out: it is no part of the model, and a config has it as ``train.remat``.
        """
        known = fields.of(self.module, self.rules)
        return {
            attribute: dataclasses.replace(field, default=self.sizes[name][attribute])
            if attribute in self.sizes[name]
            else field
            for attribute, field in known.items()
            if attribute != "remat"
        }

    @property
    def can_rematerialize(self) -> bool:
        """Whether the module has the attribute ``remat``."""
        return "remat" in fields.defaults(self.module)


# Rules that many families share. With 0, the number of classes or symbols comes from the data.
FROM_DATA = fields.at_least(0)
# Layers are traced one by one, so a number without a bound would never end.
DEPTH = fields.between(1, 1000)
DEPTHS = fields.Rule(
    "numbers, each at least 1, of 1000 or less together",
    lambda values: len(values) > 0 and min(values) >= 1 and sum(values) <= 1000,
)
CELL = fields.choice("gru", "lstm", "rnn", "rnn_relu")
ACTIVATION = fields.choice(
    "gelu", "gelu_tanh", "identity", "quick_gelu", "relu", "sigmoid", "silu", "softmax", "tanh"
)
INITIALIZATION = fields.choice("pytorch", "lecun_normal", "he_normal", "xavier_uniform")
# The axes of the layers that transformers share, whatever the names of the modules around them.
ATTENTION_AXES = (
    (r"attention/(query|key|value)/kernel$", ("embed", "attention")),
    (r"attention/(query|key|value)/bias$", ("attention",)),
    (r"attention/out/kernel$", ("attention", "embed")),
)
HIDDEN_AXES = (
    (r"(^|/)up/kernel$", ("embed", "hidden")),
    (r"(^|/)up/bias$", ("hidden",)),
    (r"(^|/)down/kernel$", ("hidden", "embed")),
)
EMBEDDING_AXES = (
    (r"(^|/)(tokens|embed)/embedding$", ("vocab", "embed")),
    (r"(^|/)(positions|learned)/embedding$", (None, "embed")),
    (r"(^|/)(output|head)/kernel$", ("embed", "vocab")),
    (r"(^|/)(output|head)/bias$", ("vocab",)),
)
IMAGES = {"num_classes": FROM_DATA, "channels": fields.at_least(1)}


# Keys of transformers' config.json that change no number that a model computes: names, versions,
# what is returned besides, how weights begin, and the tokens that decoding needs.
WITHOUT_MEANING = frozenset(
    {
        "_attn_implementation", "_commit_hash", "_name_or_path", "architectures",
        "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "decoder_start_token_id",
        "dtype", "eos_token_id", "finetuning_task", "forced_bos_token_id", "forced_decoder_ids",
        "forced_eos_token_id", "gradient_checkpointing", "id2label", "initializer_range",
        "is_decoder", "is_encoder_decoder", "label2id", "max_length", "model_type",
        "name_or_path", "num_labels", "output_attentions", "output_hidden_states",
        "pad_token_id", "prefix", "problem_type", "return_dict", "sep_token_id",
        "suppress_tokens", "task_specific_params", "tokenizer_class", "torch_dtype",
        "torchscript", "transformers_version", "use_cache", "use_return_dict",
    }
)  # fmt: skip


def read_config(
    config: Mapping[str, Any],
    *,
    sizes: Mapping[str, str],
    fixed: Mapping[str, tuple[Any, ...]],
    ignored: Collection[str] = (),
) -> dict[str, Any]:
    """Returns a module's attributes from the ``config.json`` of transformers.

    Every key must be known: one that is not might change what the model computes.

    Args:
        config: the content of the file.
        sizes: the module's attribute by the file's key; a key that is absent leaves the default.
        fixed: the values that a key may have, for keys that the module has no attribute for. The
            first of them is the reference's default.
        ignored: keys that change no number the model computes, beside ``WITHOUT_MEANING``.

    Raises:
        UserError: keys are unknown, or values differ; all of them are named.
    """
    wrong = [
        f"{key}={config[key]!r}, the zoo's model needs {' or '.join(map(repr, values))}"
        for key, values in fixed.items()
        if key in config and config[key] not in values
    ]
    known = {*sizes, *fixed, *ignored, *WITHOUT_MEANING}
    wrong += [
        f"{key}={value!r} is unknown to the zoo, and may change what the model computes: remove it "
        "if it does not"
        for key, value in config.items()
        if key not in known
    ]
    if wrong:
        raise UserError("config.json: " + "\n  ".join(wrong))
    return {ours: config[theirs] for theirs, ours in sizes.items() if theirs in config}


def image(side: int = 224) -> Callable[[Any], dict[str, Any]]:
    """Returns the example of a model of images: one square image, ``side`` pixels wide."""
    return lambda module: {"image": jnp.zeros((1, side, side, module.channels))}


def tokens(*names: str) -> Callable[[Any], dict[str, Any]]:
    """Returns the example of a model of tokens: one token for each argument."""
    return lambda module: {name: jnp.zeros((1, 1), jnp.int32) for name in names}


def presets(*plain: str, **special: Preprocessing) -> dict[str, Preprocessing]:
    """Returns torchvision's presets by model; models in ``plain`` get the default."""
    return dict.fromkeys(plain, Preprocessing()) | special
