"""``metrics.jsonl``: one JSON object a line for everything that was measured."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from zoo import storage
from zoo.errors import UserError
from zoo.files import write_atomically

SPLITS = ("train", "train_epoch", "validation", "test")


def is_gone(path: Path, file: IO[Any]) -> bool:
    """Returns whether an open file is no longer the one at a path: it was deleted or renamed."""
    try:
        return not os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return True


def read_records(path: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Returns the records of a file, without lines that are no records.

    Args:
        path: ``metrics.jsonl``.
        say: tells the user which lines are left out. The end of a line that a crash has cut off is
            among them.
    """
    records, torn, damaged = _read(path)
    if torn:
        say(f"{path}: {torn}")
    if damaged:
        say(f"{path} {damaged}")
    elif not records:
        say(f"{path} {'holds no records' if os.path.lexists(path) else 'is absent'}")
    return records


def cut_records(
    path: Path, step: int, evaluated_step: int, epochs: int, say: Callable[[str], None]
) -> None:
    """Removes the records that a restored run will write again.

    A file with lines that are no records is kept beside the new one, which has its records.

    Args:
        path: ``metrics.jsonl``.
        step: the restored step; later records of training are removed.
        evaluated_step: step of the last evaluation that the checkpoint knows of; later
            evaluations are removed, also one at the restored step. The test at the end is always
            removed.
        epochs: the number of whole epochs that the run has trained.
        say: tells the user what is wrong with the file.
    """
    there = os.path.lexists(path)
    records, torn, damaged = _read(path)
    if torn:
        say(f"{path}: {torn}")
    last = {"train": step, "train_epoch": step, "validation": evaluated_step, "test": -1}
    kept = [record for record in records if record["step"] <= last[record["split"]]]
    lost = _lost(kept, evaluated_step, epochs)
    if damaged:
        aside = storage.move_aside(path)
        say(f"{path} {damaged}; the file is kept as {aside.name}, and its {len(kept)} records stay")
    elif step and not there:
        lost = "any"
    if step and lost:
        say(
            f"{path} does not have {lost} of the records before step {step}; the curves will lack "
            "them, and the run is not affected"
        )
    with storage.named(path):
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))


def _lost(records: list[dict[str, Any]], evaluated_step: int, epochs: int) -> str:
    """Returns which part of a run's history is not in its records, or nothing."""
    if not records and (evaluated_step or epochs):
        return "any"
    means = sum(record["split"] == "train_epoch" for record in records)
    evaluated = any(
        record["split"] == "validation" and record["step"] == evaluated_step for record in records
    )
    return "some" if means < epochs or (evaluated_step and not evaluated) else ""


def _read(path: Path) -> tuple[list[dict[str, Any]], str, str]:
    """Returns the records of a file, words on an unfinished last line, and on any other damage."""
    try:
        content = storage.read_bytes(path)
    except FileNotFoundError:
        return [], "", ""
    except OSError as error:
        return [], "", f"cannot be read ({error.strerror})"
    *lines, rest = content.split(b"\n")
    torn = ""
    if rest.startswith(b"{") and b"\0" not in rest:
        torn = "the last line, which a crash has cut off, is left out"
    elif rest:
        # No record begins like this, so it is no remainder of one.
        lines.append(rest)
    records = [_record(line) for line in lines]
    foreign = [number for number, record in enumerate(records, start=1) if record is None]
    damaged = ""
    if foreign:
        which = f"lines {foreign[0]} to {foreign[-1]}" if foreign[1:] else f"line {foreign[0]}"
        damaged = f"is damaged: {len(foreign)} of {len(lines)} lines are no records ({which})"
    return [record for record in records if record is not None], torn, damaged


def _record(line: bytes) -> dict[str, Any] | None:
    """Returns the record in a line, or None if there is none."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("split") not in SPLITS:
        return None
    numbers = {name: value for name, value in record.items() if name != "split"}
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in numbers.values()):
        return None
    return record if isinstance(record.get("step"), int) else None


class RecordFile:
    """Appends records to a file, each line handed to the system at once."""

    def __init__(self, path: Path) -> None:
        """Opens the file for appending."""
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Appends one record."""
        with storage.named(self._path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def flush(self) -> None:
        """Returns when the file is on disk.

        Raises:
            UserError: the file has been deleted or renamed, so nobody would find the records.
        """
        if is_gone(self._path, self._file):
            raise UserError(
                f"{self._path} was deleted or renamed during the run: bring it back and run the "
                "same command to resume from the newest checkpoint"
            )
        with storage.named(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file, which is then on the disk."""
        with storage.named(self._path), self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
