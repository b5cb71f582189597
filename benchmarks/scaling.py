"""How a step scales from 8 to 4,096 chips, by simulation.

    python -m benchmarks.scaling             compiles what is missing; writes table and picture
    python -m benchmarks.scaling --tables    compiles nothing

The step is that of ``configs/gpt.py:7b`` on slices of v5p. Weak scaling keeps one row of 8,192
tokens a chip, strong scaling the batch of 256 rows. Parameters, optimizer and rows are divided over
all chips; with more chips than rows, ``mesh.tensor`` divides the layers of a row.

The programs in ``COMPILED`` are compiled ahead of time. Every other point follows by the formulas
of ``scaled`` from the largest of them that has no more chips and whole rows on a chip. A compiled
point also says what the formulas would have made of the one before it.
Needs the extra ``plan``.
"""

import argparse
import dataclasses
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from benchmarks import machine, tables
from zoo import building, commands
from zoo import config as configs
from zoo.planning import find_slice, roofline
from zoo.planning.apart import plan_apart
from zoo.planning.chips import CHIPS, Slice
from zoo.planning.roofline import Estimate, Work

RESULTS = machine.ROOT / "docs" / "scaling.json"
DOCUMENT = machine.ROOT / "docs" / "planning.md"
PICTURE = machine.ROOT / "docs" / "scaling.png"

CHIP = CHIPS["v5p"]
SHAPES = {math.prod(map(int, shape.split("x"))): shape for shape in CHIP.shapes if shape != "2x2x1"}
BATCH = 256
# The kind of scaling and the chips, in their order.
COMPILED = (("weak", 8), ("strong", 64), ("strong", 256), ("strong", 1024))


@dataclasses.dataclass(frozen=True)
class Model:
    """What the formulas know of ``gpt:7b``.

    Attributes:
        parameters: their number.
        layers: number of blocks.
        features: width of the residual stream.
        length: tokens of a row.
    """

    parameters: float = 7.0e9
    layers: int = 32
    features: int = 4096
    length: int = 8192


