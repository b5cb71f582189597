"""The memory that a plan names beside the memory that the step really took, on a CPU.

    python -m benchmarks.footprint                      every step that is missing; writes the table
    python -m benchmarks.footprint --only "resnet18"    one
    python -m benchmarks.footprint --tables             runs nothing; writes the table

Each step runs in a process of its own: it plans for one virtual device, compiles, notes the memory
that the process holds, makes the state, and takes two steps on real batches. What it took is the
most that the process has held during the steps (``VmHWM``, set back before them), less what it held
before the state was made. It needs Linux.
"""

import argparse
import ctypes
import gc
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import machine, tables
from zoo import building, commands
from zoo import config as configs
from zoo.planning import find_slice, make_plan
from zoo.training import loop
from zoo.training.layout import Layout, make_mesh, make_state

RESULTS = machine.ROOT / "docs" / "footprint.json"
DOCUMENT = machine.ROOT / "docs" / "planning.md"
_TIMES = 2

_GPT = ("gpt.py:124m", "model.scan_layers=True")
STEPS: Mapping[str, Sequence[str]] = {
    "cnn, 512 images": ("cnn.py", "train.batch_size=512"),
    "resnet18, 128 images of 32": ("resnet.py", "train.batch_size=128"),
    "vit_s_16, 16 images of 224": (
        "vit.py", "model.patch_size=16", "model.image_size=224", "data.image_size=224",
        "model.features=384", "model.num_layers=12", "model.num_heads=6",
        "model.feedforward_features=1536", "train.batch_size=16",
    ),
    "gpt, 10 million, 16 x 256": (
        "gpt.py", "model.features=384", "model.num_layers=6", "model.num_heads=6",
        "model.context=256", "data.context=256", "train.batch_size=16",
    ),
    "gpt 124m, 1 x 1024": (*_GPT, "train.batch_size=1"),
    "gpt 124m, 4 x 1024": (*_GPT, "train.batch_size=4"),
    "gpt 124m, 4 x 1024, blocks again": (*_GPT, "train.batch_size=4", "train.remat=block"),
}  # fmt: skip


def measure(name: str) -> dict[str, Any]:
    """Plans a step and runs it; returns the bytes of both. For a process of its own."""
    file, *fields = STEPS[name]
    given = commands.load_config(str(machine.ROOT / "configs" / file))
    config = configs.check(commands.override(given, [f"--config.{field}" for field in fields]))
    config, dataset = building.with_data(config)
    plan = make_plan(config, dataset, find_slice("cpu:1"))
    parts = building.build(config, dataset)
    layout = Layout(make_mesh(1, devices=jax.devices()[:1]))
    shapes, batch = building.state_shapes(parts), building.train_shapes(parts)
    like = loop.abstract_arrays(shapes, parts.train_step, batch, layout)
    training = loop.Training(**like, progress=loop.Progress())
    step = loop.compile_train_step(parts.train_step, training, batch, layout)

    def start() -> dict[str, Any]:
        sums = {name: jax.tree.map(_zeros, like[name]) for name in ("window", "epoch")}
        return {"state": building.init_state(parts), **sums}

    with building.train_batches(parts) as batches:
        given_batches = [next(batches) for _ in range(_TIMES)]
    # Compiles the function that makes the state; the state itself goes again.
    jax.block_until_ready(make_state(start, layout))
    before = _held()
    arrays = make_state(start, layout)
    jax.block_until_ready(arrays)
    _forget_most()
    for host in given_batches:
        arrays, _ = step(arrays, layout.put_batch(host))
    jax.block_until_ready(arrays)
    _, most = machine.memory_mib()
    return {
        "planned": plan.bytes_per_chip["total"],
        "state": plan.bytes_per_chip["state"],
        "measured": int((most - before) * 2**20),
        "machine": machine.describe()["processor"],
        "date": machine.today(),
    }


def _zeros(array: Any) -> Any:
    return jax.numpy.zeros(array.shape, array.dtype)


def _held() -> float:
    """Returns the MiB that the process holds, after it gave back what it does not use."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    held, _ = machine.memory_mib()
    return held


def _forget_most() -> None:
    # proc(5): 5 sets the peak of the resident memory back to its present value.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def as_markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Lays out planned and measured memory."""
    header = ("step", "state", "planned", "measured", "planned ÷ measured")
    rows = [
        (
            name,
            *(f"{results[name][key] / 2**20:,.0f} MiB" for key in ("state", "planned", "measured")),
            f"{results[name]['planned'] / results[name]['measured']:.2f}",
        )
        for name in STEPS
        if name in results
    ]
    return tables.markdown(header, rows)


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.footprint", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", choices=STEPS, help="one step")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    parser.add_argument("--here", action="store_true", help="measure --only in this process")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.only)))
        return
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in STEPS:
        wanted = name == options.only if options.only else name not in results
        if options.tables or not wanted:
            continue
        command = ["-m", "benchmarks.footprint", "--here", f"--only={name}"]
        results[name] = machine.run_for_json(command, JAX_PLATFORMS="cpu")
        print(name, results[name], flush=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    tables.write_between(DOCUMENT, "footprint", as_markdown(results))


if __name__ == "__main__":
    main()
