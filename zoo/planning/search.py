"""Finds the layout with which a run fits and is fastest, and what would fit if one does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from zoo import building, data
from zoo import config as configs
from zoo.errors import UserError
from zoo.planning.chips import CHIPS, Slice
from zoo.planning.plan import Plan, Say, gib, in_words, shown_mesh
from zoo.training.layout import make_mesh

# Makes a plan of a config.
Make = Callable[[ConfigDict], Plan]
# More of these cost more than they bring: their collectives stand between any two products.
_MOST_TENSOR, _MOST_SEQUENCE = 16, 8
# A state that takes more of a chip leaves too little for activations to be tried first.
_ROOMY = 0.6


def meshes(chips: int, rows: int) -> list[dict[str, int]]:
    """Returns every mesh of so many chips over which so many rows can be divided.

    Args:
        chips: the number of chips.
        rows: the rows of a batch, or of one of its accumulated parts.
    """
    found = []
    for tensor in _divisors(chips, _MOST_TENSOR):
        for sequence in _divisors(chips // tensor, _MOST_SEQUENCE):
            over = chips // (tensor * sequence)
            if rows % over == 0:
                found += [
                    {"data": over // fsdp, "fsdp": fsdp, "tensor": tensor, "sequence": sequence}
                    for fsdp in _divisors(over, over)
                ]
    return found


def candidates(config: ConfigDict, dataset: data.Dataset, slice_: Slice) -> list[dict[str, int]]:
    """Returns the meshes that divide a config's step, the likeliest to be good first.

    The state must fit into the memory of a chip, and an axis must divide parameters or lengths to
    be used. Those whose state leaves room come first, of them those with the fewest devices along
    ``tensor`` and ``sequence`` together, then along ``tensor``, and then along ``fsdp``.

    Raises:
        UserError: no mesh divides the batch, or the state fits with none.
    """
    parts = building.build(config, dataset)
    state = building.state_shapes(parts)
    rows = config.train.batch_size // config.train.accumulate
    chips = len(slice_.devices)
    known = meshes(chips, rows)
    if not known:
        raise UserError(
            f"train.batch_size={config.train.batch_size}: no mesh of {chips} chips divides its "
            f"rows; take a multiple of {chips}"
        )
    ordered, smallest = [], math.inf
    for mesh in known:
        held, used = _state_on(mesh, parts, state, slice_)
        smallest = min(smallest, held)
        if held <= slice_.chip.memory and all(axis in used for axis in _special(mesh)):
            crowded = held > _ROOMY * slice_.chip.memory
            ordered.append((crowded, _sharers(mesh), mesh["tensor"], mesh["fsdp"], mesh))
    if not ordered:
        raise UserError(
            f"the state of the run takes at least {gib(smallest)} GiB on each of {chips} chips, "
            f"and {slice_.chip.name} has {gib(slice_.chip.memory)}: {_larger(slice_, smallest)}"
        )
    ordered.sort(key=lambda item: item[:4])
    return [item[-1] for item in ordered]


def reliefs(config: ConfigDict, rows: int) -> Iterator[ConfigDict]:
    """Yields configs of the same run that need less memory, each less than the one before.

    First the layers keep less for the gradient (``train.remat``), then the batch is computed in
    more parts (``train.accumulate``).

    Args:
        config: a checked config.
        rows: the number of devices over which rows are divided.
    """
    current = config
    if building.family_of(config).can_rematerialize and config.train.remat != "block":
        current = with_fields(current, {"train.remat": "block"})
        yield current
    size, parts = config.train.batch_size, 2 * config.train.accumulate
    while size % parts == 0 and size // parts % rows == 0:
        yield with_fields(current, {"train.accumulate": parts})
        parts *= 2


def with_fields(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """Returns a checked copy of a config with some fields changed, by path."""
    changed = config.copy_and_resolve_references()
    for path, value in changes.items():
        section, _, name = path.rpartition(".")
        changed[section][name] = value
    return configs.check(changed)


def with_mesh(config: ConfigDict, mesh: Mapping[str, int]) -> ConfigDict:
    """Returns a checked copy of a config with another mesh."""
    return with_fields(config, {f"mesh.{axis}": size for axis, size in mesh.items()})


def search(
    config: ConfigDict, dataset: data.Dataset, slice_: Slice, make: Make, *, tries: int, say: Say
) -> list[Plan]:
    """Plans the likeliest layouts and returns them, those that fit first, the fastest first of all.

    A mesh that does not fit is tried again with rematerialisation and accumulation, until it does.
    If it never does, only those follow that divide the state over more chips, or share a row among
    more, first along ``sequence``, which divides what lies between layers; and each with all that
    makes it smaller.

    Args:
        config: a checked config; its mesh is ignored.
        dataset: its data.
        slice_: the chips.
        make: makes a plan of a config.
        tries: the most compilations.
        say: is told what is done.
    """
    known = candidates(config, dataset, slice_)
    say(f"{len(known)} meshes divide the batch and hold the state; at most {tries} are compiled")
    plans: list[Plan] = []
    # What the largest mesh divides for which nothing helped: a row, and the state.
    too_little = (0, 0)
    for mesh in known:
        divides = _sharers(mesh), mesh["fsdp"] * mesh["tensor"]
        if divides <= too_little:
            continue
        wanted = with_mesh(config, mesh)
        choices = [wanted, *reliefs(wanted, mesh["data"] * mesh["fsdp"])]
        for one in choices[-1:] if any(too_little) else choices:
            if len(plans) >= tries:
                return ranked(plans)
            plans.append(make(one))
            if plans[-1].fits:
                break
        else:
            too_little = divides
    return ranked(plans)


def ranked(plans: Sequence[Plan]) -> list[Plan]:
    """Returns plans in the order of their worth: that fit, by time; then the others, by memory."""

    def worth(plan: Plan) -> tuple[bool, float]:
        seconds = math.inf if plan.step_seconds is None else plan.step_seconds
        return not plan.fits, seconds if plan.fits else float(plan.bytes_per_chip["total"])

    return sorted(plans, key=worth)


def what_would_fit(
    plan: Plan,
    config: ConfigDict,
    dataset: data.Dataset,
    slice_: Slice,
    make: Make,
    *,
    tries: int,
) -> list[str]:
    """Returns lines with figures on what makes a run fit that a plan says does not.

    Compiles the same mesh with rematerialisation and accumulation, then the mesh that divides the
    state most, until something fits.

    Args:
        plan: the plan that does not fit.
        config: its config.
        dataset: its data.
        slice_: the chips.
        make: makes a plan of a config.
        tries: the most compilations.
    """
    lines: list[str] = []
    for changed in _smaller(plan, config, dataset, slice_):
        if len(lines) >= tries:
            break
        other = make(changed)
        lines.append(f"with {_changes(config, changed)}: {in_words(other)}")
        if other.fits:
            return lines
    held = plan.bytes_per_chip
    return [
        *lines,
        f"the state alone takes {gib(held['state'])} of {gib(held['capacity'])} GiB a chip, the "
        f"rest {gib(held['total'] - held['state'])}: lower train.batch_size="
        f"{config.train.batch_size}, or {_larger(slice_, held['total'])}",
    ]


def _smaller(
    plan: Plan, config: ConfigDict, dataset: data.Dataset, slice_: Slice
) -> Iterator[ConfigDict]:
    yield from reliefs(config, plan.mesh["data"] * plan.mesh["fsdp"])
    try:
        known = candidates(config, dataset, slice_)
    except UserError:
        return
    most = max(known, key=lambda mesh: (mesh["fsdp"], -mesh["tensor"] * mesh["sequence"]))
    if most != dict(plan.mesh):
        wanted = with_mesh(config, most)
        yield wanted
        yield from reliefs(wanted, most["data"] * most["fsdp"])


def _changes(before: ConfigDict, after: ConfigDict) -> str:
    old, new = configs.flatten(before), configs.flatten(after)
    mesh = {path: size for path, size in new.items() if path.startswith("mesh.")}
    moved = any(old[path] != size for path, size in mesh.items())
    named = [f"mesh {shown_mesh({p[5:]: s for p, s in mesh.items()})}"] if moved else []
    named += [f"{path}={new[path]}" for path in new if path not in mesh and new[path] != old[path]]
    return ", ".join(named)


def _larger(slice_: Slice, needed: float) -> str:
    """Returns words on the slices of the same chip, and on the chips, that have room."""
    times, chips = needed / max(1, slice_.chip.memory), len(slice_.devices)
    sizes = {shape: math.prod(map(int, shape.split("x"))) for shape in slice_.chip.shapes}
    more = [shape for shape, size in sizes.items() if size >= chips * max(times, 1.01)]
    roomier = [chip.name for chip in CHIPS.values() if chip.memory > max(needed, 1)]
    words = [f"take {slice_.chip.name}:{more[0]} with mesh.fsdp"] if more else []
    words += [f"chips with more memory ({', '.join(roomier)})"] if roomier else []
    return " or ".join(words) or "take a smaller model"


def _state_on(
    mesh: Mapping[str, int], parts: building.Parts, state: Any, slice_: Slice
) -> tuple[int, set[str]]:
    """Returns the bytes of the state on a chip, and the mesh axes that divide some of it."""
    made = make_mesh(**mesh, devices=slice_.devices)
    layout, _ = building.layout_of(parts, made, state)
    used = {"sequence"}
    for sharding in jax.tree.leaves(layout.of(state)):
        for axes in sharding.spec:
            used.update(axes if isinstance(axes, tuple) else [axes] if axes else [])
    return layout.bytes_per_device(state), used


def _sharers(mesh: Mapping[str, int]) -> int:
    return mesh["tensor"] * mesh["sequence"]


def _special(mesh: Mapping[str, int]) -> list[str]:
    return [axis for axis, size in mesh.items() if size > 1 and axis != "data"]


def _divisors(number: int, most: int) -> list[int]:
    return [size for size in range(1, min(number, most) + 1) if number % size == 0]
