"""What a run says about its speed, and the profile of some of its steps."""

import dataclasses
import re
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from zoo.training import processes

# Operations a second in bfloat16, for each device as jax counts them: the makers' data sheets,
# without sparsity. A part of a device's kind, as jax names it, is enough.
PEAKS = (
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5p", 459e12),
    ("TPU v5", 459e12),
    ("TPU v6", 918e12),
    ("NVIDIA A100", 312e12),
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H200", 989e12),
)


def peak_flops(device_kind: str) -> float | None:
    """Returns a device's operations a second in bfloat16 at most, or None if it is not known."""
    return next((peak for kind, peak in PEAKS if device_kind.startswith(kind)), None)


@dataclasses.dataclass(frozen=True)
class Speed:
    """Turns the times between two records into what the records say about speed.

    Attributes:
        devices: the number of devices that train.
        tokens: whether the weight of the loss counts tokens.
        flops_per_step: the operations that the model needs for a step. What is computed again to
            save memory is not among them.
        flops_with_remat: the operations of a step with those that are done again.
        peak: the operations a second of one device at most; None if it is not known.
    """

    devices: int = 1
    tokens: bool = False
    flops_per_step: float = 0.0
    flops_with_remat: float = 0.0
    peak: float | None = None

    def record(
        self,
        *,
        steps: int,
        examples: int,
        weight: float,
        seconds: float,
        data_wait: float,
        device_wait: float,
    ) -> dict[str, float]:
        """Returns the fields of a record; in several processes all must call it together.

        Args:
            steps: the number of steps since the last record.
            examples: the number of examples in the global batches of these steps.
            weight: the summed weight of the loss over these steps.
            seconds: the seconds that these steps took.
            data_wait: how many of them this process waited for data.
            device_wait: how many of them it waited for the devices.

        Returns:
            ``examples_per_second``. ``data_wait_seconds`` and ``data_wait_share`` are those of the
            process that waited longest for its data. With several devices also
            ``examples_per_second_per_device``; for language ``tokens_per_second_per_device``; where
            the peak is known ``mfu``, the share of it that the model's operations reach, and
            ``hfu``, the same with those that are done again. In several processes
            ``slowest_process`` is the one whose own work took longest, and
            ``slowest_process_seconds`` how long it took beside waiting for devices.
        """
        busy = np.array([data_wait, seconds - device_wait], np.float32)
        each = processes.of_each(busy)
        data_wait = data_wait if len(each) == 1 else float(each[:, 0].max())
        fields: dict[str, float] = {
            "examples_per_second": examples / seconds,
            "data_wait_seconds": data_wait,
            "data_wait_share": data_wait / seconds,
        }
        if self.devices > 1:
            fields["examples_per_second_per_device"] = examples / seconds / self.devices
        if self.tokens:
            fields["tokens_per_second_per_device"] = weight / seconds / self.devices
        if self.peak and self.flops_per_step:
            possible = seconds * self.devices * self.peak
            fields["mfu"] = steps * self.flops_per_step / possible
            fields["hfu"] = steps * self.flops_with_remat / possible
        if len(each) > 1:
            slowest = int(each[:, 1].argmax())
            fields["slowest_process"] = slowest
            fields["slowest_process_seconds"] = float(each[slowest, 1])
        return fields


# Settings.profile_steps.
STEPS = re.compile(r"(\d+):(\d+)")


class Profile:
    """Writes a profile of some steps, which TensorBoard and xprof open.

    This is a context manager; a profile that is not finished at its end is written as it is.
    """

    def __init__(self, folder: Path, steps: str = "") -> None:
        """Takes where to write, and which steps.

        Args:
            folder: the folder that TensorBoard is given; the profile lies in ``plugins/profile``.
            steps: ``first:end`` as in a slice of Python, counted from 1; empty for no profile.
        """
        found = STEPS.fullmatch(steps)
        self._folder = folder
        self._first, self._end = (int(found[1]), int(found[2])) if found else (0, 0)
        self._writes = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writes:
            self._writes = False
            jax.profiler.stop_trace()

    def before(self, step: int, in_flight: Any) -> None:
        """Is called before the step with this 1-based number is dispatched.

        Args:
            step: the number of the step.
            in_flight: results of the step before, which end before the profile begins or ends.
        """
        if step == self._first and step < self._end:
            jax.block_until_ready(in_flight)
            jax.profiler.start_trace(str(self._folder))
            self._writes = True
        elif step == self._end and self._writes:
            jax.block_until_ready(in_flight)
            self._writes = False
            jax.profiler.stop_trace()
