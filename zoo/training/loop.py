"""The training loop: steps, logging, evaluation, checkpoints and resumption."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np

from zoo.errors import Stopped, UserError
from zoo.training import lora
from zoo.training.checkpoints import Checkpoints
from zoo.training.layout import Layout, compile_step
from zoo.training.state import TrainState
from zoo.training.step import Batch, Sums, add_sums
from zoo.training.stopping import StopSignal
from zoo.training.watching import Profile, Speed

HostBatch = dict[str, np.ndarray]
Means = dict[str, float]


class NonFiniteLoss(UserError):
    """The loss or its gradient was not finite; the last good state has been saved."""


class Writer(Protocol):
    """The destination of records: files, TensorBoard, the terminal."""

    def step(self, step: int) -> None:
        """Is called when a step was dispatched, for a progress bar."""

    def write(self, record: dict[str, Any]) -> None:
        """Writes one record: ``split``, ``step``, ``epoch`` and numbers."""

    def flush(self) -> None:
        """Returns when every record is safe on disk."""


@dataclasses.dataclass(frozen=True)
class Lengths:
    """The length of a run, and the intervals between its events.

    Attributes:
        steps: the total number of updates.
        examples: the number of examples in an epoch.
        batch_size: the number of rows of the global batch. In the last batch of an epoch fewer rows
            may count.
        log_every: the number of steps between two records.
        eval_every: the number of steps between two evaluations.
        save_every: the number of steps between two checkpoints.
        best_metric: the metric of the evaluation that chooses the best state.
        best_is_lowest: whether the lowest value is the best, as for a loss, and not the highest.
    """

    steps: int
    examples: int
    batch_size: int
    log_every: int
    eval_every: int
    save_every: int
    best_metric: str
    best_is_lowest: bool

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in an epoch, including the partial one."""
        return math.ceil(self.examples / self.batch_size)

    def epoch(self, step: int) -> int:
        """The 1-based epoch to which the step with this 1-based number belongs."""
        return max(step - 1, 0) // self.steps_per_epoch + 1

    def examples_seen(self, step: int) -> int:
        """The number of examples in the first ``step`` batches."""
        epochs, batches = divmod(step, self.steps_per_epoch)
        return epochs * self.examples + min(batches * self.batch_size, self.examples)


@dataclasses.dataclass
class Progress:
    """The values in a checkpoint besides arrays, so that a continued run writes the same records.

    Attributes:
        evaluated_step: the step of the last finished evaluation.
        validation: the means of the last finished evaluation.
        best: the value of the best evaluation so far.
        best_step: the step of the best evaluation so far.
        last_epoch: the means over the last finished epoch.
        train_seconds: the seconds spent in steps, over all processes that took part in the run.
        epoch_seconds: the seconds spent in steps of the current epoch.
        compile_seconds: the seconds spent compiling, over all processes.
    """

    evaluated_step: int = 0
    validation: Means = dataclasses.field(default_factory=dict)
    best: float | None = None
    best_step: int = 0
    last_epoch: Means = dataclasses.field(default_factory=dict)
    train_seconds: float = 0.0
    epoch_seconds: float = 0.0
    compile_seconds: float = 0.0


@dataclasses.dataclass
class Training:
    """The arrays and counters of a run, which the loop replaces at every step.

    Attributes:
        state: the train state.
        window: the sums since the last record.
        epoch: the sums since the beginning of the epoch.
        progress: the other values in a checkpoint.
        base: the digest of the frozen parameters, to which low ranks are added; None: there are
            none. See ``zoo.training.lora``.
    """

    state: TrainState
    window: Sums
    epoch: Sums
    progress: Progress
    base: Any = None

    @property
    def step(self) -> int:
        """The number of updates in ``state``."""
        return int(jax.device_get(self.state.step))

    @property
    def arrays(self) -> dict[str, Any]:
        """The arrays that a step takes."""
        return {"state": self.state, "window": self.window, "epoch": self.epoch}

    @property
    def saved(self) -> dict[str, Any]:
        """The arrays of a checkpoint: those of ``arrays``, without what is frozen."""
        return {**self.arrays, "state": _with_base(self.state, self.base)}


