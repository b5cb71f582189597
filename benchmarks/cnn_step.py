"""Our side of the benchmark of the seed CNN's training step.

    python -m benchmarks.cnn_step prepare FOLDER      batches and first weights for both sides
    python -m benchmarks.cnn_step losses|time FOLDER  one measurement, printed as JSON

Everything is made by ``zoo.runner`` from ``configs/cnn.py``, as ``train.py`` makes it.
"""

import argparse
import contextlib
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.cnn import get_config
from zoo import building, data
from zoo import config as configs
from zoo.pretrained import cnn_table, from_reference, to_reference
from zoo.training.partitioning import compile_step, make_mesh, put_batch, put_replicated
from zoo.training.state import create_state

BATCHES = 20


def make_parts(dropout_rate: float) -> building.Parts:
    """Makes the parts of ``configs/cnn.py`` with another dropout rate."""
    config = get_config()
    config.model.dropout_rate = dropout_rate
    config.train.ema_decay = 0.0  # the seed's script keeps no average
    return building.build(*building.with_data(configs.check(config)))


def prepare(folder: Path) -> None:
    """Writes ``batches.npz``, [batch, row, …] by name, and ``weights.npz`` by PyTorch's names."""
    parts = make_parts(dropout_rate=0.5)
    batches = data.train_batches(
        data.open_source(parts.dataset.name, "train"),
        data.make_transform("seed", train=True),
        batch_size=parts.config.train.batch_size,
        seed=parts.config.seed,
        start=0,
        stop=BATCHES,
    )
    with contextlib.closing(batches):
        rows = list(batches)
    stacked: dict[str, Any] = {name: np.stack([one[name] for one in rows]) for name in rows[0]}
    np.savez(folder / "batches.npz", **stacked)
    weights: dict[str, Any] = to_reference(building.init_state(parts).params, cnn_table())
    np.savez(folder / "weights.npz", **weights)


def losses(folder: Path, dtype: str) -> list[float]:
    """Returns the loss of each prepared batch, one update each, without dropout."""
    step, state, batches = _compiled(folder, dropout_rate=0.0, dtype=dtype)
    found = []
    for batch in batches:
        state, sums = step(state, batch)
        loss_sum, weight = jax.device_get(sums["loss"])
        found.append(float(loss_sum / weight))
    return found


def milliseconds(folder: Path, steps: int) -> list[float]:
    """Returns the time of each of ``steps`` steps on prepared batches, after three to warm up."""
    step, state, batches = _compiled(folder, dropout_rate=0.5, dtype="float32")
    times = []
    for batch in itertools.islice(itertools.cycle(batches), 3 + steps):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        times.append(1e3 * (time.perf_counter() - start))
    return times[3:]


def matmul_gflops(size: int = 2048) -> float:
    """Returns the best rate of a float32 matrix product in a few trials, in GFLOP/s."""
    x = jnp.ones((size, size))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest"))
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e9


def _compiled(folder: Path, *, dropout_rate: float, dtype: str) -> tuple[Callable, Any, list[Any]]:
    parts, mesh = make_parts(dropout_rate), make_mesh(1)

    def cast(x: Any) -> Any:
        return x.astype(dtype) if x.dtype == np.float32 else x

    with np.load(folder / "weights.npz") as arrays:
        like = jax.eval_shape(lambda: building.init_state(parts)).params
        params = from_reference(arrays, cnn_table(), like)
    variables = {"params": jax.tree.map(cast, params)}
    state = put_replicated(create_state(variables, parts.optimizer, jax.random.key(0)), mesh)
    with np.load(folder / "batches.npz") as arrays:
        stacked = {name: cast(arrays[name]) for name in arrays.files}
    batches = [
        put_batch({name: rows[index] for name, rows in stacked.items()}, mesh)
        for index in range(BATCHES)
    ]
    step, _ = compile_step(parts.train_step, state, batches[0], mesh, donate=True)
    return step, state, batches


def main() -> None:
    """Makes one measurement; its result is the last line printed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("prepare", "losses", "time"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, help="as on the peer's side; XLA counts the cores")
    parser.add_argument("--steps", type=int, default=10, help="steps to time")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    options = parser.parse_args()
    if options.what == "prepare":
        prepare(options.folder)
    elif options.what == "losses":
        with jax.enable_x64(options.dtype == "float64"):
            print(json.dumps(losses(options.folder, options.dtype)))
    else:
        times = milliseconds(options.folder, options.steps)
        print(json.dumps({"ms": times, "matmul_gflops": matmul_gflops()}))


if __name__ == "__main__":
    main()
