"""The report sections and figures for the scores of any classifier."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.reports.plots import drawable, literal, new_figure, save
from zoo.reports.sections import Figure, Section, Table

Report = Mapping[str, Any]
# With more classes than this, the names and counts in a confusion matrix would be illegible.
READABLE_CLASSES = 60
# scikit-learn's averages, which its report lists among the classes.
AVERAGES = ("accuracy", "macro avg", "weighted avg", "micro avg")


def score_sections(report: Report) -> list[Section]:
    """Returns the confusion matrix and the scores by class."""
    found: list[Section] = []
    if "confusion_matrix" in report:
        title = "Confusion matrix: rows are the true classes"
        found.append(Figure(title, "confusion_matrix.png", "plain"))
    rows = tuple(
        (
            name,
            *(f"{scores[of]:.3f}" for of in ("precision", "recall", "f1-score")),
            str(int(scores["support"])),
        )
        for name, scores in report.get("classification_report", {}).items()
        if name not in AVERAGES
    )
    if rows:
        columns = ("class", "precision", "recall", "F1", "examples")
        found.append(Table("Classes", columns, rows))
    return found


def draw_confusion_matrix(
    path: Path, matrix: Sequence[Sequence[int]], class_names: Sequence[str]
) -> None:
    """Draws a confusion matrix: rows are the true classes, columns the predicted ones.

    Args:
        path: the PNG file to write.
        matrix: the counts.
        class_names: the names of the rows, in their order. A row without a name, or with one that
            the font cannot draw, shows its number.
    """
    counts = np.asarray(matrix)
    classes = len(counts)
    # Boxes in place of the characters that the font lacks would make the classes look alike.
    names = [
        literal(name) if drawable(name) else str(label)
        for label, name in enumerate(class_names[:classes])
    ]
    names += [str(label) for label in range(len(names), classes)]
    side = (
        3.0 + 0.4 * classes + 0.08 * max(map(len, names), default=0)
        if classes <= READABLE_CLASSES
        else 12.0
    )
    figure, (axis,) = new_figure(ncols=1, size=(side, side))
    axis.imshow(np.log1p(counts), cmap="Blues")
    axis.set(xlabel="predicted", ylabel="true")
    if classes <= READABLE_CLASSES:
        axis.set_xticks(range(classes), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axis.set_yticks(range(classes), names)
        dark = np.log1p(counts.max()) / 2
        for row, column in np.ndindex(*counts.shape):
            count = counts[row, column]
            color = "white" if np.log1p(count) > dark else "black"
            axis.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    save(figure, path)
