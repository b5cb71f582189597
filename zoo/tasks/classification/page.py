"""The report page and figures of an image classifier's run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from zoo.data.datasets import Dataset
from zoo.data.vocabulary import Vocabulary
from zoo.reports.plots import draw_each
from zoo.reports.sections import Gallery, Section
from zoo.tasks.scores_page import draw_confusion_matrix, score_sections

Report = Mapping[str, Any]


def sections(report: Report, folder: Path) -> list[Section]:
    """Returns the confusion matrix, the scores by class, and the most confidently wrong images."""
    found = score_sections(report)
    if mistakes := report.get("mistakes"):
        items = tuple(
            (
                f"mistakes/{number}.png",
                f"{wrong['predicted']} {100 * wrong['probability']:.1f}%, is {wrong['label']}",
            )
            for number, wrong in enumerate(mistakes)
        )
        found.append(Gallery("Most confidently wrong", items))
    return found


def draw(
    report: Report, folder: Path, vocabularies: Mapping[str, Vocabulary], dataset: Dataset
) -> None:
    """Draws the confusion matrix, and writes the images of mistakes."""
    classes = vocabularies["classes"].symbols
    pictures: dict[str, Callable[[Path], None]] = {}
    if matrix := report.get("confusion_matrix"):
        pictures["confusion_matrix.png"] = lambda path: draw_confusion_matrix(path, matrix, classes)
    if (mistakes := report.get("mistakes")) is not None:
        source = dataset.open("test")
        pictures["mistakes"] = lambda path: write_mistakes(
            folder, [source[mistake["index"]]["image"] for mistake in mistakes]
        )
    draw_each(folder, pictures)


def write_mistakes(
    folder: Path, images: Sequence[UInt8[np.ndarray, ...] | Float[np.ndarray, ...]]
) -> None:
    """Writes images as ``mistakes/0.png`` and so on, and replaces older ones.

    An image without pixels cannot be written and is left out.

    Args:
        folder: the run's folder.
        images: images of shape ``height width channels``: bytes, or numbers between -1 and 1.
    """
    from PIL import Image

    (folder / "mistakes").mkdir(exist_ok=True)
    for old in (folder / "mistakes").glob("*.png"):
        old.unlink()
    for number, image in enumerate(images):
        if not image.size:
            continue
        pixels = image if image.dtype == np.uint8 else ((image + 1) * 127.5).astype(np.uint8)
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        picture.thumbnail((256, 256))
        picture.save(folder / "mistakes" / f"{number}.png")
