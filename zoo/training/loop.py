"""The training loop: steps, logging, evaluation, checkpoints, and how they resume."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from zoo.errors import Stopped, UserError
from zoo.training.checkpoints import Checkpoints
from zoo.training.partitioning import abstract, compile_step, put_batch, put_replicated, replicated
from zoo.training.state import TrainState
from zoo.training.step import Batch, Sums, add_sums
from zoo.training.stopping import StopSignal

HostBatch = dict[str, np.ndarray]
Means = dict[str, float]


class NonFiniteLoss(UserError):
    """The loss or its gradient was not a finite number; the last good state has been saved."""


class Writer(Protocol):
    """Where records go: files, TensorBoard, the terminal."""

    def step(self, step: int) -> None:
        """Learns that a step was dispatched; for a progress bar."""

    def write(self, record: dict[str, Any]) -> None:
        """Takes one record: ``split``, ``step``, ``epoch`` and numbers."""

    def flush(self) -> None:
        """Returns when every record is safe on disk."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long a run is, and what happens when.

    Attributes:
        steps: number of updates in all.
        examples: number of examples in an epoch.
        batch_size: rows of the global batch; the last one of an epoch may count fewer.
        log_every: steps between two records.
        eval_every: steps between two evaluations.
        save_every: steps between two checkpoints.
        best_metric: metric of the evaluation that chooses the best state.
    """

    steps: int
    examples: int
    batch_size: int
    log_every: int
    eval_every: int
    save_every: int
    best_metric: str

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the partial one included."""
        return math.ceil(self.examples / self.batch_size)

    def epoch(self, step: int) -> int:
        """The 1-based epoch to which the step with this 1-based number belongs."""
        return max(step - 1, 0) // self.steps_per_epoch + 1

    def examples_seen(self, step: int) -> int:
        """Examples in the first ``step`` batches."""
        epochs, batches = divmod(step, self.steps_per_epoch)
        return epochs * self.examples + min(batches * self.batch_size, self.examples)


@dataclasses.dataclass
class Progress:
    """What a checkpoint says besides arrays, so that the continued run writes the same records.

    Attributes:
        evaluated_step: step of the last finished evaluation.
        best: value of the best evaluation so far.
        best_step: its step.
        last_epoch: means over the last finished epoch.
        train_seconds: seconds spent in steps, over all processes that took part in the run.
        epoch_seconds: the same, of the running epoch.
        compile_seconds: seconds spent compiling, over all processes.
    """

    evaluated_step: int = 0
    best: float | None = None
    best_step: int = 0
    last_epoch: Means = dataclasses.field(default_factory=dict)
    train_seconds: float = 0.0
    epoch_seconds: float = 0.0
    compile_seconds: float = 0.0


@dataclasses.dataclass
class Training:
    """The arrays and counters of a run; the loop replaces them as it goes.

    Attributes:
        state: the train state.
        window: sums since the last record.
        epoch: sums since the epoch began.
        progress: what else a checkpoint says.
    """

    state: TrainState
    window: Sums
    epoch: Sums
    progress: Progress

    @property
    def step(self) -> int:
        """Number of updates in ``state``."""
        return int(jax.device_get(self.state.step))

    @property
    def arrays(self) -> dict[str, Any]:
        """What a checkpoint holds as arrays."""
        return {"state": self.state, "window": self.window, "epoch": self.epoch}


def abstract_arrays(
    state: Any,
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Sums]],
    batch: Any,
    mesh: Mesh,
) -> dict[str, Any]:
    """Returns the shapes, types and shardings of ``Training.arrays``, to restore into.

    Args:
        state: a train state or its shapes.
        train_step: what ``make_train_step`` returned; only its shapes are taken.
        batch: shapes of the global batch.
        mesh: the devices of *this* process, not those of the one that saved.
    """
    _, sums = jax.eval_shape(train_step, state, batch)
    return abstract({"state": state, "window": sums, "epoch": sums}, replicated(mesh))


