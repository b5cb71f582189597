"""Measures this project against its peers, side by side in one run.

    python -m benchmarks                  every training step
    python -m benchmarks --only cnn       one group
    python -m benchmarks --whole          whole jobs too: minutes each

Both sides compute the same: equal losses over the first 20 steps, from the same weights and
batches and without dropout, come first. Then they take turns, each in a process of its own on the
same cores. What counts is the median over the rounds of the ratio ours / peer. Writes
``benchmarks/results/<machine>.json`` and the README's table. Nothing else should run meanwhile.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, tables

RESULTS = machine.ROOT / "benchmarks" / "results"
README = machine.ROOT / "README.md"
# The largest difference of losses, as a share of the loss. float64 shows that both sides are the
# same program. In float32, which is what is timed, two correct programs part after the first step:
# where an image is flat, rounding decides which of four equal values a pooling takes, and Adam
# turns small gradients into full steps (seen: 0.7 % at step 16).
LOSS_TOLERANCE = {"float64": 1e-9, "float32": 3e-2}
FIRST_LOSS_TOLERANCE = 1e-6
QUIET_SPREAD = 0.15

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step on two sides.

    Attributes:
        group: what ``--only`` names.
        work: what is done, for the table.
        ours: module that knows ``prepare``, ``losses`` and ``time``.
        peer: the other side, for the table.
        peer_module: module that knows ``losses`` and ``time``.
        goal: ratio to reach.
        gflop: arithmetic of a step.
    """

    group: str
    work: str
    ours: str
    peer: str
    peer_module: str
    goal: float
    gflop: float


@dataclasses.dataclass(frozen=True)
class Job:
    """A whole program on two sides: the arguments of Python; ``{folder}`` is an empty folder."""

    group: str
    work: str
    ours: tuple[str, ...]
    peer: str
    peer_arguments: tuple[str, ...]
    goal: float


def cnn_gflop(batch: int) -> float:
    """Arithmetic of a training step of the seed's CNN with 10 classes, in 10^9 operations.

    A product costs two operations each for the output, the weight's gradient and the input's; the
    images need no gradient.
    """
    conv1 = 48 * 48 * (9 * 3) * 32
    conv2 = 48 * 48 * (9 * 32) * 64
    conv3 = 24 * 24 * (9 * 64) * 128
    dense = 128 * 12 * 12 * 512 + 512 * 10
    return 2 * batch * (2 * conv1 + 3 * (conv2 + conv3 + dense)) / 1e9


STEPS = (
    Step(
        group="cnn",
        work="seed CNN, batch 64, training step",
        ours="benchmarks.cnn_step",
        peer="PyTorch, eager",
        peer_module="benchmarks.torch_peers.cnn_seed",
        goal=0.75,
        gflop=cnn_gflop(64),
    ),
)
JOBS = (
    Job(
        group="cnn",
        work="seed script, whole job (start to report, 5,000 images, 5 epochs)",
        ours=("train.py", "--config=configs/cnn.py", "--workdir={folder}/run"),
        peer="PyTorch, the seed's script",
        peer_arguments=("-m", "benchmarks.torch_peers.cnn_seed"),
        goal=0.75,
    ),
)


