"""``zoo.models.DenseNet``, and its weights in the layout of torchvision."""

from collections.abc import Sequence

from zoo import fields
from zoo.families import family
from zoo.models.densenet import DenseNet
from zoo.weights.tables import (
    Table,
    batch_norm_entries,
    conv_entries,
    linear_entries,
    renamed,
)


def densenet_table(blocks: Sequence[int]) -> Table:
    """Returns the table of a ``DenseNet`` for torchvision's.

    Args:
        blocks: see the model.
    """
    table = [
        *conv_entries("features.conv0", "conv0", bias=False),
        *batch_norm_entries("features.norm0", "norm0"),
        *batch_norm_entries("features.norm5", "norm5"),
        *linear_entries("classifier", "classifier"),
    ]
    for block, layers in enumerate(blocks, start=1):
        for layer in range(1, layers + 1):
            theirs = f"features.denseblock{block}.denselayer{layer}"
            ours = f"block{block}_{layer}"
            for number in (1, 2):
                table += batch_norm_entries(f"{theirs}.norm{number}", f"{ours}_norm{number}")
                table += conv_entries(f"{theirs}.conv{number}", f"{ours}_conv{number}", bias=False)
        if block < len(blocks):
            theirs, ours = f"features.transition{block}", f"transition{block}"
            table += batch_norm_entries(f"{theirs}.norm", f"{ours}_norm")
            table += conv_entries(f"{theirs}.conv", f"{ours}_conv", bias=False)
    return table


def densenet_old_table(blocks: Sequence[int]) -> Table:
    """Returns the table for torchvision's published files, which have older names: ``norm.1``.

    Args:
        blocks: see the model.
    """
    return renamed(densenet_table(blocks), r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2")


FAMILY = family.Family(
    module=DenseNet,
    kind="image_classifier",
    sizes={"densenet121": {}},
    rules={
        **family.IMAGES,
        "blocks": family.DEPTHS,
        "growth": fields.at_least(1),
        "features": fields.at_least(1),
        "bottleneck": fields.at_least(1),
    },
    example=family.image(),
    weights={
        "torchvision": lambda module, params: densenet_table(module.blocks),
        "torchvision, older names": lambda module, params: densenet_old_table(module.blocks),
    },
    preprocessing=family.presets("densenet121"),
)
