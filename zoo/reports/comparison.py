"""Finished runs side by side: one table of their results, one picture of their curves, one page."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from zoo.errors import UserError
from zoo.reports.page import in_words, numbers, shows, write_page
from zoo.reports.plots import (
    NotDrawn,
    add_curves,
    draw_each,
    finish_axis,
    literal,
    new_figure,
    save,
)
from zoo.reports.records import read_records
from zoo.reports.results import FILE, read_report
from zoo.reports.sections import Curve, Run

DEFAULT_PAGE = Path("runs/report.html")


def read_reports(
    folders: Sequence[Path], is_running: Callable[[Path], bool]
) -> dict[str, dict[str, Any]]:
    """Returns the content of each run's ``report.json``, by the run's name.

    The name of a run is that of its folder, or the path as given where two folders share a name.

    Args:
        folders: the folders of the runs.
        is_running: whether a process holds a folder.

    Raises:
        UserError: a folder is given twice, has no report or a damaged one, or its run has not
            finished.
    """
    reports: dict[str, dict[str, Any]] = {}
    names = [Path(os.path.abspath(folder)).name for folder in folders]
    seen: set[str] = set()
    for folder, name in zip(folders, names, strict=True):
        if "\0" in str(folder):
            raise UserError(f"{str(folder)!r} holds no run: a path has no NUL character")
        real = os.path.realpath(folder)
        if real in seen:
            raise UserError(f"{folder} is given twice: give each run once")
        seen.add(real)
        if not os.path.lexists(folder / FILE):
            raise UserError(f"{folder} holds no run: there is no {folder / FILE}")
        report = read_report(folder)
        status = report["status"]
        if status == "running" and not is_running(folder):
            # The process was killed, or the machine stopped.
            status = "interrupted"
        if status != "finished":
            reason = f": {report['reason']}" if isinstance(report.get("reason"), str) else ""
            what = "wait for it" if status == "running" else "start it again with the same command"
            raise UserError(
                f"the run in {folder} has not finished (status {status!r}{reason}): {what}"
            )
        reports[name if names.count(name) == 1 else str(folder)] = report
    return reports


def compared(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Returns a row for each number that a run has, with one text per run; "-" where it has none.

    A run's numbers are those of ``zoo.reports.page.numbers``.
    """
    columns = [numbers(run) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name, "-") for column in columns] for name in names}


def comparison_table(runs: Sequence[Run]) -> Table:
    """Lays out ``compared`` for the terminal, one column per run."""
    table = Table()
    table.add_column("")
    for run in runs:
        # As Text, because a plain name such as [bold] would be read as markup.
        table.add_column(Text(run.name), justify="right")
    for row, texts in compared(runs).items():
        table.add_row(*map(Text, (row, *texts)))
    return table


def plot_comparison(path: Path, runs: Sequence[Run], say: Callable[[str], None]) -> None:
    """Draws the validation loss against the step, and curves of the same title over one another.

    Args:
        path: the PNG file to write; its folder is made where it is absent.
        runs: whose ``metrics.jsonl`` are read and whose sections may hold curves.
        say: tells the user what is wrong with a ``metrics.jsonl``.
    """
    titles: dict[str, dict[str, Curve]] = {}
    for run in runs:
        for section in run.sections:
            if isinstance(section, Curve):
                titles.setdefault(section.title, {})[run.name] = section
    count = 1 + len(titles)
    figure, axes = new_figure(ncols=count, size=(6.0 * count, 4.0))
    for run in runs:
        points = [
            (record["step"], record["loss"])
            for record in read_records(run.folder / "metrics.jsonl", say)
            if record["split"] == "validation" and "loss" in record
        ]
        if points:
            axes[0].plot(*zip(*points, strict=True), marker="s", label=literal(run.name))
    finish_axis(axes[0], xlabel="step", ylabel="validation loss")
    for axis, curves in zip(axes[1:], titles.values(), strict=True):
        add_curves(axis, curves)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)


def write_comparison(
    runs: Sequence[Run], out: Path | None = None, *, say: Callable[[str], None]
) -> Path:
    """Writes the page of several runs and, beside it, the PNG file of their curves.

    Args:
        runs: finished runs.
        out: the HTML file, which is replaced if it exists. None: ``runs/report.html``, or the
            next free ``runs/report-2.html``, … where that is a page of other runs.
        say: tells the user which files were written, and what was there before.

    Returns:
        The HTML file.
    """
    page = out or _next_page(runs, say)
    replaced = page.exists()
    curves = page.with_suffix(".png")
    page.parent.mkdir(parents=True, exist_ok=True)
    try:
        draw_each(page.parent, {curves.name: lambda path: plot_comparison(path, runs, say)})
    except NotDrawn as error:
        say(f"warning: {curves} could not be drawn ({in_words(error.failures[curves.name])})")
    failures = write_page(page, runs, comparison=compared(runs), figures=[("Side by side", curves)])
    for title, reason in failures.items():
        say(f"warning: {title} could not be made ({reason})")
    say(f"page in {page}{', which is replaced' if replaced else ''}, curves in {curves}")
    return page


def _next_page(runs: Sequence[Run], say: Callable[[str], None]) -> Path:
    page, number = DEFAULT_PAGE, 2
    while page.exists() and not shows(page, runs):
        following = DEFAULT_PAGE.with_stem(f"{DEFAULT_PAGE.stem}-{number}")
        say(f"{page} is a page of other runs: trying {following}")
        page, number = following, number + 1
    return page
