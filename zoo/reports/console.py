"""What a person sees while a run goes on."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from zoo import storage
from zoo.reports.formats import number

# Of interest in the files, but too much for a line that a person reads.
_NOT_SHOWN = (
    "split",
    "step",
    "epoch",
    "gradient_norm",
    "learning_rate",
    "data_wait_seconds",
    "examples_per_second_per_device",
    "slowest_process",
    "slowest_process_seconds",
)
_SPEED: dict[str, Callable[[float], str]] = {
    "examples_per_second": lambda value: f"{value:.0f} examples/s",
    "tokens_per_second_per_device": lambda value: f"{value:.0f} tokens/s per device",
    "mfu": lambda value: f"MFU {100 * value:.1f}%",
    "data_wait_share": lambda value: f"waiting for data {100 * value:.1f}%",
    "seconds": lambda value: f"{value:.1f} s",
}
_BETWEEN = " | "
SECONDS_BETWEEN_DRAWINGS = 0.2


class Output:
    """A text stream whose errors say that they are about the output of the program."""

    def __init__(self, stream: TextIO) -> None:
        """Takes the stream, such as ``sys.stdout``."""
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes a text."""
        with storage.named("the output of the program"):
            return self._stream.write(text)

    def flush(self) -> None:
        """Hands everything to the system."""
        with storage.named("the output of the program"):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class ConsoleWriter:
    """A live line on a terminal; plain lines where the output goes to a file or a pipe.

    The live line has a bar, the step, the time left and the newest means of training, and is
    redrawn in place. Epochs and evaluations are printed above it.
    """

    def __init__(
        self,
        console: Console,
        steps: int,
        steps_per_epoch: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares the line; ``start`` shows it.

        Args:
            console: where to print.
            steps: number of steps of the run.
            steps_per_epoch: steps of an epoch.
            clock: returns seconds, from which the time left is estimated.
        """
        self._console = console
        self._steps = steps
        self._steps_per_epoch = steps_per_epoch
        self._clock = clock
        self._first = self._step = 0
        self._started = self._drawn = clock()
        self._seconds_left: float | None = None
        self._record: Mapping[str, Any] = {}
        self._live: Live | None = None
        # A terminal that cannot move its cursor gets plain lines as well.
        if console.is_terminal and not console.is_dumb_terminal:
            # Drawn by the calls below alone: what has not changed is not drawn again.
            self._live = Live(get_renderable=self._line, console=console, auto_refresh=False)

    def start(self, step: int) -> None:
        """Shows the line of a run that stands at a step."""
        self._first = self._step = step
        self._started = self._clock()
        if self._live:
            self._live.start(refresh=True)

    def step(self, step: int) -> None:
        """Takes note of a finished step, and draws the line a few times a second."""
        self._step = step
        now = self._clock()
        # Evaluations and checkpoints since the start count too, because more of them will come.
        pace = (now - self._started) / max(step - self._first, 1)
        self._seconds_left = pace * (self._steps - step)
        if now - self._drawn >= SECONDS_BETWEEN_DRAWINGS:
            self._draw()

    def write(self, record: dict[str, Any]) -> None:
        """Shows a record: of training steps on the live line, any other on a line of its own."""
        if record["split"] == "train" and self._live:
            self._record = record
            self._draw()
            return
        titles = {
            "train": f"step {record['step']}/{self._steps}",
            "train_epoch": f"[Epoch {record['epoch']}]",
        }
        title = titles.get(record["split"], f"[{record['split']} at step {record['step']}]")
        texts = [*metric_texts(record), *speed_texts(record)]
        line = f"{title} {_BETWEEN.join(texts)}"
        if self._live:
            line = folded(title, texts, self._console.width)
        self._console.print(line, markup=False, highlight=False)

    def flush(self) -> None:
        """Does nothing: lines are printed as they come."""

    def close(self) -> None:
        """Ends the live line, which stays on the screen as it is."""
        if self._live:
            self._live.stop()

    def _draw(self) -> None:
        self._drawn = self._clock()
        if self._live:
            self._live.refresh()

    def _line(self) -> Text:
        epoch = max(self._step - 1, 0) // self._steps_per_epoch + 1
        texts = [*metric_texts(self._record), f"epoch {epoch}", *speed_texts(self._record)]
        return live_line(
            self._step,
            self._steps,
            self._seconds_left,
            texts,
            # Some terminals begin a new line as soon as the last column is written.
            width=self._console.width - 1,
            ascii_only=self._console.options.ascii_only,
        )


def describe(record: Mapping[str, Any]) -> str:
    """Returns the numbers of a record for reading: ``loss 0.1234 | accuracy 97.50% | …``."""
    return _BETWEEN.join([*metric_texts(record), *speed_texts(record)])


def metric_texts(record: Mapping[str, Any]) -> list[str]:
    """Returns a text for each metric of a record, the loss first."""
    names = [name for name in record if name not in (*_NOT_SHOWN, *_SPEED)]
    return [
        f"{name} {100 * record[name]:.2f}%"
        if name == "accuracy"
        else f"{name} {number(record[name])}"
        for name in sorted(names, key=lambda name: name != "loss")
    ]


def speed_texts(record: Mapping[str, Any]) -> list[str]:
    """Returns a text for each number of a record that says how fast the run is."""
    return [text(record[name]) for name, text in _SPEED.items() if name in record]


def live_line(
    step: int,
    steps: int,
    seconds_left: float | None,
    texts: Sequence[str],
    *,
    width: int,
    ascii_only: bool = False,
) -> Text:
    """Lays out a bar, the step, the time left, and as many whole texts as still fit.

    Args:
        step: number of steps done.
        steps: number of steps in all.
        seconds_left: None: not known yet.
        texts: metrics and others, the most important first.
        width: the most columns that the line may take.
        ascii_only: whether the terminal shows no other characters.
    """
    done, rest = ("#", "-") if ascii_only else ("━", "─")
    bar = max(width // 8, 5)
    filled = bar * step // steps
    line = Text.assemble(
        (done * filled, "bar.complete"),
        (rest * (bar - filled), "bar.back"),
        f" {step}/{steps} ",
        (f"{duration(seconds_left)}{' left' if width >= 60 else ''}", "progress.remaining"),
        no_wrap=True,
        end="",
    )
    before = "  "
    for text in texts:
        if line.cell_len + len(before) + Text(text).cell_len > width:
            break
        line.append(before + text)
        before = _BETWEEN
    # Nothing but the bar, the step and the time on a very narrow terminal, and no more than fits.
    line.truncate(width)
    return line


def duration(seconds: float | None) -> str:
    """Returns ``hours:minutes:seconds``, or dashes for None."""
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def folded(title: str, texts: Sequence[str], width: int) -> str:
    """Joins texts, and begins a new line before a text that would not fit into ``width``."""
    lines = [title]
    for position, text in enumerate(texts):
        joined = f"{lines[-1]}{_BETWEEN if position else ' '}{text}"
        if Text(joined).cell_len <= width:
            lines[-1] = joined
        else:
            lines.append(f"  {text}")
    return "\n".join(lines)


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
