"""What a person sees while a run goes on."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

# Of interest in the files, but too much for a line that a person reads.
_NOT_SHOWN = ("split", "step", "epoch", "gradient_norm", "learning_rate", "data_wait_seconds")


class ConsoleWriter:
    """A live progress bar on a terminal; plain lines where the output goes to a file."""

    def __init__(self, console: Console, steps: int, steps_per_epoch: int) -> None:
        """Prepares the bar; ``start`` shows it.

        Args:
            console: where to print.
            steps: number of steps of the run.
            steps_per_epoch: steps of an epoch.
        """
        self._console = console
        self._steps = steps
        self._steps_per_epoch = steps_per_epoch
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[means]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def start(self, step: int) -> None:
        """Shows the bar at a step."""
        self._task = self._bar.add_task(
            "train", total=self._steps, completed=step, epoch=1, means=""
        )
        self._bar.start()

    def step(self, step: int) -> None:
        """Moves the bar."""
        if self._task is not None:
            epoch = (step - 1) // self._steps_per_epoch + 1
            self._bar.update(self._task, completed=step, epoch=epoch)

    def write(self, record: dict[str, Any]) -> None:
        """Shows a record: of a step on the bar, of an epoch or an evaluation as a line."""
        shown = describe(record)
        if record["split"] == "train" and self._console.is_terminal:
            if self._task is not None:
                self._bar.update(self._task, means=shown)
            return
        steps = f"step {record['step']}/{self._steps}"
        titles = {"train": steps, "train_epoch": f"[Epoch {record['epoch']}]"}
        title = titles.get(record["split"], f"[{record['split']} at step {record['step']}]")
        self._console.print(f"{title} {shown}", markup=False, highlight=False)

    def flush(self) -> None:
        """Nothing to do: lines are printed as they come."""

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.stop()


def describe(record: dict[str, Any]) -> str:
    """Returns the numbers of a record for reading: ``loss 0.1234 | accuracy 97.50% | …``."""
    parts = []
    for name, value in record.items():
        if name in _NOT_SHOWN:
            continue
        if name == "accuracy":
            parts.append(f"accuracy {100 * value:.2f}%")
        elif name == "examples_per_second":
            parts.append(f"{value:.0f} examples/s")
        elif name == "data_wait_share":
            parts.append(f"waiting for data {100 * value:.1f}%")
        elif name == "seconds":
            parts.append(f"{value:.1f} s")
        else:
            parts.append(f"{name} {value:.4f}")
    return " | ".join(parts)


def parameter_table(rows: Sequence[tuple[str, str, int]]) -> Table:
    """Lays out the parameters of a model.

    Args:
        rows: layer, shapes and number of parameters.
    """
    table = Table(title="Parameters", title_justify="left")
    table.add_column("layer")
    table.add_column("shapes")
    table.add_column("parameters", justify="right")
    for layer, shapes, count in rows:
        table.add_row(layer, shapes, f"{count:,}")
    table.add_section()
    table.add_row("total", "", f"{sum(count for _, _, count in rows):,}")
    return table
