"""Reads a compiled program: what it computes, moves and sends, times how often each part runs.

XLA's own cost analysis counts the body of a loop once. Here each instruction is counted as often as
it runs, which the loop's counter tells.
"""

import contextlib
import dataclasses
import math
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

# Bits of a number by its type; a token and an opaque value have none.
_BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16,
    "s32": 32, "u32": 32, "s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64,
    "c64": 64, "c128": 128, "token": 0, "opaque": 0,
}  # fmt: skip
# What a TPU's program calls where it runs a Pallas kernel.
_KERNEL = "tpu_custom_call"
# They compute and move nothing, or only complete what was started before.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "opt-barrier", "iota", "add-dependency", "domain", "get-dimension-size",
}  # fmt: skip
# They move while other instructions run.
_COPIES = (
    "copy-start", "slice-start", "async-start", "dynamic-slice-start", "dynamic-update-slice-start",
)  # fmt: skip
# A product of float32 numbers on a unit for bfloat16 takes so many passes.
_PASSES = {"highest": 6, "high": 3, "default": 1}


@dataclasses.dataclass(frozen=True)
class Array:
    """An array in a program.

    Attributes:
        dtype: XLA's name of the type, such as ``bf16``.
        shape: the shape on one device.
        is_in_main_memory: whether it lies in the device's main memory, and not in a core's own.
    """

    dtype: str
    shape: tuple[int, ...]
    is_in_main_memory: bool = True

    @property
    def bytes(self) -> int:
        """The bytes of the array, without what a layout adds."""
        bits = _BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else 4)
        return math.ceil(math.prod(self.shape) * bits / 8)

    @property
    def moved(self) -> int:
        """The bytes that reading or writing it moves through main memory."""
        return self.bytes if self.is_in_main_memory else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
        name: its name within the computation.
        opcode: what it does.
        outputs: the arrays that it makes.
        operands: the names of its operands; the literal of a constant or the number of a parameter.
        attributes: the rest of the line.
    """

    name: str
    opcode: str
    outputs: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str

    def called(self, attribute: str) -> str:
        """Returns the name of the computation that an attribute gives; empty without it."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of a program.

    Attributes:
        instructions: its lines by name, in order.
        root: the name of the line whose value it returns.
    """

    instructions: Mapping[str, Instruction]
    root: str

    def arrays(self, name: str) -> tuple[Array, ...]:
        """Returns what an instruction makes; nothing for a name that is not one."""
        return self.instructions[name].outputs if name in self.instructions else ()


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        computations: the functions by name.
        entry: the name of the first.
    """

    computations: Mapping[str, Computation]
    entry: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """What devices send to each other.

    Attributes:
        kind: one of ``KINDS``.
        bytes: of the whole array of the group, on each device: the result of an all-gather, the
            operand of the others.
        group: numbers of the devices of the first group.
        hidden: whether other instructions run meanwhile.
    """

    kind: str
    bytes: int
    group: tuple[int, ...]
    hidden: bool


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction on one device.

    Attributes:
        name: its name.
        times: how often it runs.
        flops: operations of its products and convolutions at one run, two for each multiply-add,
            times the passes that their precision takes.
        bytes: moved through main memory at one run.
        is_copy: whether it only moves, while other instructions run.
        collectives: what it sends.
    """

    name: str
    times: int
    flops: float = 0.0
    bytes: int = 0
    is_copy: bool = False
    collectives: tuple[Collective, ...] = ()


@dataclasses.dataclass(frozen=True)
class Executions:
    """All that a program does on one device.

    Attributes:
        steps: its instructions.
        unknown_loops: the loops that count once, because nothing says how often they run.
        has_kernels: whether it calls kernels that do not say what they compute.
    """

    steps: tuple[Executed, ...]
    unknown_loops: int
    has_kernels: bool = False

    @property
    def flops(self) -> float:
        """All operations."""
        return sum(step.times * step.flops for step in self.steps)

    @property
    def bytes(self) -> int:
        """All bytes moved through main memory."""
        return sum(step.times * step.bytes for step in self.steps)

    def collective_bytes(self) -> dict[str, int]:
        """Returns the bytes of each kind of collective that occurs, times how often it runs."""
        found = dict.fromkeys(KINDS, 0)
        for step in self.steps:
            for sent in step.collectives:
                found[sent.kind] += step.times * sent.bytes
        return {kind: count for kind, count in found.items() if count}


@contextlib.contextmanager
def written_by_compiler(platform: str) -> Iterator[tuple[dict[str, Any], Callable[[Any], str]]]:
    """Gives options for a compilation, and the function that returns the program's text after it.

    The compiler for TPUs writes the text to a file, since what it returns may be newer than what
    jaxlib can read (``Compiled.as_text`` then fails).
    """
    if platform != "tpu":
        yield {}, lambda compiled: compiled.as_text()
        return
    with tempfile.TemporaryDirectory(prefix="zoo-plan-") as folder:

        def text(compiled: Any) -> str:
            files = [*Path(folder).glob("*.after_codegen.txt")]
            largest = max(files, key=lambda file: file.stat().st_size)
            return largest.read_text(encoding="utf-8")

        yield {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}, text


def scheduled(compile_: Callable[[], Any], options: Mapping[str, Any]) -> tuple[str, int]:
    """Returns a program's text and bytes of main memory, without waiting for its machine code.

    The compiler for TPUs writes both once it has chosen the order of the instructions and their
    places in memory. To generate the code then takes nine tenths of its time and changes neither.
    It goes on in a thread that nothing can stop: this is for a process that ends soon.

    Args:
        compile_: compiles, with ``options``.
        options: what ``written_by_compiler`` gave.
    """
    folder, failed = Path(options["xla_dump_to"]), []

    def run() -> None:
        try:
            compile_()
        except Exception as error:  # noqa: BLE001 - it is raised again below
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    last, size = "*.after_optimizations_after_buffer_assignment.txt", 0
    # The last of the files of the schedule, once it grows no more.
    while not (size and size == sum(file.stat().st_size for file in folder.glob(last))):
        size = sum(file.stat().st_size for file in folder.glob(last))
        if failed:
            raise failed[0]
        thread.join(1)
    file = next(folder.glob(last))
    name = file.name.replace("_after_buffer_assignment.txt", "-memory-usage-report.txt")
    report = file.with_name(name).read_text(encoding="utf-8")
    found = re.search(r"Memory Space: default .*\nTotal bytes: (\d+)", report)
    if found is None:
        raise ValueError(f"the compiler's report on memory has changed: {report[:200]}")
    return file.read_text(encoding="utf-8"), int(found[1])


def parse(text: str) -> Program:
    """Reads the text of a compiled program, as ``written_by_compiler`` gives it."""
    computations: dict[str, Computation] = {}
    entry, name, root = "", "", ""
    lines: dict[str, Instruction] = {}
    # What a kernel tells of itself has lines of its own.
    text = re.sub(r"kernel_metadata=\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}", "", text)
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line)
        if head:
            name, lines, root = head[2], {}, ""
            entry = name if head[1] else entry
        elif line.startswith("}") and name:
            computations[name] = Computation(lines, root)
            name = ""
        elif name and (found := _instruction(line)):
            lines[found.name] = found
            root = found.name if line.lstrip().startswith("ROOT ") else root
    return Program(computations, entry)


def argument_bytes(program: Program) -> int:
    """Returns the bytes of a program's arguments on one device."""
    lines = program.computations[program.entry].instructions.values()
    return sum(a.bytes for line in lines if line.opcode == "parameter" for a in line.outputs)


