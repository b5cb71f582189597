"""Published weights by a model's name: which layouts there are, and how images are prepared."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.errors import UserError
from zoo.models import create_model
from zoo.models import mobilenet as mobilenets
from zoo.pretrained.cnn import cnn_table
from zoo.pretrained.convnext import convnext_table, convnext_timm_table
from zoo.pretrained.densenet import densenet_table
from zoo.pretrained.files import find_weights, read_weights
from zoo.pretrained.gpt import gpt_table
from zoo.pretrained.mobilenet import efficientnet_table, mobilenet_table
from zoo.pretrained.resnet import resnet_table
from zoo.pretrained.rnn import rnn_table
from zoo.pretrained.squeezenet import squeezenet_table
from zoo.pretrained.tables import Table, variables_from_reference
from zoo.pretrained.transformer import transformer_table
from zoo.pretrained.vgg import vgg_table
from zoo.pretrained.vit import vit_table, vit_timm_table


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image is prepared for published weights, as torchvision's presets and timm do.

    The shorter side is resized to ``resize``, a square of ``size`` is cut out of the middle, and
    each channel in [0, 1] is normalised.

    Attributes:
        size: side of what the network sees, in pixels.
        resize: length of the shorter side before the cut.
        interpolation: ``bilinear`` or ``bicubic``.
        mean: by channel.
        std: by channel.
    """

    size: int = 224
    resize: int = 256
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with published weights.

    Attributes:
        module: the linen module.
        variables: ``module.apply(variables, image)``.
        preprocessing: of images; None for other inputs.
    """

    module: nn.Module
    variables: dict[str, Any]
    preprocessing: Preprocessing | None


# torchvision's IMAGENET1K_V1 presets; those that differ from the default.
_PREPROCESSING = {
    "convnext_tiny": Preprocessing(resize=236),
    "efficientnet_b0": Preprocessing(interpolation="bicubic"),
    "vit_l_16": Preprocessing(resize=242),
}


def from_pretrained(name: str, path_or_hub_id: str | Path, **overrides: Any) -> Pretrained:
    """Returns a model with published weights.

    Args:
        name: see ``zoo.list_models``.
        path_or_hub_id: see ``zoo.pretrained.files.find_weights``; torchvision's names, or timm's,
            Hugging Face's or PyTorch's, where the model has them.
        **overrides: attributes of the model, such as ``num_classes`` where the weights have others
            than ImageNet's 1000.

    Raises:
        UserError: a name is unknown, there are no such weights, or they do not fit; what is
            missing, too much or of another shape is listed.
    """
    module = create_model(name, **overrides)
    arrays = read_weights(find_weights(path_or_hub_id))
    variables = load_variables(name, module, arrays)
    vision = list(example_inputs(name, module)) == ["image"]
    return Pretrained(
        module, variables, _PREPROCESSING.get(name, Preprocessing()) if vision else None
    )


def load_variables(
    name: str, module: nn.Module, arrays: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Returns weights as a module's variables, whichever library's names they have.

    Raises:
        UserError: they do not fit.
    """
    tables = tables_of(name, module)
    inputs = example_inputs(name, module)
    like = jax.eval_shape(lambda: module.init(jax.random.key(0), **inputs))
    # The layout whose names most of the arrays have.
    known = {layout: {entry.reference for entry in table} for layout, table in tables.items()}
    layout = max(known, key=lambda one: len(known[one] & set(arrays)))
    return variables_from_reference(arrays, tables[layout], like)


def tables_of(name: str, module: nn.Module) -> dict[str, Table]:
    """Returns the tables of a model by the library whose names they have; export takes the first.

    Raises:
        UserError: there is none.
    """
    m: Any = module
    makers: dict[str, Callable[[], dict[str, Table]]] = {
        "cnn": lambda: {"pytorch": cnn_table(48, m.pool_size)},
        "convnext": lambda: {
            "torchvision": convnext_table(m.stages),
            "timm": convnext_timm_table(m.stages),
        },
        "densenet": lambda: {"torchvision": densenet_table(m.blocks)},
        "efficientnet": lambda: {"torchvision": efficientnet_table(m.stages)},
        "forecaster": lambda: {"pytorch": rnn_table(m.num_layers, embeds=False)},
        "gpt": lambda: {"transformers": gpt_table(m.num_layers)},
        "mobilenet": lambda: {"torchvision": mobilenet_table(mobilenets.SIZES[m.size][0])},
        # timm names a ResNet as torchvision does.
        "resnet": lambda: {"torchvision": resnet_table(m.stages, bottleneck=m.bottleneck)},
        "rnn": lambda: {"pytorch": rnn_table(m.num_layers)},
        "speech_recognizer": lambda: {
            "pytorch": rnn_table(m.num_layers, embeds=False, bidirectional=True)
        },
        "text_classifier": lambda: {"pytorch": rnn_table(m.num_layers, bidirectional=True)},
        "squeezenet": lambda: {"torchvision": squeezenet_table(m.stages)},
        "transformer": lambda: {
            "pytorch": transformer_table(m.num_encoder_layers, m.num_decoder_layers)
        },
        "vgg": lambda: {"torchvision": vgg_table(m.stages, batch_norm=m.batch_norm)},
        "vit": lambda: {
            "torchvision": vit_table(m.num_layers),
            "timm": vit_timm_table(m.num_layers),
        },
    }
    for family, make in makers.items():
        if name.startswith(family):
            return make()
    raise UserError(f"there is no table of weights for the model {name!r}")


def example_inputs(name: str, module: nn.Module) -> dict[str, Any]:
    """Returns inputs with which the variables of a model are made, by the argument's name."""
    m: Any = module
    if name == "text_to_image":
        return {
            "image": jnp.zeros((1, 32, 32, m.channels)),
            "step": jnp.zeros(1, jnp.int32),
            "tokens": jnp.zeros((1, m.max_length), jnp.int32),
        }
    if name in ("gpt", "rnn"):
        return {"tokens": jnp.zeros((1, 1), jnp.int32)}
    if name == "transformer":
        return {name: jnp.zeros((1, 1), jnp.int32) for name in ("source", "target")}
    if name == "text_classifier":
        return {"tokens": jnp.zeros((1, 1), jnp.int32), "lengths": jnp.ones(1, jnp.int32)}
    if name == "speech_recognizer":
        return {
            "samples": jnp.zeros((1, m.sample_rate)),
            "lengths": jnp.full(1, m.sample_rate, jnp.int32),
        }
    if name == "forecaster":
        return {"series": jnp.zeros((1, 2 * m.horizon)), "phase": jnp.zeros(1)}
    side = getattr(m, "image_size", 48 if name == "cnn" else 224)
    return {"image": jnp.zeros((1, side, side, 3))}
