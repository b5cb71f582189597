"""Measures this project against its peers, side by side in one run.

    python -m benchmarks                  every step and call
    python -m benchmarks --only cnn       one group, or one work: the names are in docs/speed.md
    python -m benchmarks --whole          whole jobs too: minutes each
    python -m benchmarks --tables         measures nothing, writes the tables anew

PyTorch takes part in the fastest of its settings, which are tried first: eager, channels last,
torch.compile, always with fused optimizers and with our settings of malloc. Next comes that both
sides compute the same: equal losses over the first 20 steps in float32, and over 4 in float64, from
the same weights and batches and without dropout. Then they take turns, each in a process of its own
on the same cores. What counts is the median over the rounds of the ratio ours / peer. Writes
``benchmarks/results/<machine>.json`` and the tables in ``docs/speed.md`` and the README. Nothing
else should run meanwhile.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, speed, start, turns
from benchmarks.works import WORKS

RESULTS = machine.ROOT / "benchmarks" / "results"
# The largest difference of losses, as a share of the loss. float64 shows that both sides are the
# same program. In float32, which is what is timed, two correct programs part after the first step:
# where an image is flat, rounding decides which of four equal values a pooling takes, and Adam
# turns small gradients into full steps (seen: 0.7 % at step 16).
LOSS_TOLERANCE = {"float64": 1e-9, "float32": 3e-2}
FIRST_LOSS_TOLERANCE = 1e-6
# Where float64 says which side is right, ours has to be; PyTorch's batch normalisation with
# channels last is not (seen: 5e-6, where its eager one and ours are within 2e-8).
PEERS_FIRST_LOSS_TOLERANCE = 1e-5
# PyTorch's name has its setting: see ``turns.peer_name``.
SIDES = {
    "ours": "ours",
    "torch": "PyTorch",
    "linen": "stock linen and optax",
    "step": "our own step",
}
START = "start"
QUIET_SPREAD = 0.15

Row = speed.Row


@dataclasses.dataclass(frozen=True)
class Job:
    """A whole program on our side and on its peers': arguments of Python.

    Attributes:
        name: what ``--only`` names.
        group: likewise, with other works; the job then needs ``--whole``.
        work: what is done, for the table.
        ours: our arguments; ``{folder}`` is an empty folder.
        peers: the peers' arguments by their names.
        goal: ratio to reach beside each.
    """

    name: str
    group: str
    work: str
    ours: tuple[str, ...]
    peers: dict[str, tuple[str, ...]]
    goal: float


_SEED_SCRIPT = ("-m", "benchmarks.torch_peers.cnn_seed")
JOBS = (
    Job(
        name="cnn-job",
        group="cnn",
        work="seed script, whole job (start to report, 5,000 images, 5 epochs)",
        ours=("train.py", "--config=configs/cnn.py", "--workdir={folder}/run"),
        # As its user runs it, and with what of our own settings it could have as well.
        peers={
            "PyTorch, the seed's script": _SEED_SCRIPT,
            "PyTorch, the seed's script, our allocator settings": (
                *_SEED_SCRIPT,
                "--tuned-allocator",
            ),
        },
        goal=0.75,
    ),
)


def measure_work(
    name: str, *, rounds: int, seconds: float, threads: int, short: bool = False
) -> list[Row]:
    """Compares what both sides compute, then the times of all sides; a row for each peer.

    Args:
        name: of the work.
        rounds: turns of each side.
        seconds: timed in a turn.
        threads: cores for each side.
        short: whether ``seconds`` are enough for works that want a number of calls, too.

    Raises:
        SystemExit: what they compute differs, or a side failed.
    """
    work = WORKS[name]
    sides = [side for side in SIDES if hasattr(work, side)]
    peers, options = dict(SIDES), {side: ["--short"] if short else [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        measured = turns.measure(name, folder, threads)
        if "torch" in sides:
            setting = turns.fastest(measured, work.settings, min(seconds, turns.TRIAL))
            peers["torch"] = turns.peer_name(work, setting)
            options["torch"].append(f"--setting={setting}")
        exact = None
        for dtype in work.checked:
            ours = measured("ours", f"--dtype={dtype}", *options["ours"])
            # In float64 PyTorch's other settings only take longer: oneDNN has none.
            given = options["torch"] if dtype == "float32" else ["--setting=eager"]
            peer = measured("torch", f"--dtype={dtype}", *given)
            check_losses(ours, peer, dtype, exact)
            if dtype == "float64":
                exact = ours[0]
        timed: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for index in range(rounds):
            # Each side is first as often as the other: the machine may warm up or slow down.
            for side in sides if index % 2 == 0 else sides[::-1]:
                timed[side].append(measured(side, f"--time={seconds}", *options[side]))
    ms = {side: [one["ms"] for one in timed[side]] for side in sides}
    gflops = statistics.median(one["matmul_gflops"] for one in timed["ours"])
    limit_ms = 1e3 * work.gflop / gflops if work.gflop else None
    return [
        make_row(work.title, peers[side], ms["ours"], ms[side], work.goals.get(side), limit_ms)
        for side in sides
        if side != "ours"
    ]


def measure_start(rounds: int) -> list[Row]:
    """Times the first step from the command on, with no cache of compiled programs and with one."""
    return [
        make_row(start.TITLES[cache], None, ms, None, start.GOALS[cache], None)
        for cache, ms in start.measure(rounds).items()
    ]


def measure_job(job: Job) -> list[Row]:
    """Times each side once, from the start of its process to its end; a row for each peer."""
    with tempfile.TemporaryDirectory() as folder:
        _, ours = machine.run([argument.format(folder=folder) for argument in job.ours])
    rows = []
    for peer, arguments in job.peers.items():
        _, seconds = machine.run(arguments)
        rows.append(make_row(job.work, peer, [1e3 * ours], [1e3 * seconds], job.goal, None))
    return rows


def check_losses(
    ours: Sequence[float], peer: Sequence[float], dtype: str, exact: float | None = None
) -> None:
    """Ends the program where the losses of two sides, one of each step, are not the same.

    Args:
        ours: our losses.
        peer: the peer's.
        dtype: in which they were computed.
        exact: our first loss in float64, found equal to the peer's; None: the peer's is.
    """
    differences = [_difference(*losses) for losses in zip(ours, peer, strict=True)]
    exact = peer[0] if exact is None else exact
    same = (
        _difference(ours[0], exact) <= FIRST_LOSS_TOLERANCE
        and differences[0] <= PEERS_FIRST_LOSS_TOLERANCE
        and all(difference <= LOSS_TOLERANCE[dtype] for difference in differences)
    )  # False with nan
    if not same:
        raise SystemExit(
            f"error: the two sides do not compute the same: their losses in {dtype} differ by more "
            f"than {PEERS_FIRST_LOSS_TOLERANCE:.0e} of their size at the first step, or "
            f"{LOSS_TOLERANCE[dtype]:.0e} later, or our first one by more than "
            f"{FIRST_LOSS_TOLERANCE:.0e} from the exact one\n"
            f"ours: {ours}\npeer: {peer}\nexact: {exact}"
        )
    print(f"{dtype}: losses of {len(ours)} steps agree within {max(differences):.1e} of their size")


def _difference(loss: float, other: float) -> float:
    return abs(loss - other) / abs(other)


def make_row(
    work: str,
    peer: str | None,
    ours_ms: Sequence[float],
    peer_ms: Sequence[float] | None,
    goal: float | None,
    limit_ms: float | None,
) -> Row:
    """Sums up the rounds.

    Args:
        work: what was done.
        peer: the other side; None: there is none.
        ours_ms: our time in each round.
        peer_ms: the peer's; None: there is none.
        goal: ratio to reach, without a peer the time; or None.
        limit_ms: time that the arithmetic alone takes at the machine's rate, or None.

    Returns:
        A row; ``spread`` is (largest - smallest) / median of the rounds' ratios, without a peer of
        their times.
    """
    ours = statistics.median(ours_ms)
    compared = [a / b for a, b in zip(ours_ms, peer_ms, strict=True)] if peer_ms else list(ours_ms)
    spread = (max(compared) - min(compared)) / statistics.median(compared)
    if spread > QUIET_SPREAD:
        print(f"warning: {work}: disturbed: the rounds differ by {100 * spread:.0f} %: {compared}")
    return {
        "work": work,
        "ours_ms": ours,
        "peer": peer,
        "peer_ms": statistics.median(peer_ms) if peer_ms else None,
        "ratio": statistics.median(compared) if peer_ms else None,
        "spread": spread,
        "disturbed": spread > QUIET_SPREAD,
        "goal": goal,
        "share_of_limit": limit_ms / ours if limit_ms else None,
        "rounds": len(compared),
        "date": machine.today(),
        "commit": machine.commit(),
    }


def add_results(path: Path, rows: Sequence[Row]) -> None:
    """Adds rows to the file of this machine, in place of older ones of the same work.

    Rows that were measured with other versions go, and those of works that are no more.
    """
    results: dict[str, Any] = {
        "machine": machine.describe(),
        "versions": machine.versions(),
        "rows": list(rows),
    }
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        measured = {_key(row) for row in rows}
        if old["versions"] == results["versions"]:
            results["rows"] += [row for row in old["rows"] if _key(row) not in measured]
    titles = list(works_by_title())
    results["rows"] = [row for row in results["rows"] if row["work"] in titles]
    results["rows"].sort(key=lambda row: titles.index(row["work"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _key(row: Row) -> tuple[str, str | None]:
    """What a row is replaced by: one of the same work beside the same peer, PyTorch in any setting.

    Whole jobs have several rows beside PyTorch, which differ in more than a setting.
    """
    peer = row["peer"]
    scripts = {name for job in JOBS for name in job.peers}
    if peer and peer.startswith("PyTorch") and peer not in scripts:
        peer = "PyTorch"
    return row["work"], peer


def works_by_title() -> dict[str, str]:
    """Returns what ``--only`` takes for each title of a row, in the order of the table."""
    return {
        **{work.title: name for name, work in WORKS.items()},
        **dict.fromkeys(start.TITLES.values(), START),
        **{job.work: job.name for job in JOBS},
    }


def write_tables() -> None:
    """Writes the tables of all machines, this one's first."""
    own = RESULTS / f"{machine.name(machine.describe())}.json"
    files = {*RESULTS.glob("*.json")} - {*RESULTS.glob("growth-*.json")}
    of_each = [
        json.loads(file.read_text("utf-8"))
        for file in sorted(files, key=lambda file: (file != own, file))
    ]
    speed.write(of_each, works_by_title(), machine.is_older)


