"""How time and memory grow with the sizes of batches, images, sequences and networks.

    python -m benchmarks.growth                     every series
    python -m benchmarks.growth --only cnn-batch    one

Each point is a training step, measured once in a process of its own on each side, PyTorch in the
setting that is fastest at the series' first point. Memory is the most that the process held, less
what it held before it read its weights. Writes ``benchmarks/results/growth-<machine>.json``, two
pictures and the table of ``docs/performance.md``.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, tables, turns
from benchmarks.families.cnn import CNNStep
from benchmarks.families.gpt import GPTStep
from benchmarks.families.recurrent import RecurrentStep
from benchmarks.families.sides import Work

RESULTS = machine.ROOT / "benchmarks" / "results"
DOCUMENT = machine.ROOT / "docs" / "performance.md"
# What is drawn, its unit, and where.
PICTURES = {
    "time": ("ms an example", machine.ROOT / "docs" / "growth_time.png"),
    "memory": ("MiB", machine.ROOT / "docs" / "growth_memory.png"),
}
SIDES = {"ours": "ours", "torch": "PyTorch"}
# Few: those that wait their turn count as memory too.
BATCHES = 2

Point = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Series:
    """A training step whose size grows along one axis.

    Attributes:
        title: what is trained.
        axis: what grows.
        field: its name in the work.
        values: its sizes.
        work: with everything else.
    """

    title: str
    axis: str
    field: str
    values: tuple[int, ...]
    work: Any

    def at(self, value: int) -> Any:
        """Returns the work of one size."""
        return dataclasses.replace(self.work, **{self.field: value}, batches=BATCHES)


_CNN, _LSTM, _GPT = CNNStep(), RecurrentStep("lstm", 256), GPTStep()
SERIES = {
    "cnn-batch": Series("CNN", "batch size", "rows", (8, 16, 32, 64, 128, 256), _CNN),
    "cnn-side": Series("CNN", "image side", "side", (24, 32, 48, 64, 96), _CNN),
    "lstm-length": Series("LSTM", "sequence length", "time", (32, 64, 128, 256, 512), _LSTM),
    "lstm-width": Series("LSTM", "width", "width", (128, 256, 512, 1024), _LSTM),
    "lstm-depth": Series("LSTM", "depth", "layers", (1, 2, 3, 4), _LSTM),
    "gpt-length": Series("GPT", "sequence length", "time", (64, 128, 256, 512, 1024), _GPT),
    "gpt-width": Series("GPT", "width", "width", (128, 256, 384, 512, 768), _GPT),
    "gpt-depth": Series("GPT", "depth", "layers", (2, 4, 6, 8), _GPT),
}
# What ``benchmarks.measure`` runs, by name.
POINTS: dict[str, Work] = {
    f"{name}-{value}": series.at(value)
    for name, series in SERIES.items()
    for value in series.values
}


def measure_series(name: str, *, seconds: float, threads: int) -> list[Point]:
    """Measures every size of a series on both sides; a point for each size and side."""
    series, points = SERIES[name], []
    setting = ""
    for value in series.values:
        work = series.at(value)
        with tempfile.TemporaryDirectory() as folder:
            measured = turns.measure(f"{name}-{value}", folder, threads)
            setting = setting or turns.fastest(measured, work.settings, min(seconds, turns.TRIAL))
            for side in SIDES:
                options = [f"--setting={setting}"] if side == "torch" else []
                found = measured(side, f"--time={seconds}", *options)
                points.append(
                    {
                        "series": name,
                        "value": value,
                        "side": side,
                        "name": turns.peer_name(work, setting) if side == "torch" else "ours",
                        "time": found["ms"] / work.rows,
                        "memory": found["memory_mib"],
                        "gflop": work.gflop / work.rows,
                        "date": machine.today(),
                    }
                )
                print(json.dumps(points[-1]), flush=True)
    return points


def add_points(path: Path, points: Sequence[Point]) -> list[Point]:
    """Adds points to the file of this machine, in place of those of the same series; returns all.

    Points that were measured with other versions go.
    """
    results: dict[str, Any] = {"machine": machine.describe(), "versions": machine.versions()}
    kept: list[Point] = []
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        measured = {point["series"] for point in points}
        if old["versions"] == results["versions"]:
            kept = [point for point in old["points"] if point["series"] not in measured]
    results["points"] = sorted([*kept, *points], key=lambda point: [*SERIES].index(point["series"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results["points"]


def plot(points: Sequence[Point], what: str, path: Path) -> None:
    """Draws each series' ``time`` or ``memory`` by size, with both axes logarithmic.

    Beside time a dashed line says how the arithmetic grows, from our first point on.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, NullLocator

    names = [name for name in SERIES if any(point["series"] == name for point in points)]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3 * columns, 2.7 * rows), layout="constrained")
    for axes, name in zip(figure.subplots(rows, columns, squeeze=False).flat, names, strict=False):
        series = SERIES[name]
        for side, color in zip(SIDES, ("tab:blue", "tab:orange"), strict=True):
            line = _line(points, name, side)
            values = [point["value"] for point in line]
            axes.plot(values, [point[what] for point in line], "o-", color=color, label=SIDES[side])
            if side == "ours" and what == "time":
                first = line[0]
                grown = [first["time"] * point["gflop"] / first["gflop"] for point in line]
                axes.plot(values, grown, "--", color="gray", label="as the arithmetic grows")
        axes.set(title=f"{series.title}, {series.axis}", xscale="log", yscale="log")
        axes.set_xticks(series.values, [str(value) for value in series.values])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel(PICTURES[what][0])
        axes.grid(alpha=0.3)
    for axes in figure.axes[len(names) :]:
        axes.set_axis_off()
    figure.axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)


