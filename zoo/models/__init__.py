"""The models, one file a family, and the table of their names."""

import dataclasses
import fnmatch
from typing import Any

import flax.linen as nn

from zoo.errors import UserError, did_you_mean
from zoo.models.cnn import CNN
from zoo.models.gpt import GPT
from zoo.models.rnn import RNN
from zoo.models.text_to_image import TextToImage
from zoo.models.transformer import Transformer
from zoo.models.unet import UNet

__all__ = [
    "CNN",
    "GPT",
    "MODELS",
    "RNN",
    "TextToImage",
    "Transformer",
    "UNet",
    "create_model",
    "list_models",
]

MODELS: dict[str, type[nn.Module]] = {
    "cnn": CNN,
    "gpt": GPT,
    "rnn": RNN,
    "text_to_image": TextToImage,
    "transformer": Transformer,
}


def create_model(name: str, **overrides: Any) -> nn.Module:
    """Returns a model's linen module.

    Args:
        name: one of ``list_models()``.
        **overrides: attributes that differ from the defaults.

    Raises:
        UserError: the name or an attribute is unknown.
    """
    if name not in MODELS:
        raise UserError(f"the model {name!r} is unknown.{did_you_mean(name, MODELS)}")
    model = MODELS[name]
    attributes = {field.name for field in dataclasses.fields(model)} - {"parent", "name"}
    for attribute in overrides:
        if attribute not in attributes:
            raise UserError(
                f"the model {name!r} has no attribute {attribute!r}."
                f"{did_you_mean(attribute, attributes)}"
            )
    return model(**overrides)


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of the models that match a pattern, such as ``resnet*``."""
    return sorted(fnmatch.filter(MODELS, pattern))
