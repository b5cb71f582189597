"""What a terminal shows of a run, of 80 columns and of 40, and what a file gets."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from rich.console import Console

from zoo.reports.console import ConsoleWriter, describe, duration, folded, live_line
from zoo.reports.formats import number

ROOT = Path(__file__).parents[2]


class Screen:
    """A terminal that wraps as real ones do: the lines that it shows after some output."""

    def __init__(self, width):
        self.width, self.rows, self.row, self.column = width, [""], 0, 0

    def feed(self, text):
        for code in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|.", text, re.DOTALL):
            if code == "\r":
                self.column = 0
            elif code == "\n":
                self._down()
            elif code == "\x1b[2K":
                self.rows[self.row] = ""
            elif up := re.fullmatch(r"\x1b\[(\d*)A", code):
                self.row = max(self.row - int(up[1] or 1), 0)
            elif re.fullmatch(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]", code):
                pass  # colours, and whether the cursor is seen
            elif len(code) > 1 or code < " ":
                raise AssertionError(f"unknown code {code!r}")
            else:
                if self.column == self.width:
                    self.column = 0
                    self._down()
                row = self.rows[self.row].ljust(self.column)
                self.rows[self.row] = row[: self.column] + code + row[self.column + 1 :]
                self.column += 1
        return self

    def _down(self):
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append("")


def run_to(writer, steps, *, tick=lambda: None):
    """Writes what a run of 20 steps an epoch writes: records, epochs and an evaluation."""
    for step in range(1, steps + 1):
        tick()
        writer.step(step)
        record = {"step": step, "epoch": (step - 1) // 20 + 1, "absolute_error": 0.6136}
        if step % 10 == 0:
            speed = {"examples_per_second": 4529.0, "data_wait_share": 0.01}
            writer.write({"split": "train", **record, "loss": step / 1000, **speed})
        if step % 20 == 0:
            writer.write({"split": "train_epoch", **record, "loss": 0.1, "seconds": 3.0})
    writer.write({"split": "validation", **record, "loss": 0.25, "accuracy": 0.5, "seconds": 1.0})


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def tick(self):
        self.now += 1.0


def shown(width, **environment):
    """What a terminal gets of 40 of 200 steps, one a second."""
    file = io.StringIO()
    console = Console(
        file=file,
        width=width,
        force_terminal=True,
        soft_wrap=True,
        markup=False,
        highlight=False,
        _environ={"TERM": "xterm", **environment},
    )
    clock = Clock()
    writer = ConsoleWriter(console, 200, 20, clock=clock)
    writer.start(0)
    run_to(writer, 40, tick=clock.tick)
    writer.close()
    return file.getvalue()


def test_80_columns_show_bar_step_time_left_and_metrics_in_one_line():
    rows = Screen(80).feed(shown(80).replace("\n", "\r\n")).rows
    assert rows == [
        "[Epoch 1] loss 0.1000 | absolute_error 0.6136 | 3.0 s",
        "[Epoch 2] loss 0.1000 | absolute_error 0.6136 | 3.0 s",
        "[validation at step 40] loss 0.2500 | absolute_error 0.6136 | accuracy 50.00%",
        "  1.0 s",
        "━──────── 40/200 0:02:40 left  loss 0.0400 | absolute_error 0.6136 | epoch 2",
        "",
    ]


def test_40_columns_show_bar_step_time_left_and_the_loss():
    rows = Screen(40).feed(shown(40).replace("\n", "\r\n")).rows
    assert rows == [
        "[Epoch 1] loss 0.1000",
        "  absolute_error 0.6136 | 3.0 s",
        "[Epoch 2] loss 0.1000",
        "  absolute_error 0.6136 | 3.0 s",
        "[validation at step 40] loss 0.2500",
        "  absolute_error 0.6136",
        "  accuracy 50.00% | 1.0 s",
        "━──── 40/200 0:02:40  loss 0.0400",
        "",
    ]


def test_the_line_is_drawn_in_place_and_only_when_something_is_new():
    written = shown(80)
    # Before each drawing but the first the old line is erased. 40 steps, a second each, 4 records,
    # 3 lines above, the end: each draws once.
    assert written.count("\x1b[2K") == 40 + 4 + 3 + 1
    # The lines above it and its end; nothing of the line itself is left behind.
    assert written.count("\n") == 3 + 1 + 1


@pytest.mark.parametrize("width", [1, 10, 20, 39, 40, 60, 79, 80, 200])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_no_width_is_exceeded_and_no_metric_is_cut(width, ascii_only):
    texts = ["loss 0.1633", "absolute_error 0.6136", "4529 examples/s"]
    for step, left in ((0, None), (1_234_567, 3601.2), (2_000_000, 0.0)):
        line = live_line(step, 2_000_000, left, texts, width=width, ascii_only=ascii_only)
        assert line.cell_len <= width
        assert "\n" not in line.plain
        bar, _, rest = line.plain.partition(" ")
        assert set(bar) <= ({*"#-"} if ascii_only else {*"━─"})
        if width >= 39:
            assert rest.startswith(f"{step}/2000000 {duration(left)}")
            after = re.split(r"  ", rest, maxsplit=1)[1:]
            assert not after or after[0] == " | ".join(texts[: len(after[0].split(" | "))])
        if width == 200:
            assert line.plain.endswith(" | ".join(texts))


def test_the_bar_fills_as_the_run_goes():
    filled = [live_line(step, 8, 1.0, [], width=80).plain.count("━") for step in range(9)]
    assert filled == [0, 1, 2, 3, 5, 6, 7, 8, 10]


def test_a_resumed_run_estimates_from_its_own_steps():
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, width=80, force_terminal=True, _environ={"TERM": "xterm"})
    writer = ConsoleWriter(console, 200, 20, clock=clock)
    writer.start(100)
    for step in (101, 102):
        clock.tick()
        writer.step(step)
    writer.close()
    first, *_, last = re.findall(r"\d+/200 \S+ left", re.sub(r"\x1b\[\d+m", "", file.getvalue()))
    assert (first, last) == ("100/200 -:--:-- left", "102/200 0:01:38 left")


@pytest.mark.parametrize(
    "options",
    [{}, {"force_terminal": True, "_environ": {"TERM": "dumb"}}],
    ids=["a file", "a terminal that cannot move its cursor"],
)
def test_without_a_terminal_plain_lines_go(options):
    file = io.StringIO()
    writer = ConsoleWriter(Console(file=file, soft_wrap=True, width=80, **options), 200, 20)
    if not options:
        assert not Console(file=file).is_terminal
    writer.start(0)
    run_to(writer, 20)
    writer.close()
    speed = "4529 examples/s | waiting for data 1.0%"
    text = re.sub(r"\x1b\[\d*m", "", file.getvalue())
    assert text.replace("\n  ", " | ").splitlines() == [
        f"step 10/200 loss 0.0100 | absolute_error 0.6136 | {speed}",
        f"step 20/200 loss 0.0200 | absolute_error 0.6136 | {speed}",
        "[Epoch 1] loss 0.1000 | absolute_error 0.6136 | 3.0 s",
        "[validation at step 20] loss 0.2500 | absolute_error 0.6136 | accuracy 50.00% | 1.0 s",
    ]


SCRIPT = """
import time
from rich.console import Console
from test_console import run_to
from zoo.reports.console import ConsoleWriter
console = Console(soft_wrap=True, markup=False, highlight=False)
writer = ConsoleWriter(console, 200, 20)
writer.start(0)
run_to(writer, 100, tick=lambda: time.sleep(0.005))
writer.close()
"""


@pytest.mark.parametrize("width", [80, 40])
def test_a_real_terminal_shows_one_live_line(width):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {
        **os.environ, "TERM": "xterm", "COLUMNS": str(width), "PYTHONIOENCODING": "utf-8",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(Path(__file__).parent), str(ROOT / "tests"))),
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
    )  # fmt: skip
    os.close(theirs)
    screen, written = Screen(width), b""
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:  # Linux: the other side is closed
            break
        if not more:
            break
        written += more
    os.close(ours)
    assert process.wait(timeout=60) == 0, written.decode()
    rows = screen.feed(written.decode()).rows
    live = [row for row in rows if "━" in row or "─" in row]
    assert len(live) == 1, rows
    assert rows[-2:] == [live[0], ""]
    shown = {
        80: "━━━━───── 100/200 TIME left  loss 0.1000 | absolute_error 0.6136 | epoch 5",
        40: "━━─── 100/200 TIME  loss 0.1000",
    }[width]
    assert re.sub(r"\d:\d\d:\d\d", "TIME", live[0]) == shown
    assert sum("[Epoch" in row for row in rows) == 5


def test_a_record_is_described_with_the_loss_first_and_every_metric():
    record = {
        "split": "test", "step": 3, "epoch": 1, "accuracy": 0.975, "perplexity": 123.456,
        "coverage_4": 0.9452, "loss": 4.8159, "gradient_norm": 1.0, "examples_per_second": 4529.4,
    }  # fmt: skip
    assert describe(record) == (
        "loss 4.8159 | accuracy 97.50% | perplexity 123.46 | coverage_4 0.9452 | 4529 examples/s"
    )


def test_numbers_have_the_digits_that_matter():
    values = [0.0, 0.5, -9.99994, 27.123456, 999.994, 12345.6, 0.00004, float("nan"), float("inf")]
    assert [number(value) for value in values] == [
        "0.0000", "0.5000", "-9.9999", "27.12", "999.99", "12,346", "4.0e-05", "nan", "inf",
    ]  # fmt: skip


def test_times_have_hours():
    times = [None, 0.4, 59.6, 3599.0, 100 * 3600 + 61.0]
    shown = ["-:--:--", "0:00:00", "0:01:00", "0:59:59", "100:01:01"]
    assert [duration(seconds) for seconds in times] == shown


def test_a_long_line_breaks_between_two_texts():
    assert folded("[test]", ["one 1", "two 2", "three 3"], 17) == "[test] one 1\n  two 2 | three 3"
    assert folded("[test]", ["one 1", "two 2"], 80) == "[test] one 1 | two 2"
