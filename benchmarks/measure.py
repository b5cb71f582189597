"""One measurement of one side, in a process of its own.

    python -m benchmarks.measure WORK prepare FOLDER              what all sides start from
    python -m benchmarks.measure WORK ours|torch|linen FOLDER     the numbers that must agree
    python -m benchmarks.measure WORK SIDE FOLDER --time SECONDS  milliseconds of a call

The result is the last line printed, as JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import machine
from benchmarks.families.sides import COMPARED, SETTINGS, WARM_UP, Work
from benchmarks.growth import POINTS
from benchmarks.works import WORKS
from zoo.process import tune_allocator

ALL: dict[str, Work] = WORKS | POINTS


def milliseconds(
    call: Callable[[int], float], seconds: float, calls: int | None = None
) -> list[float]:
    """Times calls for about ``seconds``, at least three of them, after three to warm up.

    Args:
        call: what is timed, by the number of the call.
        seconds: in all.
        calls: how many, whatever time they take; None: as many as fit.
    """
    times: list[float] = []
    for index in range(WARM_UP):
        call(index)
    while len(times) < (calls or 3) or (not calls and sum(times) < 1e3 * seconds):
        start = time.perf_counter()
        call(WARM_UP + len(times))
        times.append(1e3 * (time.perf_counter() - start))
    return times


def matmul_gflops(size: int = 2048) -> float:
    """Returns the best rate of a float32 matrix product in a few trials, in GFLOP/s."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones((size, size))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest"))
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e9


def main() -> None:
    """Makes one measurement."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measure")
    parser.add_argument("work", choices=ALL)
    parser.add_argument("what", choices=("prepare", "ours", "torch", "linen", "step"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2, help="XLA itself counts the cores")
    parser.add_argument("--time", type=float, default=0.0, help="seconds to measure; 0: compare")
    parser.add_argument("--short", action="store_true", help="for that time, however many calls")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--setting", choices=SETTINGS, default="eager", help="PyTorch's")
    options = parser.parse_args()
    # Of every side alike, and before any of them asks for memory.
    tune_allocator()
    import jax

    jax.config.update("jax_enable_x64", options.dtype == "float64")
    work = ALL[options.work]
    if options.what == "prepare":
        work.prepare(options.folder)
        return
    given = {}
    if options.what == "torch":
        import torch

        torch.set_num_threads(options.threads)
        torch.manual_seed(0)
        given = {"setting": options.setting}
    before, _ = machine.memory_mib()
    side = getattr(work, options.what)
    call = side(options.folder, options.dtype, timed=options.time > 0, **given)
    if options.time:
        times = milliseconds(call, options.time, None if options.short else work.calls)
        _, most = machine.memory_mib()
        measured = {
            "ms": statistics.fmean(times) if work.waits else statistics.median(times),
            "memory_mib": most - before,
            "matmul_gflops": matmul_gflops() if options.what == "ours" else None,
        }
        print(json.dumps(measured))
    else:
        with np.load(options.folder / "batches.npz") as arrays:
            count = len(arrays[arrays.files[0]])
        print(json.dumps([call(index) for index in range(min(count, COMPARED[options.dtype]))]))


if __name__ == "__main__":
    main()
