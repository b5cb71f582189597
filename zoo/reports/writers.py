"""Joins the places where records go."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from zoo import storage
from zoo.reports.console import ConsoleWriter
from zoo.reports.plots import image_grid, write_picture
from zoo.reports.records import RecordFile, cut_records


class RunWriter:
    """Writes records to ``metrics.jsonl``, TensorBoard event files and the terminal."""

    def __init__(
        self,
        workdir: Path,
        console: ConsoleWriter,
        *,
        step: int,
        evaluated_step: int,
        epochs: int = 0,
        say: Callable[[str], None] = print,
    ) -> None:
        """Opens the files and cuts them to the step at which the run stands.

        Args:
            workdir: the run's folder.
            console: writes to the terminal.
            step: the restored step, 0 for a new run.
            evaluated_step: step of the last evaluation that the checkpoint knows of.
            epochs: the number of whole epochs that the run has trained.
            say: tells the user what is wrong with ``metrics.jsonl``.
        """
        self._workdir = workdir
        path = workdir / "metrics.jsonl"
        cut_records(path, step, evaluated_step, epochs, say)
        self._records = RecordFile(path)
        self._events = EventFile(workdir / "tensorboard", step + 1)
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
        # Whoever watches the run in TensorBoard sees the record at once.
        self._events.flush()

    def write_images(
        self, split: str, step: int, images: UInt8[np.ndarray, "images height width 3"]
    ) -> None:
        """Writes images as one grid: ``samples/<split>-<step>.png``, and in TensorBoard.

        Images without pixels are left out.
        """
        if not images.size:
            return
        grid = image_grid(images)
        write_picture(self._workdir / "samples" / f"{split}-{step:08}.png", grid)
        self._events.add_image(f"{split}/samples", grid, step)

    def flush(self) -> None:
        """Returns when every record is on disk."""
        self._records.flush()
        self._events.flush()

    def close(self) -> None:
        """Closes the files and ends the live line."""
        try:
            self._console.close()
        finally:
            try:
                self._records.close()
            finally:
                self._events.close()


class NoWriter:
    """Writes nothing, for the processes of a run beside the first one."""

    def step(self, step: int) -> None:
        """Does nothing."""

    def write(self, record: dict[str, Any]) -> None:
        """Does nothing."""

    def write_images(
        self, split: str, step: int, images: UInt8[np.ndarray, "images height width 3"]
    ) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class EventFile:
    """A file of TensorBoard's, written in the thread of the caller.

    tensorboardX's own ``SummaryWriter`` writes in a thread. When the disk is full, that thread ends
    with a traceback, and the next records wait for it forever.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        """Opens a new file; TensorBoard then hides what older files hold of later steps.

        Args:
            folder: the folder of the event files.
            first_step: the first step that is written.
        """
        # TensorBoard's own format without TensorFlow.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._folder = folder
        # Two processes may start in the same second, which is all that the name would hold.
        suffix = f".{os.getpid()}.{first_step}"
        with storage.named(folder):
            folder.mkdir(exist_ok=True)
            self._file = EventsWriter(str(folder / "events"), suffix)
        self._event = event_pb2.Event
        started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(step=first_step, session_log=started))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Writes a number."""
        from tensorboardX.summary import scalar

        self._write(self._event(step=step, summary=scalar(tag, value)))

    def add_image(self, tag: str, image: UInt8[np.ndarray, "height width 3"], step: int) -> None:
        """Writes an image."""
        from tensorboardX.summary import image as image_summary

        made = image_summary(tag, image, dataformats="HWC")
        self._write(self._event(step=step, summary=made))

    def flush(self) -> None:
        """Hands everything to the system."""
        with storage.named(self._folder):
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with storage.named(self._folder):
            self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        with storage.named(self._folder):
            self._file.write_event(event)
