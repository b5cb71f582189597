"""Weights of ``zoo.models.SqueezeNet`` from and to torchvision's."""

from collections.abc import Sequence

from zoo.pretrained.tables import Table, conv_entries


def squeezenet_table(stages: Sequence[Sequence[int]]) -> Table:
    """The table of a ``SqueezeNet`` and torchvision's, whose poolings are numbered too.

    Args:
        stages: the model's.
    """
    table = [*conv_entries("features.0", "conv1")]
    # After the first convolution and its ReLU.
    place, number = 2, 1
    for stage in stages:
        for _ in stage:
            place, number = place + 1, number + 1
            for layer in ("squeeze", "expand1x1", "expand3x3"):
                table += conv_entries(f"features.{place}.{layer}", f"fire{number}/{layer}")
        place += 1
    return [*table, *conv_entries("classifier.1", f"conv{number + 1}")]
