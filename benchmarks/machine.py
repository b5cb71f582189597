"""The machine that is measured: its name, its versions, its threads, and processes on it."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.process import processor_model

ROOT = Path(__file__).parents[1]
# What a time depends on: a figure is marked where one of these changed after it was measured.
CODE = ("zoo/kernels", "zoo/layers", "zoo/models", "zoo/native", "zoo/training")
_VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "torchvision", "jax-model-zoo")


def describe() -> dict[str, Any]:
    """Returns processor, number of its cores that this process may use, memory and system."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
    }


def name(machine: dict[str, Any]) -> str:
    """Returns a file name for what ``describe`` returned."""
    words = re.sub(r"\((r|tm)\)|cpu", " ", machine["processor"].lower())
    return f"{'-'.join(re.findall(r'[a-z0-9.]+', words))}-{machine['cores']}-cores"


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that take part."""
    found = {"python": platform.python_version()}
    for package in _VERSIONS:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a peer, or a checkout not installed
            found[package] = "not installed"
    return found


def today() -> str:
    """Returns the date as YYYY-MM-DD."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def commit() -> str | None:
    """Returns the short name of the commit that is checked out; None where there is no git.

    A ``+`` follows it where files of the package have changed since.
    """
    name = _git("rev-parse", "--short", "HEAD")
    if not name:
        return None
    return f"{name}+" if _git("status", "--porcelain", "--", "zoo") else name


def is_older(measured: str | None) -> bool:
    """Returns whether a commit after ``measured`` touched ``CODE``; False where git cannot say.

    Args:
        measured: what ``commit`` returned when something was measured.
    """
    if not measured:
        return False
    return bool(_git("rev-list", "-1", f"{measured.rstrip('+')}..HEAD", "--", *CODE))


def _git(*arguments: str) -> str:
    """Returns what git prints in the project's root; nothing where it is absent or fails."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def limit_threads(threads: int) -> None:
    """Lets this process, and those that it starts, use the first ``threads`` cores only.

    XLA, PyTorch and OpenMP all take their number of threads from it.

    Raises:
        SystemExit: there are fewer cores.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < threads:
        raise SystemExit(f"error: --threads={threads}, but there are only {len(cores)} cores")
    os.sched_setaffinity(0, cores[:threads])


def memory_mib() -> tuple[float, float]:
    """Returns the memory that this process holds, and the most that it has held so far.

    Of its own: what ``getrusage`` says includes the process that it was started from.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    held, most = (int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return held, most


def run(arguments: Sequence[str], **environment: str) -> tuple[str, float]:
    """Runs Python with arguments in the project's root; returns its output and its seconds.

    ``environment`` is added to this process's.

    Raises:
        SystemExit: it failed; its own error stream has been shown.
    """
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False,
        env=os.environ | environment,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if done.returncode:
        command = " ".join(["python", *arguments])
        raise SystemExit(f"error: exit code {done.returncode} from: {command}\n{done.stdout}")
    return done.stdout, seconds


def answer(result: Any) -> None:
    """Prints a result for ``run_for_json`` and ends this process, whatever it does beside."""
    print(json.dumps(result), flush=True)
    os._exit(0)


def run_for_json(arguments: Sequence[str], **environment: str) -> Any:
    """Runs Python with arguments and returns what the last line of its output says, as JSON."""
    output, _ = run(arguments, **environment)
    return json.loads(output.splitlines()[-1])