def executions(program: Program, devices: int) -> Executions:
    """Returns what a program does on one device, each instruction as often as it runs.

    Args:
        program: what ``parse`` returned.
        devices: the number of devices that it was compiled for.
    """
    reader = _Reader(program, devices)
    steps = tuple(reader.steps(program.entry, 1))
    silent = any(
        line.opcode == "custom-call" and _KERNEL in line.attributes and not _told(line)
        for computation in program.computations.values()
        for line in computation.instructions.values()
    )
    return Executions(steps, reader.unknown_loops, silent)


class _Reader:
    """Walks through a program."""

    def __init__(self, program: Program, devices: int) -> None:
        self.program, self.devices, self.unknown_loops = program, devices, 0

    def steps(self, name: str, times: int) -> Iterator[Executed]:
        computation = self.program.computations[name]
        sent: set[str] = set()
        for line in computation.instructions.values():
            if line.opcode == "while":
                yield from self.steps(line.called("body"), times * self._trips(computation, line))
            elif line.opcode == "conditional":
                yield from self._largest(line, times)
            elif line.opcode == "call":
                yield from self.steps(line.called("to_apply"), times)
            elif line.opcode not in _FREE and not line.opcode.endswith(("-done", "-update")):
                yield self._executed(computation, line, times, sent)

    def _largest(self, line: Instruction, times: int) -> Iterator[Executed]:
        named = re.search(r"branch_computations=\{([^}]*)\}", line.attributes)
        names = named[1].split(",") if named else []
        names += [line.called("true_computation"), line.called("false_computation")]
        branches = [
            list(self.steps(name.strip().removeprefix("%"), times)) for name in names if name
        ]
        yield from max(branches, key=lambda steps: sum(s.flops + s.bytes for s in steps))

    def _trips(self, computation: Computation, line: Instruction) -> int:
        known = re.search(r"known_trip_count\W+n\W+(\d+)", line.attributes)
        trips = int(known[1]) if known else trip_count(self.program, computation, line)
        self.unknown_loops += trips is None
        return 1 if trips is None else trips

    def _executed(
        self, computation: Computation, line: Instruction, times: int, sent: set[str]
    ) -> Executed:
        inner = self.program.computations.get(line.called("calls"))
        if inner is None:
            collectives = self._collectives({line.name: line}, computation, line, sent)
            flops = operations(computation, line)
            moved = _moved(computation, line)
        else:
            collectives = self._collectives(inner.instructions, inner, line, sent)
            flops = self._operations_in(inner)
            moved = _moved_by_fusion(self.program, computation, line, inner)
        is_copy = line.opcode in _COPIES and not flops
        return Executed(line.name, times, flops, moved, is_copy, tuple(collectives))

    def _operations_in(self, computation: Computation) -> float:
        total = 0.0
        for line in computation.instructions.values():
            inner = self.program.computations.get(line.called("calls"))
            total += self._operations_in(inner) if inner else operations(computation, line)
        return total

    def _collectives(
        self,
        lines: Mapping[str, Instruction],
        computation: Computation,
        caller: Instruction,
        sent: set[str],
    ) -> Iterator[Collective]:
        for line in lines.values():
            kind = line.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            # A collective that is spread over several instructions has one channel.
            channel = re.search(r"channel_id=(\d+)", line.attributes)
            if channel and channel[1] in sent:
                continue
            sent.update([channel[1]] if channel else [])
            group = first_group(line.attributes, self.devices)
            if len(group) < 2:
                continue
            whole = sum(a.bytes for name in line.operands for a in computation.arrays(name))
            if kind == "all-gather":
                whole *= len(group)
            scattered = kind == "all-reduce" and "reduce-scatter" in caller.called("calls")
            hidden = line.opcode.endswith("-start") or any(
                "AsyncCollective" in other.attributes for other in lines.values()
            )
            yield Collective("reduce-scatter" if scattered else kind, whole, group, hidden)


