"""The report page and figures of a text classifier's run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.data.datasets import Dataset
from zoo.data.vocabulary import Vocabulary
from zoo.reports.plots import draw_each
from zoo.reports.sections import Section, Table
from zoo.tasks.scores_page import draw_confusion_matrix, score_sections

Report = Mapping[str, Any]


def sections(report: Report, folder: Path) -> list[Section]:
    """Returns the confusion matrix, the scores by class, and the most confidently wrong texts."""
    found = score_sections(report)
    if mistakes := report.get("mistakes"):
        rows = tuple(
            (wrong["text"], wrong["label"], wrong["predicted"], f"{wrong['probability']:.3f}")
            for wrong in mistakes
        )
        columns = ("text", "is", "predicted", "probability")
        found.append(Table("Most confidently wrong", columns, rows, prose=("text",)))
    return found


def draw(
    report: Report, folder: Path, vocabularies: Mapping[str, Vocabulary], dataset: Dataset
) -> None:
    """Draws the confusion matrix, if the report has one."""
    classes = vocabularies["classes"].symbols
    if matrix := report.get("confusion_matrix"):
        draw_each(
            folder,
            {"confusion_matrix.png": lambda path: draw_confusion_matrix(path, matrix, classes)},
        )
