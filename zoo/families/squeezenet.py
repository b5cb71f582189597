"""``zoo.models.SqueezeNet``, and its weights in the layout of torchvision."""

from collections.abc import Sequence

from zoo import fields
from zoo.families import family
from zoo.models.squeezenet import SqueezeNet
from zoo.weights.tables import Table, conv_entries


def squeezenet_table(stages: Sequence[Sequence[int]]) -> Table:
    """Returns the table of a ``SqueezeNet`` for torchvision's, which also numbers its poolings.

    Args:
        stages: see the model.
    """
    table = [*conv_entries("features.0", "conv1")]
    # Begin after the first convolution and its ReLU.
    place, number = 2, 1
    for stage in stages:
        for _ in stage:
            place, number = place + 1, number + 1
            for layer in ("squeeze", "expand1x1", "expand3x3"):
                table += conv_entries(f"features.{place}.{layer}", f"fire{number}/{layer}")
        place += 1
    return [*table, *conv_entries("classifier.1", f"conv{number + 1}")]


FAMILY = family.Family(
    module=SqueezeNet,
    kind="image_classifier",
    sizes={"squeezenet1_1": {}},
    rules={
        **family.IMAGES,
        "stages": fields.Rule(
            "a list of numbers for each stage, each at least 1",
            lambda value: all(len(stage) > 0 and min(stage) >= 1 for stage in value),
        ),
        "features": fields.at_least(1),
        "dropout_rate": fields.FRACTION,
    },
    example=family.image(),
    weights={"torchvision": lambda module, params: squeezenet_table(module.stages)},
    preprocessing=family.presets("squeezenet1_1"),
)