def _measured(options: argparse.Namespace) -> Iterator[list[Row]]:
    for name, work in WORKS.items():
        if options.only in (None, work.group, name):
            yield measure_work(
                name,
                rounds=options.rounds,
                seconds=options.seconds,
                threads=options.threads,
                short=options.trial,
            )
    if options.only in (None, START):
        yield measure_start(options.rounds)
    for job in JOBS:
        if options.only == job.name or (options.whole and options.only in (None, job.group)):
            yield measure_job(job)


def main() -> None:
    """Measures what the command line asks for."""
    groups = sorted({START, *(work.group for work in WORKS.values()), *(job.group for job in JOBS)})
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ours and theirs.")
    names = [*groups, *WORKS, *(job.name for job in JOBS)]
    parser.add_argument("--only", choices=names, help="one group, or one work")
    parser.add_argument("--whole", action="store_true", help="whole jobs too, one run a side")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side; at least 5")
    parser.add_argument("--seconds", type=float, default=5.0, help="timed in a turn")
    parser.add_argument("--threads", type=int, default=2, help="cores for each side")
    parser.add_argument(
        "--try",
        action="store_true",
        dest="trial",
        help="print only; fewer than 5 rounds allowed, and no more steps than --seconds need",
    )
    parser.add_argument("--tables", action="store_true", help="only write the tables anew")
    options = parser.parse_args()
    if options.tables:
        write_tables()
        return
    if options.rounds < (1 if options.trial else 5):
        parser.error(f"--rounds={options.rounds}: at least 5, or add --try")
    machine.limit_threads(options.threads)
    path = RESULTS / f"{machine.name(machine.describe())}.json"

    # Written down one by one: a later work that fails takes nothing away.
    for rows in _measured(options):
        print(json.dumps(rows, indent=2), flush=True)
        if options.trial:
            continue
        add_results(path, rows)
        write_tables()


if __name__ == "__main__":
    main()
