"""The report page of a speech recogniser's run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.reports.sections import Section
from zoo.tasks.wing import example_sections

Report = Mapping[str, Any]


def sections(report: Report, folder: Path) -> list[Section]:
    """Returns what was said and what was heard."""
    return example_sections(report)
