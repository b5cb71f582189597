"""An estimate of a step's time, from what it computes, moves and sends."""

import dataclasses

from zoo.planning.chips import Chip, Slice
from zoo.planning.programs import Collective, Executions


@dataclasses.dataclass(frozen=True)
class Shares:
    """What share of the figures of a chip's maker a real program reaches.

    The defaults are those with which ``benchmarks/plans.py`` meets published steps best.

    Attributes:
        compute: of the operations a second.
        memory: of the bytes a second of main memory.
        links: of the bytes a second of the links.
        kernels: of the operations a second, in kernels: their products are small, such as those of
            an attention's heads, and other work stands between them.
    """

    compute: float = 0.9
    memory: float = 1.0
    links: float = 0.65
    kernels: float = 0.4


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The time of a step in seconds, and what it would be for each part alone.

    Attributes:
        seconds: the time of a step.
        compute: of its operations.
        memory: of its traffic through main memory.
        links: of what is sent, whether it is hidden or not.
        waiting: of ``links``, what nothing else hides.
    """

    seconds: float
    compute: float
    memory: float
    links: float
    waiting: float


@dataclasses.dataclass(frozen=True)
class Work:
    """What decides the time of a step on one chip, before any share is assumed.

    Attributes:
        products: operations and bytes of each kind of instruction with products, of all its runs.
        moved: bytes that the other instructions move through main memory.
        copied: bytes of copies, which run beside the others.
        kernels: operations of kernels, which their program does not tell.
        hidden: seconds of the collectives that run beside others, at the links' full bandwidth.
        open: seconds of those that run alone.
    """

    products: tuple[tuple[float, float], ...]
    moved: float
    copied: float
    kernels: float
    hidden: float
    open: float


def work_of(done: Executions, slice_: Slice, *, kernel_flops: float = 0.0) -> Work:
    """Adds up what a device does in a step, as far as it can be added without knowing the shares.

    Args:
        done: what a device does in a step.
        slice_: the chips.
        kernel_flops: operations of kernels on a chip, which their program does not tell.
    """
    products: dict[float, tuple[float, float]] = {}
    moved = copied = hidden = open_ = 0.0
    for step in done.steps:
        if step.is_copy:
            copied += step.times * step.bytes
        elif step.flops:
            # What has as many operations for a byte is limited by the same of both.
            kind = step.bytes / step.flops
            flops, size = products.get(kind, (0.0, 0.0))
            products[kind] = flops + step.times * step.flops, size + step.times * step.bytes
        else:
            moved += step.times * step.bytes
        for sent in step.collectives:
            took = step.times * _seconds(sent, slice_)
            hidden, open_ = (hidden + took, open_) if sent.hidden else (hidden, open_ + took)
    return Work(tuple(products.values()), moved, copied, kernel_flops, hidden, open_)


def estimate(work: Work, chip: Chip, shares: Shares | None = None) -> Estimate:
    """Returns the time of a step by the roofline of each of its instructions.

    An instruction takes as long as its operations or its traffic, whichever is longer. Copies run
    beside the others, but all traffic together takes at least its bytes. A collective that the
    compiler starts and ends apart hides behind the other instructions, the others add up.

    Args:
        work: what a chip does in a step.
        chip: its kind.
        shares: what share of its maker's figures a chip reaches.
    """
    shares = shares or Shares()
    flops = chip.flops * shares.compute
    bandwidth = chip.memory_bandwidth * shares.memory
    products = sum(max(count / flops, size / bandwidth) for count, size in work.products)
    kernels = work.kernels / (chip.flops * shares.kernels)
    busy = kernels + products + work.moved / bandwidth
    memory = (sum(size for _, size in work.products) + work.moved + work.copied) / bandwidth
    compute = sum(count for count, _ in work.products) / flops + kernels
    working = max(busy, memory)
    hidden, open_ = work.hidden / shares.links, work.open / shares.links
    waiting = open_ + max(0.0, hidden - working)
    return Estimate(working + waiting, compute, memory, hidden + open_, waiting)


def _seconds(sent: Collective, slice_: Slice) -> float:
    """Returns the time of a collective over rings at full bandwidth.

    With ``n`` devices each sends ``(n - 1) / n`` of the array, for an all-reduce twice.
    """
    count = len(sent.group)
    share = {
        "all-reduce": 2 * (count - 1) / count,
        "collective-permute": 1.0,
    }.get(sent.kind, (count - 1) / count)
    return sent.bytes * share / slice_.bandwidth(sent.group)