def abstract_arrays(
    state: Any,
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Sums]],
    batch: Any,
    layout: Layout,
) -> dict[str, Any]:
    """Returns the shapes, types and shardings of ``Training.arrays``, as the target of a restore.

    Args:
        state: a train state or its shapes.
        train_step: the function that ``make_train_step`` returned; only its shapes are used.
        batch: the shapes of the global batch.
        layout: where arrays lie in *this* run, not in the run that saved them.
    """
    _, sums = jax.eval_shape(train_step, state, batch)
    return layout.abstract({"state": state, "window": sums, "epoch": sums})


def begin_or_resume(
    state: TrainState,
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Sums]],
    batch: Any,
    checkpoints: Checkpoints,
    layout: Layout,
) -> Training:
    """Returns the run as it stood at its newest checkpoint, or at step 0 with ``state``.

    Raises:
        UserError: the frozen parameters in ``state`` are not those of the checkpoint.
    """
    like = abstract_arrays(state, train_step, batch, layout)
    base = digest = None
    if lora.BASE in state.model_state:
        base = layout.put({lora.BASE: state.model_state[lora.BASE]})[lora.BASE]
        digest = layout.put(lora.digest(base))
        state = _with_base(state, base)
        like["state"] = layout.abstract(_with_base(state, digest))
    restored = checkpoints.restore(like)
    if restored is not None:
        arrays, progress = restored
        if digest is not None:
            lora.check_base(arrays["state"].model_state[lora.BASE], digest)
            arrays["state"] = _with_base(arrays["state"], base)
        # Only good states are saved, even by a run that stopped at a bad step; it may try again.
        healthy = layout.put(np.bool_(True))
        arrays["state"] = dataclasses.replace(arrays["state"], healthy=healthy)
        return Training(**arrays, progress=Progress(**progress), base=digest)
    window, epoch = (layout.put(_zeros(like["window"])) for _ in range(2))
    return Training(layout.put(state), window, epoch, Progress(), digest)


def _with_base(state: Any, base: Any) -> Any:
    """Returns a state with other frozen parameters, or their digest; None leaves it as it is."""
    if base is None:
        return state
    return dataclasses.replace(state, model_state={**state.model_state, lora.BASE: base})


def compile_train_step(
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Sums]],
    training: Training,
    batch: Any,
    layout: Layout,
    **options: Any,
) -> Callable[[Any, Any], tuple[Any, Sums]]:
    """Compiles the step together with the summation of its metrics, and reuses the state's memory.

    The compiled function takes ``(training.arrays, batch)`` and returns the new arrays and the
    step's own sums. The seconds of the compilation are added to ``training.progress``. ``options``
    are further options for the compiler.
    """

    def step(arrays: dict[str, Any], batch: Batch) -> tuple[dict[str, Any], Sums]:
        state, sums = train_step(arrays["state"], batch)
        added = {name: add_sums(arrays[name], sums) for name in ("window", "epoch")}
        return {"state": state, **added}, sums

    compiled, seconds = compile_step(
        step, training.arrays, batch, layout, returns_state=True, options=options
    )
    training.progress.compile_seconds += seconds
    return compiled


