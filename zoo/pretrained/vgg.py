"""Weights of ``zoo.models.VGG`` from and to torchvision's."""

from collections.abc import Sequence

from zoo.pretrained.tables import Entry, Table, batch_norm_entries, conv_entries, linear_entries
from zoo.pretrained.transforms import flatten_chw


def vgg_table(stages: Sequence[int], *, batch_norm: bool = False) -> Table:
    """The table of a ``VGG`` and torchvision's, whose layers are numbered with all that is between.

    Args:
        stages: the model's.
        batch_norm: the model's.
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
