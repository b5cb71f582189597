"""Plans of the zoo's larger models on slices of TPUs.

    python -m benchmarks.slices                    every plan that is missing; writes the tables
    python -m benchmarks.slices --only "gpt 1b"    one model
    python -m benchmarks.slices --again            plans also what was planned before
    python -m benchmarks.slices --search "gpt 70b"
        the meshes of v5e:16x16 as `zoo plan --mesh=auto` tries them
    python -m benchmarks.slices --states           the state's bytes alone, which take no compiler
    python -m benchmarks.slices --tables           compiles nothing; writes the tables

It needs the extra ``plan``. ``docs/slices.json`` keeps what each program does, so that the table
follows the shares in ``zoo/planning/roofline.py`` without another compilation.
"""

import argparse
import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from benchmarks import machine, tables
from zoo import building, commands
from zoo import config as configs
from zoo.planning import find_slice, roofline
from zoo.planning.apart import plan_apart
from zoo.planning.chips import CHIPS
from zoo.planning.plan import Plan, gib, shown_mesh
from zoo.planning.search import reliefs, search
from zoo.training.layout import make_mesh

RESULTS = machine.ROOT / "docs" / "slices.json"
DOCUMENT = machine.ROOT / "docs" / "planning.md"

SLICES = ("v5e:2x4", "v5e:4x4", "v5e:8x8", "v5e:16x16", "v5p:4x4x4", "v6e:16x16")
# A GPT with the width and depth of a Llama, as the larger variants of the config were at first:
# learnt positions, two linear layers with GELU, and a head of keys for each head of queries.
_OF_GPT = (
    "gpt.py:350m", "model.vocab_size=128256", "model.context=8192", "data.context=8192",
    "model.use_bias=False", "model.scan_layers=True", "train.remat=block",
)  # fmt: skip
# Those over which the state is divided, from 8 to 256 chips.
DIVIDED = ("v5e:2x4", "v5e:4x4", "v5e:8x8", "v5e:16x16")
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
        "vit.py", "model.patch_size=16", "model.image_size=224", "data.image_size=224",
        "model.features=1024", "model.num_layers=24", "model.num_heads=16",
        "model.feedforward_features=4096", "train.batch_size=1024",
    ),
    "ResNet-18, 224": (
        "resnet.py", "model.stem=imagenet", "data.image_size=224",
        "train.batch_size=1024",
    ),
    "UNet, text to image": ("diffusion.py", "train.batch_size=256"),
}  # fmt: skip


def plan(name: str, topology: str) -> Plan:
    """Plans a model on a slice, its parameters and rows divided over all chips.

    What does not fit is planned again with rematerialisation and accumulation, until it does.
    """
    config, _ = _made(name)
    slice_ = find_slice(topology)
    first = plan_apart(config, slice_, say=print)
    if first.fits:
        return first
    for changed in reliefs(config, len(slice_.devices)):
        other = plan_apart(changed, slice_, say=print)
        if other.fits:
            return other
    return first


def searched(name: str, topology: str, tries: int) -> list[Plan]:
    """Plans a model with the meshes that ``zoo plan --mesh=auto`` tries, the best first."""
    config, dataset = _made(name)
    slice_ = find_slice(topology)
    make = functools.partial(plan_apart, slice_=slice_, say=print)
    return search(config, dataset, slice_, make, tries=tries, say=print)


def state_bytes(name: str, topology: str) -> int:
    """Returns the bytes of a model's state on each chip of a slice; compiles nothing."""
    parts = building.build(*_made(name))
    mesh = make_mesh(1, -1, devices=find_slice(topology).devices)
    state = building.state_shapes(parts)
    layout, _ = building.layout_of(parts, mesh, state)
    return layout.bytes_per_device(state)


def _made(name: str) -> Any:
    file, *fields = MODELS[name]
    given = commands.load_config(str(machine.ROOT / "configs" / file))
    fields = [*fields, "precision=bfloat16", "mesh.data=1", "mesh.fsdp=-1"]
    config = configs.check(commands.override(given, [f"--config.{field}" for field in fields]))
    return building.with_data(config)


def times(found: Mapping[str, Any]) -> tuple[float, float] | None:
    """Returns the seconds of a planned step and its share of the peak, with the shares of today.

    Returns None for a plan that does not fit, or that was kept without what its program does.
    """
    if not found.get("work"):
        return None
    chip = CHIPS[found["topology"].partition(":")[0]]
    seconds = roofline.estimate(roofline.Work(**found["work"]), chip).seconds
    return seconds, found["flops_per_step"] / (found["chips"] * chip.flops * seconds)


