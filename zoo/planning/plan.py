"""The plan of a run: its real train step, compiled for chips that aren't there."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from zoo import building, data, process, sizing
from zoo import config as configs
from zoo.errors import UserError
from zoo.files import write_atomically
from zoo.flops import count_flops
from zoo.planning import programs, roofline
from zoo.planning.chips import Slice
from zoo.training import loop
from zoo.training.layout import Layout, make_mesh

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step takes on a slice.

    Attributes:
        topology: the name of the slice.
        chips: the number of its chips.
        mesh: the size of each mesh axis.
        fits: whether the step fits into the memory of a chip.
        bytes_per_chip: ``parameters``; ``optimizer``, its state; ``state``, both and the average;
            ``temporaries``, all that the program needs besides its arguments; ``total`` and
            ``capacity``.
        flops_per_step: operations of the model's products and convolutions on all chips together,
            without what rematerialisation computes again.
        collective_bytes: bytes of each kind of collective on each chip: of the gathered or reduced
            array, as often as it runs. None if the program could not be compiled.
        step_seconds: the estimated time of a step; None if the program could not be compiled.
        mfu: the share of the chips' peak that ``flops_per_step`` reach; None as above.
        tokens_per_second: tokens, or examples of a task without tokens; None as above.
        compile_seconds: the time of the compilation.
        unit: ``tokens`` or ``examples``.
        per_step: how many of them a step takes.
        parts: the seconds of the parts of a step; see ``roofline.Estimate``.
        settings: the fields that decide besides the mesh, such as ``train.accumulate``.
        notes: what else there is to know, a line each.
        work: the fields of a ``roofline.Work``, for another estimate; None if the program could not
            be compiled.
    """

    topology: str
    chips: int
    mesh: Mapping[str, int]
    fits: bool
    bytes_per_chip: Mapping[str, int]
    flops_per_step: int
    collective_bytes: Mapping[str, int] | None
    step_seconds: float | None
    mfu: float | None
    tokens_per_second: float | None
    compile_seconds: float
    unit: str
    per_step: int
    parts: Mapping[str, float]
    settings: Mapping[str, Any]
    notes: tuple[str, ...]
    work: Mapping[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """Returns what ``zoo plan --json`` writes."""
        return {name: getattr(self, name) for name in _KEYS}


_KEYS = (
    "chips", "mesh", "fits", "bytes_per_chip", "flops_per_step", "collective_bytes",
    "step_seconds", "mfu", "tokens_per_second", "compile_seconds",
)  # fmt: skip
# The fields that a search changes, if the config has them.
DECIDING = ("train.batch_size", "train.accumulate", "train.remat", "model.scan_layers")


def make_plan(
    config: ConfigDict,
    dataset: data.Dataset,
    slice_: Slice,
    *,
    say: Say = lambda text: None,
    shares: roofline.Shares | None = None,
    code: bool = True,
) -> Plan:
    """Compiles a config's train step for a slice, and returns what it takes; nothing is computed.

    Args:
        config: a checked config, as ``building.with_data`` returns it.
        dataset: its data.
        slice_: the chips.
        say: is told what is done.
        shares: see ``roofline.estimate``.
        code: whether to wait for the machine code; see ``programs.scheduled``. Without it
            ``compile_seconds`` are those until the program was scheduled.

    Raises:
        UserError: the mesh does not have as many devices as the slice, or the rows of a batch
            cannot be divided over it.
    """
    parts = building.build(config, dataset)
    settings = parts.settings
    mesh = make_mesh(
        settings.devices, settings.fsdp, settings.tensor, settings.sequence, devices=slice_.devices
    )
    name = f"{slice_.name}, {shown_mesh(mesh.shape)}"
    if mesh.size != len(slice_.devices):
        raise UserError(
            f"--topology={slice_.name} has {len(slice_.devices)} chips and the mesh takes "
            f"{mesh.size} ({shown_mesh(mesh.shape)}): give --config.mesh.data=-1, or --mesh=auto"
        )
    state = building.state_shapes(parts)
    layout, said = building.layout_of(parts, mesh, state)
    _check_rows(config, layout)
    say(f"{name}: tracing")
    batch = building.train_shapes(parts)
    flops = _model_flops(config, dataset, state, batch, slice_)
    say(f"{name}: compiling{_shown_settings(config)}")
    arrays = loop.abstract_arrays(state, parts.train_step, batch, layout)
    training = loop.Training(**arrays, progress=loop.Progress())
    memory = _state_bytes(state, layout)
    unit, per_step = _work(batch)
    common: dict[str, Any] = {
        "topology": slice_.name,
        "chips": len(slice_.devices),
        "mesh": dict(mesh.shape),
        "flops_per_step": flops,
        "unit": unit,
        "per_step": per_step,
        "settings": deciding(config),
    }
    platform = slice_.devices[0].platform
    with programs.written_by_compiler(platform) as (options, text):

        def compile_() -> Any:
            return loop.compile_train_step(parts.train_step, training, batch, layout, **options)

        begin = time.perf_counter()
        try:
            if code or platform != "tpu":
                compiled: Any = compile_()
                program, held = programs.parse(text(compiled)), _held(compiled.memory_analysis())
            else:
                written, main = programs.scheduled(compile_, options)
                program = programs.parse(written)
                held = main - programs.argument_bytes(program), main
        except jax.errors.JaxRuntimeError as error:
            if not sizing.is_memory(error):
                raise
            plan = _too_large(error, memory, slice_, common, said)
        else:
            common["compile_seconds"] = time.perf_counter() - begin
            done = programs.executions(program, mesh.size)
            # Kernels do not say what they compute, but the traced program does.
            traced = count_flops(parts.train_step, state, batch, platform=platform) / mesh.size
            kernels = max(0.0, traced - done.flops) if done.has_kernels else 0.0
            plan = _of_compiled(held, done, memory, slice_, mesh, common, said, shares, kernels)
    say(f"{name}: {in_words(plan)}")
    return plan


def cached_plan(
    config: ConfigDict,
    slice_: Slice,
    make: Callable[[], Plan],
    *,
    kind: str = "",
    say: Say = lambda text: None,
    folder: Path | None = None,
) -> Plan:
    """Returns ``make()``, or what it returned earlier for the same code, versions and config.

    Args:
        config: the config of the plan.
        slice_: its chips.
        make: makes the plan.
        kind: tells plans of different functions apart.
        say: is told if the plan was made before.
        folder: where plans are kept; the default lies in the user's cache folder.
    """
    folder = folder or process.cache_folder() / "plans"
    file = folder / f"{_key(config, slice_, kind)}.json"
    if file.is_file():
        plan = Plan(**json.loads(file.read_text(encoding="utf-8")))
        say(f"{slice_.name}, {shown_mesh(plan.mesh)}: {in_words(plan)} (planned before)")
        return plan
    plan = make()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(dataclasses.asdict(plan)))
    return plan


