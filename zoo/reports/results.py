"""``report.json``: how a run went, and what it reached."""

import json
from pathlib import Path
from typing import Any

from zoo import storage
from zoo.files import write_atomically

Report = dict[str, Any]
FILE = "report.json"
# What has not been made yet, or could not be made, by name, with the reason.
FAILURES = "failures"

_WAY_OUT = "Run the command of this run again, which writes the file anew"


def read_report(folder: Path, way_out: str = _WAY_OUT) -> Report:
    """Returns the content of a run's ``report.json``.

    Args:
        folder: the run's folder.
        way_out: what the user can do if the file cannot be read; ends the message.

    Raises:
        DamagedFile: the file cannot be read, or lacks what such a file always has.
    """
    file = folder / FILE
    report = storage.read_object(file, way_out)
    if wrong := _wrong(report):
        raise storage.DamagedFile(f"{file} is damaged: {wrong}. {way_out}")
    return report


def write_report(folder: Path, report: Report) -> None:
    """Writes a run's ``report.json``."""
    with storage.named(folder / FILE):
        write_atomically(folder / FILE, json.dumps(report, indent=2) + "\n")


def write_end(folder: Path, ended: Report) -> str:
    """Replaces the status ``running`` in a run's ``report.json``, even on a full disk.

    Args:
        folder: the run's folder.
        ended: ``status`` and other values to replace.

    Returns:
        What could not be done, in words; "" if the status was written, or if it was another one.
    """
    file = folder / FILE
    try:
        report = storage.read_object(file, "")
    except storage.DamagedFile:
        return ""
    if report.get("status") != "running":
        return ""
    try:
        write_report(folder, report | ended)
        return ""
    except OSError:
        pass
    # A removed file makes room for a shorter one.
    try:
        for path in (file.with_name(FILE + ".tmp"), file):
            path.unlink(missing_ok=True)
    except OSError as error:
        return f"{file} still says 'running', because it cannot be replaced ({error.strerror})"
    short: Report = {name: ended[name] for name in ("status", "steps") if name in ended}
    for shorter in (ended, short):
        try:
            write_report(folder, shorter)
            return ""
        except OSError:
            file.with_name(FILE + ".tmp").unlink(missing_ok=True)
    return f"{file} was removed, because the end of the run could not be written there"


def _wrong(report: Report) -> str:
    """Returns what a report lacks of what every report has, or nothing."""
    if not isinstance(report.get("status"), str):
        return "it has no status"
    if report["status"] != "finished":
        return ""
    for name in ("parameters", "steps", "train_seconds", "examples_per_second"):
        if not _is_number(report.get(name)):
            return f"{name!r} is no number"
    if not isinstance(report.get("platform"), str):
        return "it has no platform"
    metrics = report.get("metrics")
    if not isinstance(metrics, dict) or not all(
        isinstance(of_split, dict) and all(map(_is_number, of_split.values()))
        for of_split in metrics.values()
    ):
        return "'metrics' does not hold numbers by split"
    if not all(
        isinstance(report.get(name, {}), dict) for name in ("best", "environment", FAILURES)
    ):
        return "'best', 'environment' or 'failures' is no object"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
