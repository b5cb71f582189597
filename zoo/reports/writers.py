"""Joins the places where records go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from zoo.reports.console import ConsoleWriter
from zoo.reports.plots import image_grid, write_picture
from zoo.reports.records import RecordFile, cut_records


class RunWriter:
    """Writes records to ``metrics.jsonl``, TensorBoard event files and the terminal."""

    def __init__(
        self, workdir: Path, console: ConsoleWriter, *, step: int, evaluated_step: int
    ) -> None:
        """Opens the files and cuts them to the step at which the run stands.

        Args:
            workdir: the run's folder.
            console: writes to the terminal.
            step: the restored step, 0 for a new run.
            evaluated_step: step of the last evaluation that the checkpoint knows of.
        """
        # TensorBoard's own format without TensorFlow.
        from tensorboardX import SummaryWriter

        self._workdir = workdir
        path = workdir / "metrics.jsonl"
        cut_records(path, step, evaluated_step)
        self._records = RecordFile(path)
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        self._console = console

    def step(self, step: int) -> None:
        """Passes a step on to the live line."""
        self._console.step(step)

    def write(self, record: dict[str, Any]) -> None:
        """Writes one record everywhere."""
        self._records.write(record)
        self._console.write(record)
        for name, value in record.items():
            if name not in ("split", "step", "epoch"):
                self._events.add_scalar(f"{record['split']}/{name}", value, record["step"])

    def write_images(
        self, split: str, step: int, images: UInt8[np.ndarray, "images height width 3"]
    ) -> None:
        """Writes images as one grid: ``samples/<split>-<step>.png``, and in TensorBoard."""
        grid = image_grid(images)
        write_picture(self._workdir / "samples" / f"{split}-{step:08}.png", grid)
        self._events.add_image(f"{split}/samples", grid, step, dataformats="HWC")

    def flush(self) -> None:
        """Returns when every record is on disk."""
        self._records.flush()
        self._events.flush()

    def close(self) -> None:
        """Closes the files and ends the live line."""
        self._console.close()
        self._records.close()
        self._events.close()
