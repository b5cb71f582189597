"""The models, one file a family, and the table of their names."""

import dataclasses
import fnmatch
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from zoo.errors import UserError, did_you_mean
from zoo.models.cnn import CNN
from zoo.models.convnext import ConvNeXt
from zoo.models.densenet import DenseNet
from zoo.models.efficientnet import EfficientNet
from zoo.models.forecaster import Forecaster
from zoo.models.gpt import GPT
from zoo.models.mobilenet import MobileNetV3
from zoo.models.resnet import ResNet
from zoo.models.rnn import RNN
from zoo.models.speech import SpeechRecognizer
from zoo.models.squeezenet import SqueezeNet
from zoo.models.text_classifier import TextClassifier
from zoo.models.text_to_image import TextToImage
from zoo.models.transformer import Transformer
from zoo.models.unet import UNet
from zoo.models.vgg import VGG
from zoo.models.vit import ViT

__all__ = [
    "CNN",
    "GPT",
    "MODELS",
    "RNN",
    "VGG",
    "ConvNeXt",
    "DenseNet",
    "EfficientNet",
    "Forecaster",
    "MobileNetV3",
    "ResNet",
    "SpeechRecognizer",
    "SqueezeNet",
    "TextClassifier",
    "TextToImage",
    "Transformer",
    "UNet",
    "ViT",
    "create_model",
    "list_models",
]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": CNN,
    "convnext_tiny": ConvNeXt,
    "densenet121": DenseNet,
    "efficientnet_b0": EfficientNet,
    "forecaster": Forecaster,
    "gpt": GPT,
    "mobilenet_v3_large": MobileNetV3,
    "mobilenet_v3_small": functools.partial(MobileNetV3, size="small"),
    "resnet101": functools.partial(ResNet, stages=(3, 4, 23, 3), bottleneck=True),
    "resnet152": functools.partial(ResNet, stages=(3, 8, 36, 3), bottleneck=True),
    "resnet18": ResNet,
    "resnet34": functools.partial(ResNet, stages=(3, 4, 6, 3)),
    "resnet50": functools.partial(ResNet, stages=(3, 4, 6, 3), bottleneck=True),
    "rnn": RNN,
    "speech_recognizer": SpeechRecognizer,
    "text_classifier": TextClassifier,
    "squeezenet1_1": SqueezeNet,
    "text_to_image": TextToImage,
    "transformer": Transformer,
    "vgg11": VGG,
    "vgg11_bn": functools.partial(VGG, batch_norm=True),
    "vgg16": functools.partial(VGG, stages=(2, 2, 3, 3, 3)),
    "vgg16_bn": functools.partial(VGG, stages=(2, 2, 3, 3, 3), batch_norm=True),
    "vit_b_16": ViT,
    "vit_l_16": functools.partial(
        ViT, features=1024, num_layers=24, num_heads=16, feedforward_features=4096
    ),
    "vit_s_16": functools.partial(ViT, features=384, num_heads=6, feedforward_features=1536),
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
    known = defaults(name)
    for attribute in overrides:
        if attribute not in known:
            raise UserError(
                f"the model {name!r} has no attribute {attribute!r}."
                f"{did_you_mean(attribute, known)}"
            )
    return MODELS[name](**overrides)


def defaults(name: str) -> dict[str, Any]:
    """Returns the attributes of a model with their defaults."""
    model = MODELS[name]
    module, changed = (
        (model.func, model.keywords) if isinstance(model, functools.partial) else (model, {})
    )
    fields: Any = dataclasses.fields(module)  # type: ignore[arg-type]
    return {
        field.name: changed.get(field.name, field.default)
        for field in fields
        if field.name not in ("name", "parent")
    }


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of the models that match a pattern, such as ``resnet*``."""
    return sorted(fnmatch.filter(MODELS, pattern))