def trip_count(program: Program, computation: Computation, line: Instruction) -> int | None:
    """Returns how often the body of a ``while`` runs, or None if its counter is not understood.

    Understood is a counter that begins with a constant, grows by a constant, and is compared with
    a constant, as those of ``jax.lax.scan`` and ``fori_loop``.
    """
    condition = program.computations[line.called("condition")]
    body = program.computations[line.called("body")]
    test, names = _through_fusion(program, condition, condition.instructions[condition.root])
    if test.opcode != "compare" or len(names) != 2:
        return None
    begins = computation.instructions.get(line.operands[0])
    sides = [_loop_value(computation, begins, condition, name) for name in names]
    (index, begin), (_, bound) = sides
    direction = re.search(r"direction=(\w+)", test.attributes)
    if begin is None or bound is None or index is None or direction is None:
        return None
    step = _increment(program, body, index)
    more = {"LT": 0, "LE": 1, "NE": 0}.get(direction[1])
    return None if more is None or step < 1 else max(0, math.ceil((bound + more - begin) / step))


def _through_fusion(
    program: Program, computation: Computation, line: Instruction
) -> tuple[Instruction, list[str]]:
    """Returns the root of a fusion, or the line itself, and its operands in the caller's names."""
    inner = program.computations.get(line.called("calls"))
    if inner is None:
        return line, list(line.operands)
    root = inner.instructions[inner.root]
    names = []
    for name in root.operands:
        operand = inner.instructions[name]
        if operand.opcode == "parameter":
            names.append(line.operands[int(operand.operands[0])])
        elif operand.opcode == "constant":
            # A constant inside the fusion: found by its own literal.
            names.append(operand.operands[0])
    return root, names


