"""The report page and figures of a translator's run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.datasets import Dataset
from zoo.data.vocabulary import Vocabulary
from zoo.reports.plots import draw_each, drawable, literal, new_figure, save
from zoo.reports.sections import Figure, Section
from zoo.tasks.wing import example_sections

Report = Mapping[str, Any]
_COLUMNS = 4


def sections(report: Report, folder: Path) -> list[Section]:
    """Returns some translations, and where the model looked for each word of theirs."""
    title = "Attention: which source words (below) each word of the translation (left) looks at"
    maps = [Figure(title, "attention.png", "plain")] if report.get("attention") else []
    return [*example_sections(report), *maps]


def draw(
    report: Report, folder: Path, vocabularies: Mapping[str, Vocabulary], dataset: Dataset
) -> None:
    """Draws the attention of some translations as ``attention.png``."""
    if maps := report.get("attention"):
        draw_each(folder, {"attention.png": lambda path: draw_attention(path, maps)})


def draw_attention(path: Path, maps: Sequence[Mapping[str, Any]]) -> None:
    """Draws maps of attention, several in a row.

    Args:
        path: the PNG file to write.
        maps: ``source`` and ``target``, the pieces of both sentences, and ``weights``, a row for
            each piece of the target.
    """
    rows = -(-len(maps) // _COLUMNS)
    figure, axes = new_figure(ncols=_COLUMNS, nrows=rows, size=(3.2 * _COLUMNS, 3.0 * rows))
    for axis, shown in zip(axes, maps, strict=False):
        # An empty translation has no map.
        if shown["weights"]:
            axis.imshow(np.asarray(shown["weights"]), cmap="Blues", vmin=0.0, vmax=1.0)
            axis.set_xticks(range(len(shown["source"])), _named(shown["source"]), rotation=60)
            axis.set_yticks(range(len(shown["target"])), _named(shown["target"]))
    for axis in axes[len(maps) :]:
        axis.set_axis_off()
    save(figure, path)


def _named(pieces: Sequence[str]) -> list[str]:
    return [literal(piece) if drawable(piece) else "?" for piece in pieces]