def measure_step(step: Step, *, rounds: int, steps: int, threads: int) -> Row:
    """Compares the losses of both sides, then their times.

    Raises:
        SystemExit: the losses differ, or a side failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        common = (folder, f"--threads={threads}")
        machine.run(("-m", step.ours, "prepare", *common))
        sides = (step.ours, step.peer_module)
        for dtype in LOSS_TOLERANCE:
            ours, peer = (
                machine.run_for_json(("-m", side, "losses", *common, f"--dtype={dtype}"))
                for side in sides
            )
            check_losses(ours, peer, dtype)
        timed: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for index in range(rounds):
            # Each side is first as often as the other: the machine may warm up or slow down.
            for side in sides if index % 2 == 0 else sides[::-1]:
                arguments = ("-m", side, "time", *common, f"--steps={steps}")
                timed[side].append(machine.run_for_json(arguments))
    ours_ms, peer_ms = ([statistics.median(t["ms"]) for t in timed[side]] for side in sides)
    gflops = statistics.median(t["matmul_gflops"] for t in timed[step.ours])
    limit_ms = 1e3 * step.gflop / gflops
    return make_row(step.work, step.peer, ours_ms, peer_ms, step.goal, limit_ms)


def measure_job(job: Job) -> Row:
    """Times each side once, from the start of its process to its end."""
    with tempfile.TemporaryDirectory() as folder:
        _, ours = machine.run([argument.format(folder=folder) for argument in job.ours])
        _, peer = machine.run(job.peer_arguments)
    return make_row(job.work, job.peer, [1e3 * ours], [1e3 * peer], job.goal, None)


def check_losses(ours: Sequence[float], peer: Sequence[float], dtype: str) -> None:
    """Ends the program where the losses of two sides, one of each step, are not the same."""
    differences = [abs(a - b) / abs(b) for a, b in zip(ours, peer, strict=True)]
    same = differences[0] <= FIRST_LOSS_TOLERANCE and all(  # False with nan
        difference <= LOSS_TOLERANCE[dtype] for difference in differences
    )
    if not same:
        raise SystemExit(
            f"error: the two sides do not compute the same: their losses in {dtype} differ by more "
            f"than {FIRST_LOSS_TOLERANCE:.0e} of their size at the first step, or "
            f"{LOSS_TOLERANCE[dtype]:.0e} later\nours: {ours}\npeer: {peer}"
        )
    print(f"{dtype}: losses of {len(ours)} steps agree within {max(differences):.1e} of their size")


def make_row(
    work: str,
    peer: str,
    ours_ms: Sequence[float],
    peer_ms: Sequence[float],
    goal: float,
    limit_ms: float | None,
) -> Row:
    """Sums up the rounds.

    Args:
        work: what was done.
        peer: the other side.
        ours_ms: our time in each round.
        peer_ms: the peer's.
        goal: ratio to reach.
        limit_ms: time that the arithmetic alone takes at the machine's rate, or None.

    Returns:
        A row; ``spread`` is (largest - smallest) / median of the rounds' ratios.
    """
    ratios = [a / b for a, b in zip(ours_ms, peer_ms, strict=True)]
    ratio, ours = statistics.median(ratios), statistics.median(ours_ms)
    spread = (max(ratios) - min(ratios)) / ratio
    if spread > QUIET_SPREAD:
        print(f"warning: {work}: disturbed: the ratios differ by {100 * spread:.0f} %: {ratios}")
    return {
        "work": work,
        "ours_ms": ours,
        "peer": peer,
        "peer_ms": statistics.median(peer_ms),
        "ratio": ratio,
        "spread": spread,
        "disturbed": spread > QUIET_SPREAD,
        "goal": goal,
        "share_of_limit": limit_ms / ours if limit_ms else None,
        "rounds": len(ratios),
        "date": machine.today(),
    }


def add_results(path: Path, rows: Sequence[Row]) -> None:
    """Adds rows to the file of this machine, in place of older ones of the same work.

    Rows that were measured with other versions go.
    """
    results: dict[str, Any] = {
        "machine": machine.describe(),
        "versions": machine.versions(),
        "rows": list(rows),
    }
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        measured = {row["work"] for row in rows}
        if old["versions"] == results["versions"]:
            results["rows"] += [row for row in old["rows"] if row["work"] not in measured]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def as_markdown(results: dict[str, Any]) -> str:
    """Lays out a results file."""
    of, used = results["machine"], results["versions"]
    header = ("work", "ours", "peer", "ratio", "spread", "goal", "share of limit", "rounds")
    rows = [
        (
            row["work"],
            _duration(row["ours_ms"]),
            f"{_duration(row['peer_ms'])} ({row['peer']})",
            f"{row['ratio']:.2f}",
            f"{100 * row['spread']:.0f} %{', disturbed' if row['disturbed'] else ''}"
            if row["rounds"] > 1
            else "-",
            f"≤ {row['goal']}",
            f"{100 * row['share_of_limit']:.0f} %" if row["share_of_limit"] else "-",
            str(row["rounds"]),
        )
        for row in results["rows"]
    ]
    return (
        f"{of['processor']}, {of['cores']} cores; "
        f"jax {used['jax']}, PyTorch {used['torch']}:\n\n{tables.markdown(header, rows)}"
    )


def _duration(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 10_000 else f"{milliseconds / 1000:.0f} s"


def main() -> None:
    """Measures what the command line asks for."""
    groups = sorted({work.group for work in (*STEPS, *JOBS)})
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ours and theirs.")
    parser.add_argument("--only", choices=groups, help="one group of work")
    parser.add_argument("--whole", action="store_true", help="whole jobs too, one run a side")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side; at least 5")
    parser.add_argument("--steps", type=int, default=10, help="steps timed in a turn")
    parser.add_argument("--threads", type=int, default=2, help="cores for each side")
    parser.add_argument(
        "--try", action="store_true", dest="trial", help="print only; fewer than 5 rounds allowed"
    )
    options = parser.parse_args()
    if options.rounds < (1 if options.trial else 5):
        parser.error(f"--rounds={options.rounds}: at least 5, or add --try")
    machine.limit_threads(options.threads)
    path = RESULTS / f"{machine.name(machine.describe())}.json"

    rows = [
        measure_step(step, rounds=options.rounds, steps=options.steps, threads=options.threads)
        for step in STEPS
        if options.only in (None, step.group)
    ]
    if options.whole:
        rows += [measure_job(job) for job in JOBS if options.only in (None, job.group)]
    print(json.dumps(rows, indent=2))
    if options.trial:
        return
    add_results(path, rows)
    files = sorted(RESULTS.glob("*.json"))
    content = "\n\n".join(as_markdown(json.loads(file.read_text("utf-8"))) for file in files)
    tables.write_between(README, "benchmarks", content)


if __name__ == "__main__":
    main()
