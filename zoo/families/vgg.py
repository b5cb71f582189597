"""``zoo.models.VGG``, and its weights in the layout of torchvision."""

from collections.abc import Sequence

from zoo import fields
from zoo.families import family
from zoo.models.vgg import VGG
from zoo.weights.tables import Entry, Table, batch_norm_entries, conv_entries, linear_entries
from zoo.weights.transforms import flatten_chw


def vgg_table(stages: Sequence[int], *, batch_norm: bool = False) -> Table:
    """Returns the table of a ``VGG`` for torchvision's, which numbers all layers of ``features``.

    Args:
        stages: see the model.
        batch_norm: see the model.
    """
    table: list[Entry] = []
    place, number = 0, 0
    for convolutions in stages:
        for _ in range(convolutions):
            number += 1
            table += conv_entries(f"features.{place}", f"conv{number}")
            if batch_norm:
                table += batch_norm_entries(f"features.{place + 1}", f"bn{number}")
            place += 3 if batch_norm else 2
        place += 1
    return [
        *table,
        Entry("classifier.0.weight", "fc1/kernel", flatten_chw(7, 7)),
        Entry("classifier.0.bias", "fc1/bias"),
        *linear_entries("classifier.3", "fc2"),
        *linear_entries("classifier.6", "fc3"),
    ]


FAMILY = family.Family(
    module=VGG,
    kind="image_classifier",
    sizes={
        "vgg11": {},
        "vgg11_bn": {"batch_norm": True},
        "vgg16": {"stages": (2, 2, 3, 3, 3)},
        "vgg16_bn": {"stages": (2, 2, 3, 3, 3), "batch_norm": True},
    },
    rules={
        **family.IMAGES,
        "stages": family.DEPTHS,
        "features": fields.COUNTS,
        "hidden_features": fields.at_least(1),
        "dropout_rate": fields.FRACTION,
    },
    example=family.image(),
    weights={
        "torchvision": lambda module, params: vgg_table(module.stages, batch_norm=module.batch_norm)
    },
    preprocessing=family.presets("vgg11", "vgg11_bn", "vgg16", "vgg16_bn"),
)