def deciding(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields of a config that a search may change, as far as it has them."""
    flat = configs.flatten(config)
    return {path: flat[path] for path in DECIDING if path in flat}


def shown_mesh(sizes: Mapping[str, int]) -> str:
    """Returns the sizes of the mesh axes for reading, such as ``data 4 x fsdp 2``."""
    larger = [f"{name} {size}" for name, size in sizes.items() if size > 1]
    return " x ".join(larger) or "one chip"


def in_words(plan: Plan) -> str:
    """Returns the most important figures of a plan in a line."""
    held = plan.bytes_per_chip
    memory = f"{gib(held['total'])} of {gib(held['capacity'])} GiB a chip"
    if plan.step_seconds is None or plan.mfu is None:
        return f"does not fit, {memory}"
    fits = "fits" if plan.fits else "does not fit"
    return f"{fits}, {memory}, {plan.step_seconds:.4g} s a step, MFU {plan.mfu:.1%}"


def gib(count: float) -> str:
    """Returns bytes in GiB, the unit of chips, with three digits."""
    return f"{count / 2**30:.3g}"


def _of_compiled(
    held: tuple[int, int],
    done: programs.Executions,
    memory: dict[str, int],
    slice_: Slice,
    mesh: Mesh,
    common: dict[str, Any],
    said: list[str],
    shares: roofline.Shares | None,
    kernel_flops: float,
) -> Plan:
    temporaries, total = held
    placed = dataclasses.replace(slice_, devices=list(mesh.devices.flat))
    work = roofline.work_of(done, placed, kernel_flops=kernel_flops)
    estimate = roofline.estimate(work, slice_.chip, shares)
    if done.unknown_loops:
        said = [*said, f"{done.unknown_loops} loops of unknown length count once"]
    peak = mesh.size * slice_.chip.flops
    return Plan(
        **common,
        fits=total <= slice_.chip.memory,
        bytes_per_chip={
            **memory,
            "temporaries": temporaries,
            "total": total,
            "capacity": slice_.chip.memory,
        },
        collective_bytes=done.collective_bytes(),
        step_seconds=estimate.seconds,
        mfu=common["flops_per_step"] / (peak * estimate.seconds),
        tokens_per_second=common["per_step"] / estimate.seconds,
        parts={
            name: value
            for name, value in dataclasses.asdict(estimate).items()
            if name != "seconds"
        },
        notes=tuple(said),
        work=dataclasses.asdict(work),
    )  # fmt: skip


def _held(made: Any) -> tuple[int, int]:
    """Returns the bytes of temporaries and of all, from the compiler's analysis of memory."""
    beside = made.output_size_in_bytes - made.alias_size_in_bytes
    temporaries = made.temp_size_in_bytes + beside + made.generated_code_size_in_bytes
    return temporaries, made.argument_size_in_bytes + temporaries


def _too_large(
    error: Exception,
    memory: dict[str, int],
    slice_: Slice,
    common: dict[str, Any],
    said: list[str],
) -> Plan:
    temporaries = needed_bytes(str(error))
    first = str(error).partition("\n")[0]
    return Plan(
        **common,
        fits=False,
        bytes_per_chip={
            **memory,
            "temporaries": max(temporaries, 0),
            "total": max(memory["state"] + temporaries, slice_.chip.memory + 1),
            "capacity": slice_.chip.memory,
        },
        collective_bytes=None,
        step_seconds=None,
        mfu=None,
        tokens_per_second=None,
        compile_seconds=0.0,
        parts={},
        notes=(*said, f"the compiler refused it: {first}"),
        work=None,
    )


def needed_bytes(message: str) -> int:
    """Returns the bytes that the compiler's message says a program needs besides its arguments."""
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    found = re.search(r"temporaries \(([\d.]+)([KMGT]?)\)|Used ([\d.]+)([KMGT]?) of", message)
    if found is None:
        return 0
    number, unit = found[1] or found[3], found[2] or found[4] or ""
    return int(float(number) * units[unit])


def _state_bytes(state: Any, layout: Layout) -> dict[str, int]:
    """Returns the bytes on one device of the state's parts."""
    parameters, optimizer, average = (
        layout.bytes_per_device(part) for part in (state.params, state.opt_state, state.ema_params)
    )
    return {
        "parameters": parameters,
        "optimizer": optimizer,
        "state": parameters + optimizer + average,
    }


def _model_flops(
    config: ConfigDict, dataset: data.Dataset, state: Any, batch: Any, slice_: Slice
) -> int:
    """Returns the operations of a step without what rematerialisation computes again."""
    plain = config.copy_and_resolve_references()
    plain.train.remat = "none"
    step = building.build(plain, dataset).train_step
    platform = slice_.devices[0].platform
    return count_flops(step, state, batch, platform=platform)


def _work(batch: Mapping[str, Any]) -> tuple[str, int]:
    """Returns what a step's work is counted in, and how much of it a batch has."""
    if "token_mask" in batch:
        return "tokens", math.prod(batch["token_mask"].shape)
    return "examples", next(iter(batch.values())).shape[0]


def _check_rows(config: ConfigDict, layout: Layout) -> None:
    rows, parts = config.train.batch_size, config.train.accumulate
    if rows // parts % layout.row_parts:
        raise UserError(
            f"train.batch_size={rows} in {parts} parts cannot be divided over "
            f"{layout.row_parts} chips: take a multiple of {layout.row_parts * parts}, or divide "
            "rows over fewer chips with mesh.tensor or mesh.sequence"
        )


def _shown_settings(config: ConfigDict) -> str:
    return "".join(f", {path}={value}" for path, value in deciding(config).items())


def _key(config: ConfigDict, slice_: Slice, kind: str = "") -> str:
    versions = {}
    for package in ("jax", "jaxlib", "libtpu"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = ""
    whole = hashlib.sha256(
        json.dumps([slice_.name, kind, versions, configs.to_json(config)]).encode()
    )
    root = Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        whole.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return whole.hexdigest()[:32]
