"""``zoo.models.TextToImage``, which no other library has."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from zoo import fields
from zoo.families import family
from zoo.models.text_to_image import TextToImage


def _check(attributes: Mapping[str, Any]) -> None:
    if len(attributes["attention"]) != len(attributes["features"]):
        raise fields.ConfigError(
            f"model.attention={attributes['attention']} must have as many entries as "
            f"model.features={attributes['features']}"
        )


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
    check=_check,
)
