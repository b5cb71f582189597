"""The families of models. Each file describes one family, except for its linen module."""

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn

from zoo import fields
from zoo.errors import UserError, did_you_mean
from zoo.families import (
    bert,
    clip,
    cnn,
    convnext,
    densenet,
    forecaster,
    gpt,
    llama,
    mobilenet,
    resnet,
    rnn,
    speech,
    squeezenet,
    t5,
    text_classifier,
    text_to_image,
    transformer,
    vgg,
    vit,
    whisper,
)
from zoo.families.family import Family, Preprocessing

__all__ = ["FAMILIES", "Family", "Preprocessing", "by_name", "create_model", "list_models"]

FAMILIES: tuple[Family, ...] = (
    *bert.FAMILIES,
    clip.FAMILY,
    clip.TEXT,
    clip.VISION,
    cnn.FAMILY,
    convnext.FAMILY,
    densenet.FAMILY,
    forecaster.FAMILY,
    gpt.FAMILY,
    llama.FAMILY,
    mobilenet.FAMILY,
    mobilenet.EFFICIENTNET,
    resnet.FAMILY,
    rnn.FAMILY,
    speech.FAMILY,
    squeezenet.FAMILY,
    t5.FAMILY,
    t5.ENCODER,
    text_classifier.FAMILY,
    text_to_image.FAMILY,
    transformer.FAMILY,
    vgg.FAMILY,
    vit.FAMILY,
    whisper.FAMILY,
)


def by_name(families: Iterable[Family] = FAMILIES) -> dict[str, Family]:
    """Returns the family of each model, by the model's name.

    Raises:
        UserError: two families have a model of the same name.
    """
    found: dict[str, Family] = {}
    for family in families:
        for name in family.sizes:
            if name in found:
                raise UserError(f"two families have a model {name!r}: rename one of them")
            found[name] = family
    return found


def find(name: str, families: Mapping[str, Family] | None = None) -> Family:
    """Returns the family of a model.

    Raises:
        UserError: the name is unknown.
    """
    known = by_name() if families is None else families
    if name not in known:
        raise UserError(f"the model {name!r} is unknown.{did_you_mean(name, known)}")
    return known[name]


def create_model(
    name: str, families: Mapping[str, Family] | None = None, /, **overrides: Any
) -> nn.Module:
    """Returns a model's linen module.

    Args:
        name: one of ``list_models()``.
        families: the families by model name; None for the zoo's own.
        **overrides: attributes that differ from the defaults.

    Raises:
        UserError: the name or an attribute is unknown.
    """
    family = find(name, families)
    known = fields.defaults(family.module)
    for attribute in overrides:
        if attribute not in known:
            raise UserError(
                f"the model {name!r} has no attribute {attribute!r}."
                f"{did_you_mean(attribute, known)}"
            )
    return family.module(**{**family.sizes[name], **overrides})


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of the models that match a pattern, such as ``resnet*``."""
    return sorted(fnmatch.filter(by_name(), pattern))
