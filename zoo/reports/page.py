"""The report as one HTML file that needs nothing else: no script, no style, no image from afar."""

import base64
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from zoo.reports.records import write_atomically

_FIGURES = (
    ("curves.png", "Curves", "chart"),
    ("confusion_matrix.png", "Confusion matrix: rows are the true classes", ""),
    ("bands.png", "Forecasts, the first and the last of the test split among them", "chart"),
    ("gradient_by_distance.png", "Gradient of the last loss by distance in time", "chart"),
)
_ALIKE = ("accuracy", "macro avg", "weighted avg", "micro avg")


def write_page(
    path: Path,
    folders: Mapping[str, Path],
    *,
    comparison: Mapping[str, Sequence[str]] | None = None,
    figures: Sequence[tuple[str, Path]] = (),
) -> None:
    """Writes the page of one run or of several.

    Args:
        path: the HTML file to write.
        folders: of finished runs, by name.
        comparison: rows of a table with one text for each run.
        figures: captions and PNG files, shown before those of the runs.
    """
    # Escapes everything; imported where it is used.
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True).from_string(
        resources.files("zoo.reports").joinpath("page.html").read_text(encoding="utf-8")
    )
    runs = [_run(name, folder) for name, folder in folders.items()]
    text = template.render(
        title=" · ".join(folders),
        subtitle=_subtitle(runs),
        runs=runs,
        comparison=comparison,
        figures=[
            *((caption, embedded(file), "chart") for caption, file in figures),
            *(figure for folder in folders.values() for figure in _figures(folder)),
        ],
    )
    write_atomically(path, text)


def embedded(file: Path) -> str:
    """Returns a PNG file as the address of an image that holds it."""
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode("ascii")


def _run(name: str, folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    mistakes = [
        {
            "image": embedded(folder / "mistakes" / f"{number}.png"),
            "caption": f"{wrong['predicted']} {100 * wrong['probability']:.1f}%, is "
            f"{wrong['label']}",
        }
        for number, wrong in enumerate(report.get("mistakes", []))
        if (folder / "mistakes" / f"{number}.png").is_file()
    ]
    return {
        "name": name,
        "platform": report["platform"],
        "numbers": numbers(report),
        "classes": [
            {
                "name": label,
                "precision": scores["precision"],
                "recall": scores["recall"],
                "f1": scores["f1-score"],
                "support": int(scores["support"]),
            }
            for label, scores in report.get("classification_report", {}).items()
            if label not in _ALIKE
        ],
        "mistakes": mistakes,
        "wrong_texts": [wrong for wrong in report.get("mistakes", []) if "text" in wrong],
        "examples": report.get("examples", []),
        "parameters": report.get("parameter_table", []),
        "config": (folder / "config.json").read_text(encoding="utf-8").strip(),
        "environment": report.get("environment", {}),
    }


def numbers(report: Mapping[str, Any]) -> dict[str, str]:
    """Returns what one sees first: the test's metrics, size, length and times, as text."""
    test = {f"test {name}": f"{value:.4f}" for name, value in report["metrics"]["test"].items()}
    best = report.get("best", {})
    validation = {
        f"best validation {name}": f"{value:.4f}"
        for name, value in best.items()
        if name != "step" and value is not None
    }
    return {
        **test,
        **validation,
        "parameters": f"{report['parameters']:,}",
        "steps": f"{report['steps']:,}",
        "epochs": f"{report.get('epochs', 0):.2f}",
        "seconds of training": f"{report['train_seconds']:.0f}",
        "seconds of compiling": f"{report.get('compile_seconds', 0):.0f}",
        "examples per second": f"{report['examples_per_second']:.0f}",
    }


def _subtitle(runs: Sequence[Mapping[str, Any]]) -> str:
    devices = {run["environment"].get("device", run["platform"]) for run in runs}
    return f"trained on {' and '.join(sorted(map(str, devices)))}"


def _figures(folder: Path) -> list[tuple[str, str, str]]:
    found = [
        (caption, embedded(folder / name), kind)
        for name, caption, kind in _FIGURES
        if (folder / name).is_file()
    ]
    samples = sorted((folder / "samples").glob("*.png"))
    if samples:
        found.append(("Samples", embedded(samples[-1]), "pixels"))
    return found