def as_markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Lays out the plans, a row for each model and slice."""
    header = (
        "model", "slice", "batch", "in parts", "remat", "state a chip", "in all a chip", "of",
        "fits", "a step", "MFU", "planned in",
    )  # fmt: skip
    rows = []
    for name in MODELS:
        for topology in [one for one in SLICES if one in results.get(name, {})]:
            found = results[name][topology]
            held, time = found["bytes_per_chip"], times(found)
            rows.append(
                (
                    name,
                    topology,
                    str(found["settings"]["train.batch_size"]),
                    str(found["settings"]["train.accumulate"]),
                    found["settings"].get("train.remat", "none"),
                    f"{gib(held['state'])} GiB",
                    f"{gib(held['total'])} GiB",
                    f"{gib(held['capacity'])} GiB",
                    "yes" if found["fits"] else "no",
                    "-" if time is None else f"{time[0]:.3g} s",
                    "-" if time is None else f"{time[1]:.0%}",
                    f"{found['compile_seconds']:.0f} s" if found["fits"] else "-",
                )
            )
    return tables.markdown(header, rows)


def divided(states: Mapping[str, Mapping[str, int]]) -> str:
    """Lays out the state's bytes on all chips together, and how far they are from constant."""
    header = (
        "model",
        *(f"{_chips(one)} chips" for one in DIVIDED),
        "largest ÷ smallest",
    )
    rows = []
    for name in [one for one in MODELS if one in states]:
        sizes = [_chips(one) * states[name][one] for one in DIVIDED if one in states[name]]
        if len(sizes) == len(DIVIDED):
            shown = (f"{gib(size)} GiB" for size in sizes)
            rows.append((name, *shown, f"{max(sizes) / min(sizes):.2f}"))
    return tables.markdown(header, rows)


def tried(found: Sequence[Mapping[str, Any]]) -> str:
    """Lays out what a search has tried, in its order."""
    header = ("mesh", "in parts", "state a chip", "in all a chip", "fits", "a step", "MFU")
    rows = []
    for one in found:
        held, time = one["bytes_per_chip"], times(one)
        rows.append(
            (
                shown_mesh(one["mesh"]),
                str(one["settings"]["train.accumulate"]),
                f"{gib(held['state'])} GiB",
                f"{gib(held['total'])} GiB",
                "yes" if one["fits"] else "no",
                "-" if time is None else f"{time[0]:.3g} s",
                "-" if time is None else f"{time[1]:.0%}",
            )
        )
    return tables.markdown(header, rows)


def _kept() -> dict[str, dict[str, Any]]:
    """Returns what was found so far."""
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    return {"plans": {}, "states": {}, "searches": {}, **found}


def _keep(section: str, name: str, value: Any) -> None:
    # Another process may have written meanwhile.
    kept = _kept()
    kept[section][name] = value
    RESULTS.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _chips(topology: str) -> int:
    return math.prod(map(int, topology.partition(":")[2].split("x")))


def main() -> None:
    """Makes the plans that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slices", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", choices=MODELS, help="one model")
    parser.add_argument("--slices", nargs="+", default=SLICES, help="the slices")
    parser.add_argument("--again", action="store_true", help="also what was planned before")
    parser.add_argument("--search", choices=MODELS, help="try meshes for one model")
    parser.add_argument("--tries", type=int, default=6, help="the most plans of --search")
    parser.add_argument("--states", action="store_true", help="only the bytes of the state")
    parser.add_argument("--tables", action="store_true", help="compile nothing")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    if options.search:
        found = searched(options.search, "v5e:16x16", options.tries)
        made = {"date": machine.today(), "plans": [dataclasses.asdict(one) for one in found]}
        _keep("searches", options.search, made)
        options.tables = True
    for name in MODELS:
        if options.tables or options.only not in (None, name):
            continue
        states: dict[str, Any] = {}
        for topology in DIVIDED if options.states else options.slices:
            if options.states:
                states[topology] = state_bytes(name, topology)
                _keep("states", name, states)
            elif options.again or topology not in _kept()["plans"].get(name, {}):
                made = {**dataclasses.asdict(plan(name, topology)), "date": machine.today()}
                _keep("plans", name, _kept()["plans"].get(name, {}) | {topology: made})
    kept = _kept()
    tables.write_between(DOCUMENT, "slices", as_markdown(kept["plans"]))
    tables.write_between(DOCUMENT, "divided", divided(kept["states"]))
    for name, one in kept["searches"].items():
        tables.write_between(DOCUMENT, f"search {name}", tried(one["plans"]))


if __name__ == "__main__":
    main()
