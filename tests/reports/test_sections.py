"""Pages, plots and comparisons serve any task."""

from pathlib import Path

import zoo.reports

# What some task writes into report.json or into the folder of its run.
OF_TASKS = ("confusion_matrix", "mistakes", "bands", "gradient_by_distance", "classification")


def test_no_part_of_the_reports_knows_a_task():
    folder = Path(zoo.reports.__file__).parent
    files = [file for file in folder.iterdir() if file.suffix in (".py", ".html")]
    assert len(files) > 5
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not [name for name in OF_TASKS if name in text], file
