"""Turns of the sides, each in a process of its own, and PyTorch's fastest setting."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import machine
from benchmarks.families.sides import SETTINGS, Work

# Seconds for which each setting is timed before the turns.
TRIAL = 1.0

Measure = Callable[..., Any]


def measure(name: str, folder: str, threads: int) -> Measure:
    """Returns a function of a side and further options that runs ``benchmarks.measure``.

    It returns what that prints. The files that all sides start from are made first.
    """
    program = ("-m", "benchmarks.measure", name)
    machine.run((*program, "prepare", folder))

    def measured(side: str, *options: str) -> Any:
        return machine.run_for_json(
            (*program, side, folder, f"--threads={threads}", *options),
            ZOO_KERNELS=os.environ.get("ZOO_KERNELS", "on"),
            # What one round compiles the next ones need not.
            JAX_COMPILATION_CACHE_DIR=f"{folder}/compiled",
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.1",
        )

    return measured


def fastest(measured: Measure, settings: Sequence[str], seconds: float = TRIAL) -> str:
    """Times each of PyTorch's settings once for a short while; returns the fastest.

    One that cannot run is left out with a warning; a single one is not timed.

    Raises:
        SystemExit: none can run.
    """
    if len(settings) == 1:
        return settings[0]
    ms: dict[str, float] = {}
    for setting in settings:
        try:
            timed = measured("torch", f"--time={seconds}", f"--setting={setting}", "--short")
        except SystemExit as failed:
            print(f"warning: PyTorch, {SETTINGS[setting]}, is left out: {failed}", flush=True)
            continue
        ms[setting] = timed["ms"]
    if not ms:
        raise SystemExit("error: PyTorch runs in none of its settings")
    found = min(ms, key=ms.__getitem__)
    tried = ", ".join(f"{SETTINGS[setting]} {value:.4g} ms" for setting, value in ms.items())
    print(f"PyTorch's settings: {tried}: {SETTINGS[found]} takes part", flush=True)
    return found


def peer_name(work: Work, setting: str) -> str:
    """Names PyTorch's side of a work as it took part, for the table."""
    optimizer = f", {work.optimizer}" if work.optimizer else ""
    return f"PyTorch, {SETTINGS[setting]}{optimizer}"
