"""Finished runs side by side: a table of their results, and one picture of their curves."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from zoo.errors import UserError
from zoo.reports.page import numbers
from zoo.reports.plots import draw_gradients, new_figure
from zoo.reports.records import read_records

Report = Mapping[str, Any]


def read_reports(folders: Sequence[Path]) -> dict[str, Report]:
    """Returns what ``report.json`` of each run says, by the run's name.

    A run's name is its folder's, or its whole path where two folders have the same name.

    Raises:
        UserError: a folder has no report, or its run has not finished.
    """
    reports: dict[str, Report] = {}
    unique = len({folder.name for folder in folders}) == len(folders)
    for folder in folders:
        file = folder / "report.json"
        if not file.is_file():
            raise UserError(f"{folder} holds no run: there is no {file}")
        report = json.loads(file.read_text(encoding="utf-8"))
        if report["status"] != "finished":
            raise UserError(
                f"the run in {folder} has not finished (status {report['status']!r}): start it "
                "again with the same command"
            )
        reports[folder.name if unique else str(folder)] = report
    return reports


def compared(reports: Mapping[str, Report]) -> dict[str, list[str]]:
    """Returns what the reports say, a row for each number with one text for each run."""
    columns = [numbers(report) | _gradient(report) for report in reports.values()]
    names = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name, "-") for column in columns] for name in names}


def comparison_table(reports: Mapping[str, Report]) -> Table:
    """Lays out ``compared`` for the terminal, one column a run."""
    table = Table()
    table.add_column("")
    for name in reports:
        table.add_column(name, justify="right")
    for row, texts in compared(reports).items():
        table.add_row(row, *texts)
    return table


def _gradient(report: Report) -> dict[str, str]:
    norms = report.get("gradient_by_distance")
    if not norms:
        return {}
    share = norms[-1] / max(norms) if max(norms) else 0.0
    return {f"gradient {len(norms) - 1} steps back, of the largest": f"{share:.1e}"}


def plot_comparison(path: Path, folders: Sequence[Path], reports: Mapping[str, Report]) -> None:
    """Draws the validation loss against the step, and what else the reports have to draw.

    Args:
        path: the PNG file to write.
        folders: of the runs.
        reports: what ``read_reports`` returned for them.
    """
    gradients = {
        name: report["gradient_by_distance"]
        for name, report in reports.items()
        if "gradient_by_distance" in report
    }
    figure, axes = new_figure(ncols=2 if gradients else 1, size=(12.0 if gradients else 6.0, 4.0))
    for name, folder in zip(reports, folders, strict=True):
        points = [
            (record["step"], record["loss"])
            for record in read_records(folder / "metrics.jsonl")
            if record["split"] == "validation"
        ]
        if points:
            axes[0].plot(*zip(*points, strict=True), marker="s", label=name)
    axes[0].set(xlabel="step", ylabel="validation loss")
    axes[0].grid(alpha=0.3)
    axes[0].legend()
    if gradients:
        draw_gradients(axes[1], gradients)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
