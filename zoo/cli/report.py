"""``zoo report``: compares finished runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from zoo.errors import UserError

HELP = """compare finished runs

Prints the results of finished runs side by side and draws their curves on one page."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("workdirs", nargs="+", help="folders of the runs")
    parser.add_argument(
        "--out",
        help="the HTML file to write or replace; default: runs/report.html, or the next free "
        "runs/report-2.html if that is a page of other runs",
    )


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Prints the comparison and writes the page."""
    out = Path(options.out) if options.out else None
    if out and out.suffix.lower() != ".html":
        raise UserError(f"--out={out} must end in .html")
    from rich.console import Console

    from zoo import inference, remote, workdir
    from zoo.reports import comparison

    folders = [remote.local(folder) for folder in options.workdirs]
    reports = comparison.read_reports(folders, workdir.is_running)
    runs = [
        inference.shown(name, folder, report)
        for (name, report), folder in zip(reports.items(), folders, strict=True)
    ]
    Console(soft_wrap=True).print(comparison.comparison_table(runs))
    comparison.write_comparison(runs, out, say=print)
