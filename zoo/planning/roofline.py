"""An estimate of a step's time, from what it computes, moves and sends."""

import dataclasses

from zoo.planning.chips import Slice
from zoo.planning.programs import Collective, Executions


@dataclasses.dataclass(frozen=True)
class Shares:
    """What share of the figures of a chip's maker a real program reaches.

    The defaults are assumed. ``benchmarks/plans.py`` names the published steps to calibrate them.

    Attributes:
        compute: of the operations a second.
        memory: of the bytes a second of main memory.
        links: of the bytes a second of the links.
    """

    compute: float = 0.8
    memory: float = 0.8
    links: float = 0.8


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


def estimate(
    done: Executions, slice_: Slice, shares: Shares | None = None, *, kernel_flops: float = 0.0
) -> Estimate:
    """Returns the time of a step by the roofline of each of its instructions.

    An instruction takes as long as its operations or its traffic, whichever is longer. Copies run
    beside the others, but all traffic together takes at least its bytes. A collective that the
    compiler starts and ends apart hides behind the other instructions, the others add up.

    Args:
        done: what a device does in a step.
        slice_: the chips.
        shares: what share of its maker's figures a chip reaches.
        kernel_flops: operations of kernels on a chip, which their program does not tell.
    """
    shares, chip = shares or Shares(), slice_.chip
    flops = chip.flops * shares.compute
    bandwidth = chip.memory_bandwidth * shares.memory
    busy, hidden, open_ = kernel_flops / flops, 0.0, 0.0
    for step in done.steps:
        if not step.is_copy:
            busy += step.times * max(step.flops / flops, step.bytes / bandwidth)
        for sent in step.collectives:
            took = step.times * _seconds(sent, slice_) / shares.links
            hidden, open_ = (hidden + took, open_) if sent.hidden else (hidden, open_ + took)
    memory = done.bytes / bandwidth
    working = max(busy, memory)
    waiting = open_ + max(0.0, hidden - working)
    compute = (done.flops + kernel_flops) / flops
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