def begin_or_resume(
    state: TrainState,
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Sums]],
    batch: Any,
    checkpoints: Checkpoints,
    mesh: Mesh,
) -> Training:
    """Returns the run as it stood at its newest checkpoint, or at step 0 with ``state``."""
    like = abstract_arrays(state, train_step, batch, mesh)
    restored = checkpoints.restore(like)
    if restored is not None:
        arrays, progress = restored
        # Only good states are saved, one that stopped at a bad step too: it may try again.
        healthy = put_replicated(np.bool_(True), mesh)
        arrays["state"] = dataclasses.replace(arrays["state"], healthy=healthy)
        return Training(**arrays, progress=Progress(**progress))
    window, epoch = (put_replicated(_zeros(like["window"]), mesh) for _ in range(2))
    return Training(put_replicated(state, mesh), window, epoch, Progress())


def compile_train_step(
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Sums]],
    training: Training,
    batch: Any,
    mesh: Mesh,
) -> Callable[[Any, Any], tuple[Any, Sums]]:
    """Compiles the step together with the adding-up of its metrics, the old state's memory reused.

    The compiled function takes ``(training.arrays, batch)`` and returns the new arrays and the
    step's own sums. Its seconds are added to ``training.progress``.
    """

    def step(arrays: dict[str, Any], batch: Batch) -> tuple[dict[str, Any], Sums]:
        state, sums = train_step(arrays["state"], batch)
        added = {name: add_sums(arrays[name], sums) for name in ("window", "epoch")}
        return {"state": state, **added}, sums

    compiled, seconds = compile_step(step, training.arrays, batch, mesh, donate=True)
    training.progress.compile_seconds += seconds
    return compiled


def fit(
    training: Training,
    compiled_step: Callable[[Any, Any], tuple[Any, Sums]],
    batches: Iterator[HostBatch],
    schedule: Schedule,
    *,
    mesh: Mesh,
    learning_rate: Callable[[int], float],
    evaluate: Callable[[TrainState], Means] | None,
    checkpoints: Checkpoints,
    writer: Writer,
    stop: StopSignal,
) -> None:
    """Trains until ``schedule.steps``, changing ``training`` as it goes.

    The order at a step is fixed: record, evaluation, checkpoint. So whatever a step owes to the
    files is there before its checkpoint is, and a run continued from the checkpoint writes the
    rest exactly once.

    Args:
        training: what ``begin_or_resume`` returned.
        compiled_step: what ``compile_train_step`` returned.
        batches: this process's rows of the global batches, from ``training.state.step`` on.
        schedule: lengths and intervals.
        mesh: the devices.
        learning_rate: learning rate by 0-based step, for the records.
        evaluate: means over the validation split, or None where there is none.
        checkpoints: where to save.
        writer: where records go.
        stop: asked between two steps; ``evaluate`` may raise its ``Stopped`` too.

    Raises:
        Stopped: a signal arrived; the state has been saved.
        NonFiniteLoss: the loss or its gradient was not finite; the last good state has been saved.
    """
    progress = training.progress
    step = training.step
    no_sums = _zeros(training.window)
    clock = _Clock(progress, step)
    in_flight: Sums | None = None

    with _saved_when_stopped(training, checkpoints, writer), jax.transfer_guard("disallow"):
        while True:
            last = step == schedule.steps
            if (
                evaluate
                and step > progress.evaluated_step
                and (last or step % schedule.eval_every == 0)
            ):
                _check_health(training, step)
                clock.lap()
                _evaluate(training, step, schedule, evaluate, checkpoints, writer)
                clock.restart()
            if step != checkpoints.latest_step() and (last or step % schedule.save_every == 0):
                _check_health(training, step)
                clock.lap()
                _save(training, checkpoints, writer)
                clock.restart()
            stop.check()
            if last:
                return

            waiting = time.perf_counter()
            batch = next(batches)
            clock.data_wait += time.perf_counter() - waiting
            arrays, sums = compiled_step(training.arrays, put_batch(batch, mesh))
            training.state, training.window, training.epoch = (
                arrays["state"], arrays["window"], arrays["epoch"],
            )  # fmt: skip
            step += 1
            # One step computes while the next batch is made and put: two in flight, not more.
            jax.block_until_ready(in_flight)
            in_flight = sums
            writer.step(step)

            record = {"step": step, "epoch": schedule.epoch(step)}
            if step % schedule.log_every == 0:
                _check_health(training, step)
                means = _means(training.window)
                training.window = put_replicated(no_sums, mesh)
                seen = schedule.examples_seen(step) - schedule.examples_seen(clock.first_step)
                with jax.transfer_guard("allow"):
                    rate = learning_rate(step - 1)
                seconds, data_wait = clock.window(step)
                speed = {
                    "examples_per_second": seen / seconds,
                    "data_wait_seconds": data_wait,
                    "data_wait_share": data_wait / seconds,
                }
                writer.write({"split": "train", **record, **means, "learning_rate": rate, **speed})
            if step % schedule.steps_per_epoch == 0:
                _check_health(training, step)
                progress.last_epoch = _means(training.epoch)
                training.epoch = put_replicated(no_sums, mesh)
                clock.lap()
                seconds, progress.epoch_seconds = progress.epoch_seconds, 0.0
                writer.write(
                    {"split": "train_epoch", **record, **progress.last_epoch, "seconds": seconds}
                )


