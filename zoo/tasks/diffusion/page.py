"""The report page of a run that draws images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.reports.sections import Figure, Section

Report = Mapping[str, Any]


def sections(report: Report, folder: Path) -> list[Section]:
    """Returns the newest images drawn during the run."""
    drawn = sorted((folder / "samples").glob("*.png"))
    return [Figure("Samples", f"samples/{drawn[-1].name}", "pixels")] if drawn else []
