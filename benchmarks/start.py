"""From the command to the end of a run's first step, as its user waits for it."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine

TITLES = {
    cache: f"configs/cnn.py, from the command to the end of the first step, {cache} cache"
    for cache in ("empty", "warm")
}
# Milliseconds, with the cache of compiled programs empty and warm.
GOALS = {"empty": 12_000.0, "warm": 7_000.0}
POLL = 0.02


def first_step_seconds(workdir: Path, cache: Path) -> float:
    """Returns the seconds until the record of the first step is there; the run then goes on.

    Args:
        workdir: of the run; not there yet.
        cache: a folder in which the run keeps its compiled programs.

    Raises:
        SystemExit: the run failed.
    """
    command = (
        "train.py", "--config=configs/cnn.py", "--config.train.steps=1",
        "--config.train.log_every=1", f"--workdir={workdir}",
    )  # fmt: skip
    # A folder of the user's own would be taken instead, and not be empty.
    environment = dict(os.environ)
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    records = workdir / "metrics.jsonl"
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=machine.ROOT,
        env=environment | {"XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.DEVNULL,
    )
    while not (records.exists() and "\n" in records.read_text(encoding="utf-8")):
        if process.poll() is not None:
            raise SystemExit(f"error: exit code {process.returncode} before the first step")
        time.sleep(POLL)
    seconds = time.perf_counter() - begin
    # To its end: only then is everything in the cache.
    if process.wait():
        raise SystemExit(f"error: exit code {process.returncode} after the first step")
    return seconds


def measure(rounds: int) -> dict[str, list[float]]:
    """Returns the milliseconds of each round with an empty cache, and then with that one warm."""
    ms: dict[str, list[float]] = {cache: [] for cache in TITLES}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for cache in TITLES:
                seconds = first_step_seconds(Path(folder) / cache, Path(folder) / "cache")
                ms[cache].append(1e3 * seconds)
    return ms
