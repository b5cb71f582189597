"""One long run of tiny steps: memory, files, threads and the time of a step stay where they are."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from families import TINY

from chaos.page import replace
from chaos.runs import ROOT, environment

BEGIN = "<!-- written by python -m tests.chaos --soak -->"
EVERY = 500
# Shares of the steps at which the table shows the samples.
SHOWN = (0.05, 0.25, 0.5, 0.75, 1.0)


def soak(folder: Path, steps: int, page: Path | None) -> int:
    """Trains ``steps`` steps with an evaluation and a save every 500, and samples the process.

    Args:
        folder: for the run.
        steps: number of steps.
        page: a page for the table; its picture goes beside it, into ``soak.png``.

    Returns:
        0 if the medians of the last tenth are near those of the second tenth, else 1: memory
        within 10 %, files and threads within 3.
    """
    workdir = folder / "soak" / "run"
    process = subprocess.Popen(
        [
            sys.executable, "train.py", "--config=configs/cnn.py", *TINY["cnn"],
            f"--workdir={workdir}", f"--config.train.steps={steps}",
            f"--config.train.eval_every={EVERY}", f"--config.checkpoint.every={EVERY}",
            "--config.train.batch_size=8", "--config.train.log_every=100",
            "--config.train.eval_batch_size=256",
        ],
        cwd=ROOT, env=environment(folder / "compiled"), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    samples = []
    while process.poll() is None:
        samples.append(_sample(process.pid, workdir))
        time.sleep(0.5)
    assert process.returncode == 0
    taken = np.array([sample for sample in samples if sample is not None], float)
    steps_done, memory, files, threads = taken[taken[:, 0] > 0].T
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    train = [record for record in records if record["split"] == "train"]
    times = np.array([1000 * 8 / record["examples_per_second"] for record in train])  # ms a step

    def around(share: float, of: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> float:
        steps_of = steps_done if values is not times else np.array([r["step"] for r in train])
        near = np.abs(steps_of - share * steps) <= 0.05 * steps
        return float(of(values[near]))

    columns = {"memory, MB": memory, "open files": files, "threads": threads, "step, ms": times}
    lines = ["| steps | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for share in SHOWN:
        shown = [f"{around(share, np.median, values):.4g}" for values in columns.values()]
        lines.append(f"| {round(share * steps)} | {' | '.join(shown)} |")
    print("\n".join(lines))
    if page:
        _draw(page.with_name("soak.png"), steps_done, columns, train)
        replace(page, BEGIN, [*lines, "", "![a long run](soak.png)"])

    def grew(values: np.ndarray) -> float:
        return around(0.95, np.median, values) - around(0.15, np.median, values)

    steady = grew(memory) <= 0.1 * around(0.15, np.median, memory)
    return 0 if steady and grew(files) <= 3 and grew(threads) <= 3 else 1


def _sample(pid: int, workdir: Path) -> tuple[int, float, int, int] | None:
    """Steps saved, resident megabytes, open files and threads of a process; None once it ended."""
    process = Path(f"/proc/{pid}")
    try:
        status = dict(
            line.split(":", 1)
            for line in (process / "status").read_text().splitlines()
            if ":" in line
        )
        files = len(list((process / "fd").iterdir()))
        saved = [int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdigit()]
        megabytes = int(status["VmRSS"].split()[0]) / 1024
        return max(saved, default=0), megabytes, files, int(status["Threads"])
    except (OSError, KeyError):  # it ends while it is looked at
        return None


def _draw(path: Path, steps: np.ndarray, columns: dict[str, np.ndarray], train: list) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(2, 2).flat, columns.items(), strict=True):
        along = steps if len(values) == len(steps) else [record["step"] for record in train]
        axes.plot(along, values, linewidth=0.8)
        axes.set(title=name, xlabel="step")
        axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=80)
