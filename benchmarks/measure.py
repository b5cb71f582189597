"""One measurement of one side, in a process of its own.

    python -m benchmarks.measure WORK prepare FOLDER              what all sides start from
    python -m benchmarks.measure WORK ours|torch|linen FOLDER     the numbers that must agree
    python -m benchmarks.measure WORK SIDE FOLDER --time SECONDS  milliseconds of each call

The result is the last line printed, as JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.families.sides import BATCHES
from benchmarks.works import WORKS

WARM_UP = 3


def milliseconds(call: Callable[[int], float], seconds: float) -> list[float]:
    """Times calls for about ``seconds``, at least three of them, after three to warm up."""
    times: list[float] = []
    for index in range(WARM_UP):
        call(index)
    while len(times) < 3 or sum(times) < 1e3 * seconds:
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
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("what", choices=("prepare", "ours", "torch", "linen"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2, help="XLA itself counts the cores")
    parser.add_argument("--time", type=float, default=0.0, help="seconds to measure; 0: compare")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    options = parser.parse_args()
    work = WORKS[options.work]
    if options.what == "torch":
        import torch

        torch.set_num_threads(options.threads)
        torch.manual_seed(0)
    else:
        import jax

        jax.config.update("jax_enable_x64", options.dtype == "float64")
    if options.what == "prepare":
        work.prepare(options.folder)
        return
    call = getattr(work, options.what)(options.folder, options.dtype, timed=options.time > 0)
    if options.time:
        times = milliseconds(call, options.time)
        rate = matmul_gflops() if options.what == "ours" else None
        print(json.dumps({"ms": times, "matmul_gflops": rate}))
    else:
        with np.load(options.folder / "batches.npz") as arrays:
            count = len(arrays[arrays.files[0]])
        print(json.dumps([call(index) for index in range(min(count, BATCHES))]))


if __name__ == "__main__":
    main()
