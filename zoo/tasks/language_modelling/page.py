"""The report page and figures of a language model's run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.data.datasets import Dataset
from zoo.data.vocabulary import Vocabulary
from zoo.reports.plots import draw_curves, draw_each
from zoo.reports.sections import Curve, Numbers, Section
from zoo.tasks.wing import example_sections

Report = Mapping[str, Any]


def sections(report: Report, folder: Path) -> list[Section]:
    """Returns the continued texts, and the gradient by distance if the model is recurrent."""
    found: list[Section] = []
    if norms := report.get("gradient_by_distance"):
        share = norms[-1] / max(norms) if max(norms) else 0.0
        name = f"gradient {len(norms) - 1} steps back, relative to the largest"
        found += [_gradient(norms), Numbers(((name, f"{share:.1e}"),))]
    return found + example_sections(report)


def draw(
    report: Report, folder: Path, vocabularies: Mapping[str, Vocabulary], dataset: Dataset
) -> None:
    """Draws how the gradient falls with distance, if the model is recurrent."""
    if norms := report.get("gradient_by_distance"):
        curves = {"": _gradient(norms)}
        draw_each(folder, {"gradient_by_distance.png": lambda path: draw_curves(path, curves)})


def _gradient(norms: Sequence[float]) -> Curve:
    title = "Gradient of the last loss by distance in time"
    return Curve(title, "characters back", "gradient of the last loss", tuple(norms), log=True)
