"""``zoo.models.MobileNetV3`` and ``EfficientNet``; their weights in torchvision's layout."""

from collections.abc import Sequence

from zoo import fields
from zoo.families import family
from zoo.models.efficientnet import EfficientNet
from zoo.models.mobilenet import SIZES, MobileNetV3
from zoo.weights.tables import Entry, Table, batch_norm_entries, conv_entries, linear_entries


def mobilenet_table(blocks: Sequence[Sequence[int]], features: int = 16) -> Table:
    """Returns the table of a ``MobileNetV3`` for torchvision's.

    Args:
        blocks: ``zoo.models.mobilenet.LARGE`` or ``SMALL``.
        features: number of channels of the stem.
    """
    table = [*_conv_norm("features.0", "stem", "stem_bn")]
    for index, (_, expanded, width, squeeze, *_) in enumerate(blocks):
        table += _inverted_residual(
            f"features.{index + 1}.block",
            f"block{index}",
            expands=expanded != features,
            squeeze=bool(squeeze),
        )
        features = width
    return [
        *table,
        *_conv_norm(f"features.{len(blocks) + 1}", "last", "last_bn"),
        *linear_entries("classifier.0", "fc1"),
        *linear_entries("classifier.3", "fc2"),
    ]


def efficientnet_table(stages: Sequence[Sequence[int]]) -> Table:
    """Returns the table of an ``EfficientNet`` for torchvision's.

    Args:
        stages: see the model.
    """
    table = [*_conv_norm("features.0", "stem", "stem_bn")]
    for stage, (expansion, *_, layers) in enumerate(stages):
        for layer in range(layers):
            table += _inverted_residual(
                f"features.{stage + 1}.{layer}.block",
                f"stage{stage + 1}_{layer}",
                expands=expansion > 1,
                squeeze=True,
            )
    return [
        *table,
        *_conv_norm(f"features.{len(stages) + 1}", "last", "last_bn"),
        *linear_entries("classifier.1", "classifier"),
    ]


def _inverted_residual(reference: str, ours: str, *, expands: bool, squeeze: bool) -> Table:
    layers = [*(["expand"] if expands else []), "depthwise", *(["squeeze"] if squeeze else [])]
    table: list[Entry] = []
    for place, name in enumerate([*layers, "project"]):
        theirs = f"{reference}.{place}"
        if name == "squeeze":
            for layer in ("fc1", "fc2"):
                table += conv_entries(f"{theirs}.{layer}", f"{ours}/squeeze/{layer}")
        else:
            table += _conv_norm(theirs, f"{ours}/{name}", f"{ours}/{name}_bn")
    return table


def _conv_norm(reference: str, conv: str, norm: str) -> Table:
    return [
        *conv_entries(f"{reference}.0", conv, bias=False),
        *batch_norm_entries(f"{reference}.1", norm),
    ]


FAMILY = family.Family(
    module=MobileNetV3,
    kind="image_classifier",
    sizes={"mobilenet_v3_large": {}, "mobilenet_v3_small": {"size": "small"}},
    rules={
        **family.IMAGES,
        "size": fields.choice("large", "small"),
        "dropout_rate": fields.FRACTION,
    },
    example=family.image(),
    weights={"torchvision": lambda module, params: mobilenet_table(SIZES[module.size][0])},
    preprocessing=family.presets("mobilenet_v3_large", "mobilenet_v3_small"),
)

EFFICIENTNET = family.Family(
    module=EfficientNet,
    kind="image_classifier",
    sizes={"efficientnet_b0": {}},
    rules={
        **family.IMAGES,
        "stages": fields.Rule(
            "expansion, kernel, stride, channels and layers of each stage",
            lambda value: all(len(stage) == 5 and min(stage) >= 1 for stage in value),
        ),
        "features": fields.at_least(1),
        "last_features": fields.at_least(1),
        "dropout_rate": fields.FRACTION,
        "stochastic_depth_rate": fields.FRACTION,
    },
    example=family.image(),
    weights={"torchvision": lambda module, params: efficientnet_table(module.stages)},
    preprocessing={"efficientnet_b0": family.Preprocessing(interpolation="bicubic")},
)