def train(
    training: Training,
    compiled_step: Callable[[Any, Any], tuple[Any, Sums]],
    batches: Iterator[HostBatch],
    lengths: Lengths,
    *,
    layout: Layout,
    learning_rate: Callable[[int], float] | None,
    evaluate: Callable[[TrainState], Means] | None,
    checkpoints: Checkpoints,
    writer: Writer,
    stop: StopSignal,
    speed: Speed | None = None,
    profile: Profile | None = None,
) -> None:
    """Trains until ``lengths.steps`` and updates ``training`` on the way.

    The order at a step is fixed: record, evaluation, checkpoint. All records of a step are
    therefore written before its checkpoint, and a run continued from the checkpoint writes the rest
    exactly once.

    Args:
        training: the run that ``begin_or_resume`` returned.
        compiled_step: the function that ``compile_train_step`` returned.
        batches: this process's rows of the global batches, starting at ``training.state.step``.
        lengths: the number of steps and the intervals.
        layout: where arrays lie.
        learning_rate: the learning rate as a function of the 0-based step, for the records; None
            if it is not known.
        evaluate: returns the means over the validation split; None if there is no such split.
        checkpoints: where states are saved.
        writer: where records go.
        stop: checked between two steps; ``evaluate`` may also raise its ``Stopped``.
        speed: what records say about speed; None: as for one device.
        profile: is told of every step; None writes no profile.

    Raises:
        Stopped: a signal arrived; the state has been saved.
        NonFiniteLoss: the loss or its gradient was not finite; the last good state has been saved.
    """
    progress = training.progress
    step = training.step
    no_sums = _zeros(training.window)
    clock = _Clock(progress, step)
    speed = speed or Speed()
    in_flight: Sums | None = None

    with _saved_when_stopped(training, checkpoints, writer), jax.transfer_guard("disallow"):
        while True:
            last = step == lengths.steps
            if (
                evaluate
                and step > progress.evaluated_step
                and (last or step % lengths.eval_every == 0)
            ):
                _check_health(training, step)
                clock.lap()
                _evaluate(training, step, lengths, evaluate, checkpoints, writer)
                clock.restart()
            if step != checkpoints.latest_step() and (last or step % lengths.save_every == 0):
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
            if profile is not None:
                profile.before(step + 1, in_flight)
            arrays, sums = compiled_step(training.arrays, layout.put_batch(batch))
            training.state, training.window, training.epoch = (
                arrays["state"], arrays["window"], arrays["epoch"],
            )  # fmt: skip
            step += 1
            # One step computes while the next batch is made and put: at most two are in flight.
            waiting = time.perf_counter()
            jax.block_until_ready(in_flight)
            clock.device_wait += time.perf_counter() - waiting
            in_flight = sums
            writer.step(step)

            record = {"step": step, "epoch": lengths.epoch(step)}
            if step % lengths.log_every == 0:
                _check_health(training, step)
                waiting = time.perf_counter()
                window = jax.device_get(training.window)
                clock.device_wait += time.perf_counter() - waiting
                means = _means(window)
                training.window = layout.put(no_sums)
                first = clock.first_step
                rate = {}
                if learning_rate is not None:
                    with jax.transfer_guard("allow"):
                        rate = {"learning_rate": learning_rate(step - 1)}
                seconds, data_wait, device_wait = clock.window(step)
                measured = speed.record(
                    steps=step - first,
                    examples=lengths.examples_seen(step) - lengths.examples_seen(first),
                    weight=float(window["loss"][1]) if "loss" in window else 0.0,
                    seconds=seconds,
                    data_wait=data_wait,
                    device_wait=device_wait,
                )
                writer.write({"split": "train", **record, **means, **rate, **measured})
            if step % lengths.steps_per_epoch == 0:
                _check_health(training, step)
                progress.last_epoch = _means(training.epoch)
                training.epoch = layout.put(no_sums)
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
    """Counts the seconds spent training, without evaluation and saving."""

    def __init__(self, progress: Progress, step: int) -> None:
        self._progress = progress
        self._mark = time.perf_counter()
        self._seconds = 0.0
        self.data_wait = 0.0
        self.device_wait = 0.0
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

    def window(self, step: int) -> tuple[float, float, float]:
        """Ends a window of records.

        Returns:
            Its seconds, and how many of them the process waited for data and for the devices.
        """
        self.lap()
        ended = self._seconds, self.data_wait, self.device_wait
        self._seconds, self.data_wait, self.device_wait, self.first_step = 0.0, 0.0, 0.0, step
        return ended


def _evaluate(
    training: Training,
    step: int,
    lengths: Lengths,
    evaluate: Callable[[TrainState], Means],
    checkpoints: Checkpoints,
    writer: Writer,
) -> None:
    progress = training.progress
    begin = time.perf_counter()
    means = evaluate(training.state)
    seconds = time.perf_counter() - begin
    record = {"split": "validation", "step": step, "epoch": lengths.epoch(step)}
    writer.write({**record, **means, "seconds": seconds})
    progress.evaluated_step, progress.validation = step, means
    value = means[lengths.best_metric]
    sign = -1 if lengths.best_is_lowest else 1
    if progress.best is None or sign * value > sign * progress.best:
        progress.best, progress.best_step = value, step
        writer.flush()
        checkpoints.save_best(step, training.saved, dataclasses.asdict(progress))


def _save(training: Training, checkpoints: Checkpoints, writer: Writer) -> None:
    writer.flush()
    checkpoints.save(training.step, training.saved, dataclasses.asdict(training.progress))


def epoch_means(training: Training) -> Means:
    """Returns the means over the current epoch, or over the last one if no new one has begun."""
    return _means(training.epoch) or training.progress.last_epoch


def _zeros(sums: Any) -> Any:
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), sums)


def _means(sums: Sums) -> Means:
    """Fetches sums and divides them by their weights; leaves out those of weight zero."""
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
