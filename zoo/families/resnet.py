"""``zoo.models.ResNet``, and its weights in the layout of torchvision."""

from collections.abc import Sequence

from zoo import fields
from zoo.families import family
from zoo.models.resnet import ResNet
from zoo.weights.tables import Table, batch_norm_entries, conv_entries, linear_entries


def resnet_table(stages: Sequence[int], *, bottleneck: bool = False) -> Table:
    """Returns the table of a ``ResNet`` for torchvision's ``resnet18`` to ``resnet152``.

    Args:
        stages: see the model.
        bottleneck: see the model.
    """
    table = [*conv_entries("conv1", "conv1", bias=False), *batch_norm_entries("bn1", "bn1")]
    for stage, blocks in enumerate(stages):
        for index in range(blocks):
            theirs, ours = f"layer{stage + 1}.{index}", f"layer{stage + 1}_{index}"
            for number in range(1, 4 if bottleneck else 3):
                table += conv_entries(f"{theirs}.conv{number}", f"{ours}/conv{number}", bias=False)
                table += batch_norm_entries(f"{theirs}.bn{number}", f"{ours}/bn{number}")
            # The first block of a stage changes the shape; in the first stage, only a bottleneck
            # does.
            if not index and (stage or bottleneck):
                table += conv_entries(f"{theirs}.downsample.0", f"{ours}/downsample", bias=False)
                table += batch_norm_entries(f"{theirs}.downsample.1", f"{ours}/downsample_bn")
    return [*table, *linear_entries("fc", "fc")]


FAMILY = family.Family(
    module=ResNet,
    kind="image_classifier",
    sizes={
        "resnet18": {},
        "resnet34": {"stages": (3, 4, 6, 3)},
        "resnet50": {"stages": (3, 4, 6, 3), "bottleneck": True},
        "resnet101": {"stages": (3, 4, 23, 3), "bottleneck": True},
        "resnet152": {"stages": (3, 8, 36, 3), "bottleneck": True},
    },
    rules={
        **family.IMAGES,
        "stages": family.DEPTHS,
        "features": fields.at_least(1),
        "stem": fields.choice("cifar", "imagenet"),
    },
    example=family.image(),
    # timm names a ResNet as torchvision does.
    weights={
        "torchvision": lambda module, params: resnet_table(
            module.stages, bottleneck=module.bottleneck
        )
    },
    preprocessing=family.presets("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
)
