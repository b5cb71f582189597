"""``zoo.models.TextToImage``; its weights in the layouts of diffusers and PyTorch."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from zoo import fields
from zoo.families import family
from zoo.families.transformer import encoder_table
from zoo.families.unet import unet_table
from zoo.models.text_to_image import TextToImage
from zoo.weights.tables import Table, linear_entries, prefixed


def _check(attributes: Mapping[str, Any]) -> None:
    if len(attributes["attention"]) != len(attributes["features"]):
        raise fields.ConfigError(
            f"model.attention={attributes['attention']} must have as many entries as "
            f"model.features={attributes['features']}"
        )


def text_to_image_table(module: TextToImage) -> Table:
    """Returns the table of a ``TextToImage`` for a PyTorch class, which no library has.

    The class has ``unet`` (diffusers' ``UNet2DConditionModel``), ``text`` (see ``encoder_table``)
    and ``caption`` (``torch.nn.Linear``).

    Args:
        module: the model.
    """
    unet = unet_table(module.features, module.attention, module.layers_per_level)
    return [
        *prefixed(unet, "unet.", "unet/"),
        *prefixed(encoder_table(module.text_layers), "text.", "text/"),
        *linear_entries("caption", "caption"),
    ]


FAMILY = family.Family(
    module=TextToImage,
    kind="denoiser",
    sizes={"text_to_image": {}},
    rules={
        "vocab_size": family.FROM_DATA,
        "text_features": fields.at_least(1),
        "text_layers": family.DEPTH,
        "text_heads": fields.at_least(1),
        "max_length": fields.at_least(1),
        "channels": fields.at_least(1),
        "patch_size": fields.at_least(1),
        "features": fields.COUNTS,
        "attention": fields.Rule("as many entries as model.features"),
        "layers_per_level": family.DEPTH,
        "num_heads": fields.at_least(1),
        "norm_groups": fields.at_least(1),
        "dropout_rate": fields.FRACTION,
    },
    example=lambda module: {
        "image": jnp.zeros((1, 32, 32, module.channels)),
        "step": jnp.zeros(1, jnp.int32),
        "tokens": jnp.zeros((1, module.max_length), jnp.int32),
    },
    weights={"diffusers and pytorch": lambda module, params: text_to_image_table(module)},
    axes=(*family.ATTENTION_AXES, *family.HIDDEN_AXES, *family.EMBEDDING_AXES),
    check=_check,
)
