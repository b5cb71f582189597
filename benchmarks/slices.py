"""Plans of the zoo's larger models on slices of TPUs.

    python -m benchmarks.slices                    every plan; writes the table
    python -m benchmarks.slices --only "gpt 1b"    one model
    python -m benchmarks.slices --tables           compiles nothing; writes the table

It needs the extra ``plan``. A plan that was made before, by the same code, is not compiled again.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from benchmarks import machine, tables
from zoo import building, commands
from zoo import config as configs
from zoo.planning import find_slice
from zoo.planning.plan import Plan, cached_plan, gib

RESULTS = machine.ROOT / "docs" / "slices.json"
DOCUMENT = machine.ROOT / "docs" / "planning.md"

SLICES = ("v5e:2x4", "v5e:4x4", "v5e:8x8", "v5e:16x16", "v5p:4x4x4", "v6e:16x16")
# A GPT with the width and depth of a Llama, as the larger variants of the config were at first:
# learnt positions, two linear layers with GELU, and a head of keys for each head of queries.
_OF_GPT = (
    "gpt.py:350m", "model.vocab_size=128256", "model.context=8192", "data.context=8192",
    "model.use_bias=False", "model.scan_layers=True", "train.remat=block",
)  # fmt: skip
# Layers in a loop compile in a tenth of the time.
# Images are of the data that come with the package, resized; ten classes instead of a thousand
# change nothing that shows here.
MODELS: Mapping[str, Sequence[str]] = {
    "gpt 124m": ("gpt.py:124m", "model.scan_layers=True"),
    "gpt 350m": ("gpt.py:350m", "model.scan_layers=True"),
    "gpt 1b": (
        *_OF_GPT, "model.features=2048", "model.num_layers=16", "model.num_heads=32",
        "train.batch_size=256",
    ),
    "gpt 7b": (
        *_OF_GPT, "model.features=4096", "model.num_layers=32", "model.num_heads=32",
        "train.batch_size=256",
    ),
    "gpt 70b": (
        *_OF_GPT, "model.features=8192", "model.num_layers=80", "model.num_heads=64",
        "train.batch_size=512",
    ),
    "llama 1b": ("gpt.py:1b", "train.batch_size=256"),
    "llama 7b": ("gpt.py:7b",),
    "llama 70b": ("gpt.py:70b",),
    "ViT-L/16, 224": (
        "vit.py", "model.name=vit_l_16", "data.image_size=224", "train.batch_size=1024",
    ),
    "ResNet-50, 224": (
        "resnet.py", "model.name=resnet50", "data.image_size=224", "train.batch_size=1024",
    ),
    "UNet, text to image": ("diffusion.py", "train.batch_size=256"),
}  # fmt: skip


def plan(name: str, topology: str) -> Plan:
    """Plans a model on a slice, its parameters and rows divided over all chips."""
    file, *fields = MODELS[name]
    given = commands.load_config(str(machine.ROOT / "configs" / file))
    fields = [*fields, "precision=bfloat16", "mesh.data=1", "mesh.fsdp=-1"]
    config = configs.check(commands.override(given, [f"--config.{field}" for field in fields]))
    config, dataset = building.with_data(config)
    return cached_plan(config, dataset, find_slice(topology), say=print)


def as_markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Lays out the plans, a row for each model and slice."""
    header = (
        "model", "slice", "batch", "state a chip", "in all a chip", "of", "fits", "a step", "MFU",
        "compiled in",
    )  # fmt: skip
    rows = []
    for name in MODELS:
        for topology, found in results.get(name, {}).items():
            held = found["bytes_per_chip"]
            seconds = found["step_seconds"]
            rows.append(
                (
                    name,
                    topology,
                    str(found["settings"]["train.batch_size"]),
                    f"{gib(held['state'])} GiB",
                    f"{gib(held['total'])} GiB",
                    f"{gib(held['capacity'])} GiB",
                    "yes" if found["fits"] else "no",
                    "-" if seconds is None else f"{seconds:.3g} s",
                    "-" if seconds is None else f"{found['mfu']:.0%}",
                    f"{found['compile_seconds']:.0f} s" if seconds else "-",
                )
            )
    return tables.markdown(header, rows)


def main() -> None:
    """Makes the plans that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slices", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", choices=MODELS, help="one model")
    parser.add_argument("--slices", nargs="+", default=SLICES, help="the slices")
    parser.add_argument("--tables", action="store_true", help="compile nothing")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in MODELS:
        if options.tables or options.only not in (None, name):
            continue
        for topology in options.slices:
            made = dataclasses.asdict(plan(name, topology))
            results.setdefault(name, {})[topology] = {**made, "date": machine.today()}
            RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    tables.write_between(DOCUMENT, "slices", as_markdown(results))


if __name__ == "__main__":
    main()