def _loop_value(
    computation: Computation, begins: Instruction | None, condition: Computation, name: str
) -> tuple[int | None, int | None]:
    """Returns the index in the loop's state of what is compared, if any, and its first value."""
    if re.fullmatch(r"-?\d+", name):
        return None, int(name)
    line = condition.instructions[name]
    while line.opcode in ("copy", "bitcast", "convert"):
        line = condition.instructions[line.operands[0]]
    if line.opcode == "constant":
        return None, _literal(line)
    index = re.search(r"index=(\d+)", line.attributes)
    if line.opcode != "get-tuple-element" or index is None:
        return None, None
    number = int(index[1])
    if begins is None or begins.opcode != "tuple":
        return number, None
    first = computation.instructions[begins.operands[number]]
    while first.opcode in ("copy", "bitcast", "convert") and first.operands:
        first = computation.instructions[first.operands[0]]
    return number, _literal(first) if first.opcode == "constant" else None


def _literal(line: Instruction) -> int | None:
    return int(line.operands[0]) if re.fullmatch(r"-?\d+", line.operands[0]) else None


def _increment(program: Program, body: Computation, index: int) -> int:
    """Returns by how much the counter grows; 1 where the body does not show it."""
    root = body.instructions[body.root]
    if root.opcode != "tuple":
        return 1
    line = body.instructions[root.operands[index]]
    while line.opcode in ("copy", "bitcast"):
        line = body.instructions[line.operands[0]]
    inner = program.computations.get(line.called("calls"))
    where = inner or body
    added = inner.instructions[inner.root] if inner else line
    for name in added.operands if added.opcode == "add" else ():
        operand = where.instructions.get(name)
        if operand is None or operand.opcode not in ("constant", "parameter"):
            continue
        if operand.opcode == "parameter" and inner:
            operand = body.instructions[line.operands[int(operand.operands[0])]]
        if operand.opcode == "constant" and (value := _literal(operand)) is not None:
            return value
    return 1


def operations(computation: Computation, line: Instruction) -> float:
    """Returns the operations of a product, a convolution or a kernel that says its own.

    A convolution counts the positions of its window that meet the input. A product of float32
    counts as often as its precision needs passes.
    """
    if line.opcode == "custom-call":
        return _told(line)
    if line.opcode == "dot":
        left = computation.arrays(line.operands[0])[0].shape
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.attributes)
        contracted = [int(axis) for axis in axes[1].split(",") if axis] if axes else []
        size = float(math.prod(line.outputs[0].shape))
        size *= math.prod(left[axis] for axis in contracted)
    elif line.opcode == "convolution":
        size = _window_products(computation, line)
    else:
        return 0.0
    kinds = [computation.arrays(name)[0].dtype for name in line.operands[:2]]
    named = re.search(r"operand_precision=\{(\w+)", line.attributes)
    passes = _PASSES.get(named[1], 1) if named and "f32" in kinds else 1
    return 2.0 * size * passes


