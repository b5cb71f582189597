"""``metrics.jsonl``: one JSON object a line for everything that was measured."""

import json
import os
from pathlib import Path
from typing import Any

from zoo.files import write_atomically


def read_records(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a file without an unfinished last line, left by a killed process."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def cut_records(path: Path, step: int, evaluated_step: int) -> None:
    """Removes the records that a restored run will write again.

    Args:
        path: ``metrics.jsonl``.
        step: the restored step; later records of training are removed.
        evaluated_step: step of the last evaluation that the checkpoint knows of; later
            evaluations are removed, also one at the restored step. The test at the end is always
            removed.
    """
    last = {"train": step, "train_epoch": step, "validation": evaluated_step, "test": -1}
    kept = [record for record in read_records(path) if record["step"] <= last[record["split"]]]
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))


class RecordFile:
    """Appends records to a file, each line handed to the system at once."""

    def __init__(self, path: Path) -> None:
        """Opens the file for appending."""
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Appends one record."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Returns when the file is on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file, which is then on the disk."""
        with self._file:
            self.flush()