def layout(kind: str, chips: int) -> tuple[int, int]:
    """Returns the rows of the batch, and over how many chips ``mesh.tensor`` divides each."""
    rows = chips if kind == "weak" else BATCH
    return rows, max(1, chips // rows)


def torus(chips: int) -> Slice:
    """Returns a slice with the places of its chips and no devices, for the links alone."""
    sizes = tuple(map(int, SHAPES[chips].split("x")))
    places = [Place(coords) for coords in itertools.product(*map(range, sizes))]
    return Slice(f"v5p:{SHAPES[chips]}", CHIP, sizes, places)


@dataclasses.dataclass(frozen=True)
class Place:
    """Stands for a device."""

    coords: tuple[int, ...]


def scaled(work: Work, model: Model, *, start: tuple[int, int], chips: int, rows: int) -> Work:
    """Returns a chip's work with other numbers of chips and rows, by formulas.

    - Products, kernels and the traffic of activations grow with the rows of a chip.
    - The optimizer reads parameters, gradients and two moments in float32 and writes all but the
      gradients: 28 bytes for each parameter on the chip.
    - Gathered parameters and summed gradients are the same for any number of rows: of ``n`` chips
      each sends ``(n - 1) / n`` of them over the links of the whole slice.
    - Where ``tensor`` chips share a row, each holds and sends the gathered parameters of its part
      only. A block then sums its output over these chips twice forward, twice again for the
      gradient and twice backward, in bfloat16 and with nothing beside it, over two links.

    Args:
        work: of the program from which this starts, in which each chip has whole rows.
        model: the sizes.
        start: the chips and the rows of that program.
        chips: the chips of the other.
        rows: its rows.
    """
    before, rows_before = start
    tensor = max(1, chips // rows)
    more = (rows / chips) / (rows_before / before)
    optimizer = 28 * model.parameters
    activations = max(0.0, work.moved - optimizer / before) * more
    groups = [(before, before), (chips, chips // tensor)]
    cost = [(group - 1) / group / torus(count).bandwidth(range(count)) for count, group in groups]
    sent = cost[1] / cost[0] / tensor
    summed = 6 * model.layers * model.length * model.features * 2.0
    apart = 2 * (tensor - 1) / tensor * summed / (2 * CHIP.link_bandwidth)
    return Work(
        products=tuple((flops * more, size * more) for flops, size in work.products),
        moved=activations + optimizer / chips,
        copied=work.copied * more,
        kernels=work.kernels * more,
        hidden=work.hidden * sent,
        open=work.open * sent + (apart if tensor > 1 else 0.0),
    )


def compiled(kind: str, chips: int) -> dict[str, Any]:
    """Plans one point with the compiler."""
    rows, tensor = layout(kind, chips)
    fields = [f"train.batch_size={rows}", f"mesh.tensor={tensor}", "mesh.data=1", "mesh.fsdp=-1"]
    given = commands.load_config(str(machine.ROOT / "configs" / "gpt.py") + ":7b")
    config = configs.check(commands.override(given, [f"--config.{field}" for field in fields]))
    config, _ = building.with_data(config)
    plan = plan_apart(config, find_slice(f"v5p:{SHAPES[chips]}"), say=print)
    return {**dataclasses.asdict(plan), "date": machine.today()}


def points(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns each kind and number of chips with its estimate, compiled where that was done."""
    known = {(layout(*point), point[1]): results[_name(*point)] for point in COMPILED}
    found = []
    for kind, chips in itertools.product(("weak", "strong"), SHAPES):
        # A weak and a strong point with as many rows are the same program.
        program = (layout(kind, chips), chips)
        (rows, tensor), _ = program
        starts = [
            one for one in known if one != program and one[1] <= chips and one[0][1] == 1
        ]  # fmt: skip
        estimates = {}
        if starts:
            (rows_before, _), before = starts[-1]
            work = Work(**known[starts[-1]]["work"])
            start = (before, rows_before)
            made = scaled(work, Model(), start=start, chips=chips, rows=rows)
            estimates["formula"] = roofline.estimate(made, CHIP)
        if program in known:
            estimates["compiled"] = roofline.estimate(Work(**known[program]["work"]), CHIP)
        found.append({"kind": kind, "chips": chips, "rows": rows, "tensor": tensor, **estimates})
    return found


def best(point: Mapping[str, Any]) -> Estimate:
    """Returns the estimate of the compiled program, or else that of the formulas."""
    estimate: Estimate = point["compiled"] if "compiled" in point else point["formula"]
    return estimate


def shares(estimate: Estimate) -> dict[str, float]:
    """Returns what takes the time of a step: computing, main memory, waiting for the links."""
    compute = min(estimate.compute, estimate.seconds - estimate.waiting)
    return {
        "compute": compute / estimate.seconds,
        "memory": (estimate.seconds - estimate.waiting - compute) / estimate.seconds,
        "communication": estimate.waiting / estimate.seconds,
    }


def as_markdown(found: list[dict[str, Any]]) -> str:
    """Lays out the points, a row for each."""
    header = (
        "scaling", "chips", "rows", "tensor", "a step", "compute", "memory", "communication",
        "tokens a second and chip", "from",
    )  # fmt: skip
    rows = []
    for point in found:
        estimate = best(point)
        tokens = point["rows"] * Model().length / estimate.seconds / point["chips"]
        off = point["formula"].seconds / estimate.seconds if "formula" in point else 1.0
        told = f", formulas {off:.2f} times" if off != 1 else ""
        rows.append(
            (
                point["kind"],
                f"{point['chips']:,}",
                f"{point['rows']:,}",
                str(point["tensor"]),
                f"{estimate.seconds:.3g} s",
                *(f"{share:.0%}" for share in shares(estimate).values()),
                f"{tokens:,.0f}",
                f"compiled{told}" if "compiled" in point else "formulas",
            )
        )
    return tables.markdown(header, rows)


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Draws the shares of a step's time against the chips, one picture for each kind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("weak", "strong"), strict=True):
        line = [point for point in found if point["kind"] == kind]
        chips = [point["chips"] for point in line]
        parts = [shares(best(point)) for point in line]
        stacks = {name: [100 * part[name] for part in parts] for name in parts[0]}
        axes.stackplot(chips, *stacks.values(), labels=list(stacks), alpha=0.8)
        known = [point["chips"] for point in line if "compiled" in point]
        axes.plot(known, [2.0] * len(known), "k^", label="compiled")
        axes.set(title=f"gpt 7b on v5p, {kind} scaling", xlabel="chips", xscale="log")
        axes.set_xticks(chips, [str(count) for count in chips], rotation=60)
        axes.minorticks_off()
        axes.margins(0)
    figure.axes[0].set(ylabel="% of a step", ylim=(0, 100))
    figure.axes[1].legend(loc="lower left", fontsize=8)
    figure.savefig(path, dpi=90)


def _name(kind: str, chips: int) -> str:
    return f"{kind} {chips}"


def main() -> None:
    """Compiles what is missing, and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tables", action="store_true", help="compile nothing")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for point in COMPILED:
        if options.tables or _name(*point) in results:
            continue
        results[_name(*point)] = compiled(*point)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    found = points(results)
    tables.write_between(DOCUMENT, "scaling", as_markdown(found))
    plot(found, PICTURE)


if __name__ == "__main__":
    main()
