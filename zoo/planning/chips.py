"""The chips, and the slices of them for which a program can be compiled.

Bytes of memory are what the compiler says is free on a chip for a program. The other figures are
Google Cloud's ("TPU v4", "v5e", "v5p", "v6e": system architecture), the one-way bandwidth of a link
those of "How to Scale Your Model" (Austin et al. 2025), chapter 2, which agree with the documents'
sums over all links.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import re
from collections.abc import Sequence
from typing import Any

import jax

from zoo import process
from zoo.errors import UserError, did_you_mean
from zoo.training.watching import PEAKS

_GIB = 2**30
_PEAKS = dict(PEAKS)


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of chip.

    Attributes:
        name: its name in a topology, such as ``v5e``.
        memory: bytes that a program can have.
        flops: operations a second in bfloat16 at most.
        memory_bandwidth: bytes a second between main memory and the cores.
        link_bandwidth: bytes a second that one link carries in one direction.
        wraps: the length from which an axis of a slice is a ring and not a line.
        shapes: the usual slices; the compiler takes others too.
        options: what the compiler is told besides the shape.
    """

    name: str
    memory: int
    flops: float
    memory_bandwidth: float
    link_bandwidth: float
    wraps: int
    shapes: tuple[str, ...]
    options: tuple[tuple[str, Any], ...] = ()


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SOLID = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16",
    "16x16x16",
)  # fmt: skip

CHIPS = {
    chip.name: chip
    for chip in (
        # Two cores are one device, as for those who rent a v4.
        Chip(
            "v4", int(30.75 * _GIB), _PEAKS["TPU v4"], 1.228e12, 45e9, 4, _SOLID,
            (("chip_config_name", "megacore"),),
        ),
        Chip("v5e", int(15.75 * _GIB), _PEAKS["TPU v5e"], 0.819e12, 45e9, 16, _FLAT),
        Chip("v5p", int(95.73 * _GIB), _PEAKS["TPU v5p"], 2.765e12, 90e9, 4, _SOLID),
        Chip("v6e", int(31.24 * _GIB), _PEAKS["TPU v6"], 1.638e12, 90e9, 16, _FLAT),
    )
}  # fmt: skip
# A plan for virtual devices of this machine tests the planning. Its times are of no real machine.
_CPU = Chip("cpu", 0, 50e9, 10e9, 5e9, 2, ("1", "2", "4", "8", "16"))


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips that are connected.

    Attributes:
        name: such as ``v5e:4x4``.
        chip: the kind of chip.
        shape: the chips along each axis of the torus.
        devices: the devices, for a mesh. Programs can be compiled for those of a TPU, not run.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    devices: Sequence[Any]

    def bandwidth(self, group: Sequence[int]) -> float:
        """Returns the bytes a second at which a chip sends within a group of devices.

        The group uses the axes of the torus along which its chips differ: two links of each axis
        that is a ring, one of a line.

        Args:
            group: numbers of devices, in the order of ``devices``.
        """
        places = [_place(self.devices[number], number) for number in group]
        links = 0
        for axis, size in enumerate(self.shape):
            if len({place[axis] for place in places}) > 1:
                links += 2 if size >= self.chip.wraps and size > 2 else 1
        return self.chip.link_bandwidth * max(1, links)


def find_slice(name: str) -> Slice:
    """Returns a slice by name, such as ``v5e:4x4``; ``cpu:8`` are virtual devices of this machine.

    Raises:
        UserError: the name is unknown, the compiler has no such slice, or libtpu is not installed;
            the message lists the slices that there are.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    chips = {**CHIPS, "cpu": _CPU}
    if found is None or found[1] not in chips:
        kind = name.partition(":")[0]
        raise UserError(
            f"--topology={name!r} is unknown.{did_you_mean(kind, chips)} There are:\n{listing()}"
        )
    chip, shape = chips[found[1]], tuple(int(size) for size in found[2].split("x"))
    if chip is _CPU:
        return _virtual(name, math.prod(shape))
    dimensions = chip.shapes[0].count("x") + 1
    if len(shape) != dimensions:
        raise UserError(
            f"--topology={name!r}: a slice of {chip.name} has {dimensions} dimensions. There are:\n"
            f"{listing()}"
        )
    return Slice(name, chip, shape, _described(name, chip))


def listing() -> str:
    """Returns the usual slices, a line for each kind of chip."""
    lines = [
        f"  {chip.name}: {', '.join(f'{chip.name}:{shape}' for shape in chip.shapes)}"
        for chip in (*CHIPS.values(), _CPU)
    ]
    return "\n".join([*lines, "and other sizes that the compiler takes"])


def has_compiler() -> bool:
    """Returns whether the compiler for TPUs is installed."""
    return importlib.util.find_spec("libtpu") is not None


def _described(name: str, chip: Chip) -> Sequence[Any]:
    if not has_compiler():
        raise UserError(
            f"--topology={name!r} needs the compiler for TPUs: pip install 'jax-model-zoo[plan]'"
        )
    from jax.experimental import topologies

    process.quiet_libtpu()
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **dict(chip.options)
        )
    except jax.errors.JaxRuntimeError as error:
        first = str(error).partition("\n")[0]
        raise UserError(
            f"--topology={name!r}: the compiler has no such slice ({first}). There are:\n"
            f"{listing()}"
        ) from error
    return found.devices


def _virtual(name: str, count: int) -> Slice:
    # This has an effect before JAX starts, and raises an error afterwards.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"--topology={name!r}, but JAX already runs with {len(devices)} virtual devices: set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count} before it starts"
        )
    memory = min(process.memory_bytes(), 2**50)
    chip = dataclasses.replace(_CPU, memory=memory // count)
    return Slice(name, chip, (count,), devices[:count])


def _place(device: Any, number: int) -> tuple[int, ...]:
    """Returns where a device lies in its slice; virtual devices lie on a line."""
    coordinates = getattr(device, "coords", None)
    return (number,) if coordinates is None else tuple(coordinates)