def _told(kernel: Instruction) -> float:
    """Returns the operations that a kernel says it does; 0 if it says nothing."""
    told = re.search(r"cost_estimate\W+flops\W+(\d+)", kernel.attributes)
    return float(told[1]) if told else 0.0


def _window_products(computation: Computation, line: Instruction) -> float:
    image, kernel = (computation.arrays(name)[0].shape for name in line.operands[:2])
    output = line.outputs[0].shape
    named = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.attributes)
    if named is None:
        return 0.0
    left, right, out = named.groups()
    size = float(kernel[right.index("i")])
    size *= output[out.index("b")] * output[out.index("f")]
    window = re.search(r"window=\{([^}]*)\}", line.attributes)
    options = dict(item.split("=") for item in window[1].split()) if window else {}
    spatial = sorted(label for label in out if label.isdigit())
    for number, label in enumerate(spatial):

        def option(name: str, default: str, number: int = number) -> str:
            return options[name].split("x")[number] if name in options else default

        width = int(option("size", "1"))
        low = int(option("pad", "0_0").split("_")[0])
        places = np.arange(output[out.index(label)])[:, None] * int(option("stride", "1"))
        places = places + np.arange(width) * int(option("rhs_dilate", "1")) - low
        dilated = int(option("lhs_dilate", "1"))
        inside = (places >= 0) & (places <= (image[left.index(label)] - 1) * dilated)
        size *= int((inside & (places % dilated == 0)).sum())
    return size


def _moved(computation: Computation, line: Instruction) -> int:
    """Returns the bytes that an instruction by itself moves through main memory."""
    read = [array for name in line.operands for array in computation.arrays(name)]
    made = sum(array.moved for array in line.outputs)
    if line.opcode in ("dynamic-slice", "slice", "gather"):
        taken = sum(array.moved for array in read)
        return made + (min(made, taken) if made else taken)
    if line.opcode == "dynamic-update-slice":
        return 2 * sum(a.moved for a in computation.arrays(line.operands[1]))
    if line.opcode == "scatter":
        return 2 * sum(a.moved for name in line.operands[2:] for a in computation.arrays(name))
    if line.opcode == "broadcast":
        return made
    if line.opcode in _COPIES:
        # The result holds what is given, what is made and flags; the smallest array is what moves.
        whole = [array for array in line.outputs if array.shape]
        target = min(whole, key=lambda array: array.bytes, default=None)
        places = [array.is_in_main_memory for array in whole]
        return min(2, sum(places)) * target.bytes if target else 0
    return made + sum(array.moved for array in read)


def _moved_by_fusion(
    program: Program, computation: Computation, line: Instruction, inner: Computation
) -> int:
    """Returns the bytes that a fusion moves: of what it slices, only the slice."""
    total = 0
    for inside in inner.instructions.values():
        if inside.opcode != "parameter":
            continue
        number = int(inside.operands[0])
        # A part of an asynchronous operation has its operands in the state that it is passed.
        given = line.operands[number] if number < len(line.operands) else ""
        outer = computation.arrays(given) or inside.outputs
        whole = sum(array.moved for array in outer)
        part = _part_of_parameter(program, inner, inside.name)
        total += whole if part is None else min(whole, part)
    root = inner.instructions[inner.root]
    results = [inner.instructions[name] for name in root.operands] if root.opcode == "tuple" else []
    for result, array in zip(results or [root], line.outputs, strict=False):
        while result.opcode in ("bitcast", "copy") and result.operands[0] in inner.instructions:
            result = inner.instructions[result.operands[0]]
        if result.opcode == "dynamic-update-slice":
            written = sum(a.bytes for a in inner.arrays(result.operands[1]))
            total += min(array.moved, written)
        else:
            total += array.moved
    return total