def as_markdown(results: dict[str, Any]) -> str:
    """Lays out a results file: how each series grows, and a row for each size."""
    of, used, points = results["machine"], results["versions"], results["points"]
    growth_header = ("step", "from", "to", "arithmetic", "our time", "PyTorch's time")
    growths = []
    header = (
        "step",
        "size",
        "time, ours",
        "PyTorch",
        "ratio",
        "memory, ours",
        "PyTorch",
        "setting",
    )
    rows = []
    for name, series in SERIES.items():
        lines = [_line(points, name, side) for side in SIDES]
        step = f"{series.title}, {series.axis}"
        if all(lines):
            ours, peer = lines
            grown = [(ours, "gflop"), (ours, "time"), (peer, "time")]
            factors = [f"{line[-1][what] / line[0][what]:.3g} times" for line, what in grown]
            growths.append((step, str(ours[0]["value"]), str(ours[-1]["value"]), *factors))
        for ours, peer in zip(*lines, strict=True):
            rows.append(
                (
                    step,
                    str(ours["value"]),
                    f"{ours['time']:.3g} ms",
                    f"{peer['time']:.3g} ms",
                    f"{ours['time'] / peer['time']:.2f}",
                    f"{ours['memory']:.0f} MiB",
                    f"{peer['memory']:.0f} MiB",
                    peer["name"].removeprefix("PyTorch, "),
                )
            )
    return (
        f"{of['processor']}, {of['cores']} cores; jax {used['jax']}, PyTorch {used['torch']}; "
        "growth of an example, from the smallest size to the largest:\n\n"
        f"{tables.markdown(growth_header, growths)}\n\n"
        f"Each size:\n\n{tables.markdown(header, rows)}"
    )


def _line(points: Sequence[Point], name: str, side: str) -> list[Point]:
    found = [point for point in points if (point["series"], point["side"]) == (name, side)]
    return sorted(found, key=lambda point: point["value"])


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", choices=SERIES, help="one series")
    parser.add_argument("--seconds", type=float, default=3.0, help="timed at each point")
    parser.add_argument("--threads", type=int, default=2, help="cores for each side")
    parser.add_argument("--try", action="store_true", dest="trial", help="print only")
    options = parser.parse_args()
    machine.limit_threads(options.threads)
    path = RESULTS / f"growth-{machine.name(machine.describe())}.json"
    for name in SERIES:
        if options.only not in (None, name):
            continue
        points = measure_series(name, seconds=options.seconds, threads=options.threads)
        if options.trial:
            continue
        points = add_points(path, points)
        for what, (_, picture) in PICTURES.items():
            plot(points, what, picture)
        results = json.loads(path.read_text(encoding="utf-8"))
        tables.write_between(DOCUMENT, "growth", as_markdown(results))


if __name__ == "__main__":
    main()