@contextlib.contextmanager
def _saved_when_stopped(
    training: Training, checkpoints: Checkpoints, writer: Writer
) -> Iterator[None]:
    try:
        yield
    except (Stopped, NonFiniteLoss):
        _save(training, checkpoints, writer)
        raise
    finally:
        checkpoints.wait()


class _Clock:
    """Counts the seconds spent training; evaluation and saving are left out."""

    def __init__(self, progress: Progress, step: int) -> None:
        self._progress = progress
        self._mark = time.perf_counter()
        self._seconds = 0.0
        self.data_wait = 0.0
        self.first_step = step

    def lap(self) -> None:
        """Counts the time since the last call."""
        now = time.perf_counter()
        for_run = now - self._mark
        self._progress.train_seconds += for_run
        self._progress.epoch_seconds += for_run
        self._seconds += for_run
        self._mark = now

    def restart(self) -> None:
        """Leaves out the time since the last call."""
        self._mark = time.perf_counter()

    def window(self, step: int) -> tuple[float, float]:
        """Ends a window of records: its seconds, and those of them spent waiting for data."""
        self.lap()
        ended = self._seconds, self.data_wait
        self._seconds, self.data_wait, self.first_step = 0.0, 0.0, step
        return ended


def _evaluate(
    training: Training,
    step: int,
    schedule: Schedule,
    evaluate: Callable[[TrainState], Means],
    checkpoints: Checkpoints,
    writer: Writer,
) -> None:
    progress = training.progress
    begin = time.perf_counter()
    means = evaluate(training.state)
    seconds = time.perf_counter() - begin
    record = {"split": "validation", "step": step, "epoch": schedule.epoch(step)}
    writer.write({**record, **means, "seconds": seconds})
    progress.evaluated_step = step
    value = means[schedule.best_metric]
    sign = -1 if schedule.best_metric == "loss" else 1
    if progress.best is None or sign * value > sign * progress.best:
        progress.best, progress.best_step = value, step
        writer.flush()
        checkpoints.save_best(step, training.arrays, dataclasses.asdict(progress))


def _save(training: Training, checkpoints: Checkpoints, writer: Writer) -> None:
    writer.flush()
    checkpoints.save(training.step, training.arrays, dataclasses.asdict(training.progress))


def epoch_means(training: Training) -> Means:
    """Means over the running epoch, or over the last one where a new one has not begun."""
    return _means(training.epoch) or training.progress.last_epoch


def _zeros(sums: Any) -> Any:
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), sums)


def _means(sums: Sums) -> Means:
    """Fetches sums and divides; what has no weight is left out."""
    host = jax.device_get(sums)
    return {name: float(total / weight) for name, (total, weight) in host.items() if weight}


def _check_health(training: Training, step: int) -> None:
    if not jax.device_get(training.state.healthy):
        good = training.step
        raise NonFiniteLoss(
            f"the loss or its gradient was not finite at step {good + 1} (found at step {step}); "
            f"the state after step {good} is saved. Lower optimizer.learning_rate, set "
            "optimizer.clip_norm, or look for bad values in the data"
        )