def _part_of_parameter(program: Program, inner: Computation, name: str) -> int | None:
    """Returns the bytes that a fusion reads of a parameter, or None if it reads all of it."""
    users: dict[str, list[Instruction]] = {}
    for inside in inner.instructions.values():
        for operand in dict.fromkeys(inside.operands):
            users.setdefault(operand, []).append(inside)
    total = 0
    for user in _real_users(users, name):
        within = program.computations.get(user.called("calls"))
        # A parameter that goes through a bitcast first keeps that name no longer.
        if within is not None and name in user.operands:
            parts = [
                _part_of_parameter(program, within, own.name)
                for own in within.instructions.values()
                if own.opcode == "parameter" and user.operands[int(own.operands[0])] == name
            ]
            part = None if None in parts else sum(part for part in parts if part is not None)
        else:
            part = _part(inner, user, name)
        if part is None:
            return None
        total += part
    return total


def _real_users(users: Mapping[str, Sequence[Instruction]], name: str) -> Iterator[Instruction]:
    for user in users.get(name, ()):
        if user.opcode == "bitcast":
            yield from _real_users(users, user.name)
        else:
            yield user


def _part(inner: Computation, user: Instruction, name: str) -> int | None:
    """Returns the bytes that an instruction reads of an array, or None if it reads all of it."""
    if user.opcode in ("dynamic-slice", "slice", "gather"):
        return sum(array.bytes for array in user.outputs)
    first = inner.instructions.get(user.operands[0]) if user.operands else None
    while first is not None and first.opcode == "bitcast" and first.name != name:
        first = inner.instructions.get(first.operands[0])
    if user.opcode == "dynamic-update-slice" and first is not None and first.name == name:
        return 0
    return None


def first_group(attributes: str, devices: int) -> tuple[int, ...]:
    """Returns the devices of a collective's first group, in any of XLA's notations.

    These are lists (``{{0,1},{2,3}}``), a reshaped count (``[2,2]<=[4]T(1,0)``), and named axes
    (``mesh['x'=2,'y'=2] {'y'}``). Without groups it is all devices.
    """
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return int(pairs[1]), int(pairs[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(int(number) for number in listed[1].split(","))
    counted = re.search(
        r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    )
    if counted:
        shape = [int(size) for size in counted[3].split(",")]
        numbers = np.arange(math.prod(shape)).reshape(shape)
        if counted[4]:
            numbers = numbers.transpose([int(axis) for axis in counted[4].split(",")])
        return tuple(numbers.reshape(int(counted[1]), int(counted[2]))[0].tolist())
    named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes)
    if named:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        taken = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named[2])
        return _axis_group(sizes, taken)
    return tuple(range(devices))


def _axis_group(sizes: Mapping[str, int], taken: Sequence[tuple[str, str, str]]) -> tuple[int, ...]:
    """Returns the first group along named axes, or along parts ``name:(before)size`` of them."""
    strides = dict(zip(sizes, np.cumprod([1, *reversed([*sizes.values()])])[-2::-1], strict=True))
    group = np.zeros(1, int)
    for name, before, part in taken:
        size, stride = sizes[name], int(strides[name])
        if part:
            stride *= size // (int(before) * int(part))
            size = int(part)
        group = (group[:, None] + stride * np.arange(size)).reshape(-1)
    return tuple(int(number) for number in group)


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if head is None:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shapes, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    given = re.sub(r"/\*.*?\*/", "", rest[len(opcode) + 1 : close])
    if opcode in ("constant", "parameter"):
        operands: tuple[str, ...] = (given.strip(),)
    else:
        # Some versions write the type of an operand before its name.
        operands = tuple(re.findall(r"%([\w.\-]+)", given)) or tuple(
            re.findall(r"(?:^|[ ,])([A-Za-z_][\w.\-]*)(?=,|$)", given)
        )
    return Instruction(head[1], opcode, tuple(_arrays(shapes)), operands, rest[close + 1 :])


def _closing(text: str, begin: int) -> int:
    """Returns where the parenthesis at ``begin`` closes."""
    depth = 0
    for found in re.finditer(r"[()]", text[begin:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return begin + found.start()
    return len(text)


def _arrays(shapes: str) -> Iterator[Array]:
    for dtype, sizes, layout in re.findall(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?", shapes):
        shape = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
        yield Array(dtype, shape, re.search(r"S\([1-9]\d*\)", layout) is None)
