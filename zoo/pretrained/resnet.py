"""Weights of ``zoo.models.ResNet`` from and to torchvision's."""

from collections.abc import Sequence

from zoo.pretrained.tables import Table, batch_norm_entries, conv_entries, linear_entries


def resnet_table(stages: Sequence[int], *, bottleneck: bool = False) -> Table:
    """The table of a ``ResNet`` and torchvision's ``resnet18`` to ``resnet152``.

    Args:
        stages: the model's.
        bottleneck: the model's.
    """
    table = [*conv_entries("conv1", "conv1", bias=False), *batch_norm_entries("bn1", "bn1")]
    for stage, blocks in enumerate(stages):
        for index in range(blocks):
            theirs, ours = f"layer{stage + 1}.{index}", f"layer{stage + 1}_{index}"
            for number in range(1, 4 if bottleneck else 3):
                table += conv_entries(f"{theirs}.conv{number}", f"{ours}/conv{number}", bias=False)
                table += batch_norm_entries(f"{theirs}.bn{number}", f"{ours}/bn{number}")
            # The first block of a stage changes the shape; of the first stage only a bottleneck.
            if not index and (stage or bottleneck):
                table += conv_entries(f"{theirs}.downsample.0", f"{ours}/downsample", bias=False)
                table += batch_norm_entries(f"{theirs}.downsample.1", f"{ours}/downsample_bn")
    return [*table, *linear_entries("fc", "fc")]
