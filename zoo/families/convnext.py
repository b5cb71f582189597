"""``zoo.models.ConvNeXt``, and its weights in the layouts of torchvision and timm."""

from collections.abc import Sequence

from zoo import fields
from zoo.families import family
from zoo.models.convnext import ConvNeXt
from zoo.weights.tables import Entry, Table, conv_entries, linear_entries, norm_entries
from zoo.weights.transforms import Transform

_SCALE = Transform(lambda a: a.reshape(a.shape[0]), lambda a: a.reshape(-1, 1, 1))


def convnext_table(stages: Sequence[int]) -> Table:
    """Returns the table of a ``ConvNeXt`` for torchvision's ``convnext_tiny``.

    Args:
        stages: see the model.
    """
    table = [*conv_entries("features.0.0", "stem"), *norm_entries("features.0.1", "stem_norm")]
    for stage, blocks in enumerate(stages):
        if stage:
            table += norm_entries(f"features.{2 * stage}.0", f"halve{stage}_norm")
            table += conv_entries(f"features.{2 * stage}.1", f"halve{stage}")
        for index in range(blocks):
            theirs, ours = f"features.{2 * stage + 1}.{index}", f"stage{stage + 1}_{index}"
            table += conv_entries(f"{theirs}.block.0", f"{ours}/depthwise")
            table += norm_entries(f"{theirs}.block.2", f"{ours}/norm")
            table += linear_entries(f"{theirs}.block.3", f"{ours}/up")
            table += linear_entries(f"{theirs}.block.5", f"{ours}/down")
            table.append(Entry(f"{theirs}.layer_scale", f"{ours}/layer_scale", _SCALE))
    return [*table, *norm_entries("classifier.0", "norm"), *linear_entries("classifier.2", "head")]


def convnext_timm_table(stages: Sequence[int]) -> Table:
    """Returns the table of a ``ConvNeXt`` for timm's.

    Args:
        stages: see the model.
    """
    table = [*conv_entries("stem.0", "stem"), *norm_entries("stem.1", "stem_norm")]
    for stage, blocks in enumerate(stages):
        if stage:
            table += norm_entries(f"stages.{stage}.downsample.0", f"halve{stage}_norm")
            table += conv_entries(f"stages.{stage}.downsample.1", f"halve{stage}")
        for index in range(blocks):
            theirs, ours = f"stages.{stage}.blocks.{index}", f"stage{stage + 1}_{index}"
            table += conv_entries(f"{theirs}.conv_dw", f"{ours}/depthwise")
            table += norm_entries(f"{theirs}.norm", f"{ours}/norm")
            table += linear_entries(f"{theirs}.mlp.fc1", f"{ours}/up")
            table += linear_entries(f"{theirs}.mlp.fc2", f"{ours}/down")
            table.append(Entry(f"{theirs}.gamma", f"{ours}/layer_scale"))
    return [*table, *norm_entries("head.norm", "norm"), *linear_entries("head.fc", "head")]


FAMILY = family.Family(
    module=ConvNeXt,
    kind="image_classifier",
    sizes={"convnext_tiny": {}},
    rules={
        **family.IMAGES,
        "stages": family.DEPTHS,
        "features": fields.COUNTS,
        "stochastic_depth_rate": fields.FRACTION,
        "layer_scale": fields.ABOVE_ZERO,
    },
    example=family.image(),
    weights={
        "torchvision": lambda module, params: convnext_table(module.stages),
        "timm": lambda module, params: convnext_timm_table(module.stages),
    },
    preprocessing={"convnext_tiny": family.Preprocessing(resize=236)},
)
