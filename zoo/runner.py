"""The composition root: config -> data, model, task, state, writers -> loop -> report."""

import contextlib
import dataclasses
import importlib.metadata
import json
import platform as host
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from zoo import config as configs
from zoo import data
from zoo.errors import Stopped, UserError
from zoo.models import create_model
from zoo.reports.console import ConsoleWriter, parameter_table
from zoo.reports.plots import plot_confusion_matrix, plot_curves
from zoo.reports.records import read_records, write_atomically
from zoo.reports.writers import RunWriter
from zoo.tasks.classification import Classification
from zoo.training import loop
from zoo.training.checkpoints import Checkpoints
from zoo.training.evaluation import compile_evaluation, evaluate_split
from zoo.training.optimizers import make_optimizer
from zoo.training.partitioning import make_mesh
from zoo.training.schedules import make_schedule
from zoo.training.state import TrainState, create_state
from zoo.training.step import make_train_step
from zoo.training.stopping import StopSignal
from zoo.workdir import Workdir, claim

HostBatch = dict[str, np.ndarray]
Shapes = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a config stands for, before anything is computed.

    Attributes:
        config: the checked config, the number of classes filled in.
        info: the data set.
        task: the model joined with its loss and metrics.
        learning_rate: learning rate by step.
        optimizer: the optax chain.
        train_step: the pure step.
        lengths: steps, epochs and intervals.
    """

    config: ConfigDict
    info: data.DataInfo
    task: Classification
    learning_rate: optax.Schedule
    optimizer: optax.GradientTransformation
    train_step: Any
    lengths: loop.Schedule


def run(
    config: ConfigDict,
    workdir: str | Path | None = None,
    *,
    name: str = "run",
    restart: bool = False,
    extend: bool = False,
) -> dict[str, Any]:
    """Trains what a config describes, or goes on where the same run stopped.

    Args:
        config: see ``zoo.config``; ``configs/*.py`` make one.
        workdir: the run's folder; absent, ``runs/<name>``, or the next free ``runs/<name>-2``, ….
        name: name of the default folder.
        restart: move what the folder holds aside and begin anew.
        extend: continue although the learning rate depends on the length, which changed.

    Returns:
        What ``report.json`` says.

    Raises:
        UserError: the config, the data or the folder cannot be used; the message says the fix.
        Stopped: SIGTERM or SIGINT arrived; the state is saved, the same call goes on.
    """
    console = Console(soft_wrap=True, markup=False, highlight=False)
    config, info = with_data(configs.check(config))
    folder = claim(
        config,
        default=Path("runs") / name,
        explicit=Path(workdir) if workdir else None,
        restart=restart,
        extend=extend,
        steps_per_epoch=_lengths(config, info).steps_per_epoch,
        say=console.print,
    )
    try:
        with StopSignal() as stop:
            return _train_and_report(config, info, folder, console, stop)
    finally:
        folder.close()


def evaluate(
    workdir: str | Path, config: ConfigDict, *, split: str = "test", checkpoint: str = "latest"
) -> dict[str, Any]:
    """Evaluates the checkpoint of a run on a split.

    Args:
        workdir: the run's folder; it is only read.
        config: the run's config, with another data set if wanted.
        split: name of the split.
        checkpoint: ``latest`` or ``best``.

    Returns:
        ``split, step, metrics`` and the task's scores.

    Raises:
        UserError: there is no such checkpoint, or the data do not fit the model.
    """
    config, info = with_data(configs.check(config))
    choose_platform(config.platform)
    mesh = make_mesh(config.mesh.data)
    parts = build(config, info)
    checkpoints = Checkpoints(Path(workdir), read_only=True)
    try:
        shapes = batch_shapes(parts, config.train.batch_size)
        state = jax.eval_shape(lambda: init_state(parts))
        like = loop.abstract_arrays(state, parts.train_step, shapes, mesh)
        restore = {"latest": checkpoints.restore, "best": checkpoints.restore_best}[checkpoint]
        restored = restore(like)
    finally:
        checkpoints.close()
    if restored is None:
        raise UserError(f"the work directory {workdir} has no {checkpoint} checkpoint")
    state = restored[0]["state"]
    evaluator = Evaluator(parts, state, mesh)
    metrics, scores = evaluator(state, split)
    return {"split": split, "step": int(state.step), "metrics": metrics} | scores


def build(config: ConfigDict, info: data.DataInfo) -> Parts:
    """Makes the parts that a checked config names."""
    lengths = _lengths(config, info)
    attributes = {name: value for name, value in config.model.items() if name != "name"}
    task = Classification(
        model=create_model(config.model.name, **attributes),
        loss_name=config.task.loss,
        label_smoothing=config.task.label_smoothing,
        class_names=info.class_names,
    )
    optimizer = config.optimizer
    learning_rate = make_schedule(
        optimizer.schedule,
        optimizer.learning_rate,
        total_steps=lengths.steps,
        warmup_steps=optimizer.warmup_steps,
        end_value=optimizer.end_value,
        step_size=optimizer.step_size or None,
        gamma=optimizer.gamma,
    )
    chain = make_optimizer(
        optimizer.name,
        learning_rate,
        weight_decay=optimizer.weight_decay,
        decay_mode=optimizer.decay_mode,
        decay_exclude=optimizer.decay_exclude,
        clip_norm=optimizer.clip_norm or None,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        b1=optimizer.b1,
        b2=optimizer.b2,
        eps=optimizer.eps,
        rms_decay=optimizer.rms_decay,
        centered=optimizer.centered,
    )
    train_step = make_train_step(
        task.loss,
        chain,
        accumulate=config.train.accumulate,
        ema=config.train.ema_decay or None,
        precision=config.precision,
    )
    return Parts(config, info, task, learning_rate, chain, train_step, lengths)


def init_state(parts: Parts) -> TrainState:
    """Makes the state of step 0, from the config's seed alone."""
    init_key, run_key = jax.random.split(jax.random.key(parts.config.seed))
    example = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), batch_shapes(parts, 1))
    variables = parts.task.init(init_key, example)
    return create_state(variables, parts.optimizer, run_key, ema=parts.config.train.ema_decay > 0)


def with_data(config: ConfigDict) -> tuple[ConfigDict, data.DataInfo]:
    """Describes the data and takes the number of classes from them, unless it is given."""
    info = data.describe(config.data.name, **_location(config))
    classes = config.model.num_classes
    if not classes:
        config = config.copy_and_resolve_references()
        config.model.num_classes = info.num_classes
    elif classes < info.num_classes:
        raise configs.ConfigError(
            f"model.num_classes={classes} is fewer than the {info.num_classes} classes of "
            f"data.name={info.name!r}: give {info.num_classes}, or 0 to take it from the data"
        )
    return config, info


def choose_platform(platform: str) -> None:
    """Makes JAX use a platform, before it starts.

    Raises:
        UserError: the platform is not there, or JAX already runs on another one.
    """
    if platform != "auto":
        jax.config.update("jax_platforms", {"gpu": "cuda,rocm"}.get(platform, platform))
    try:
        actual = jax.default_backend()
    except RuntimeError as error:
        raise UserError(
            f"platform={platform!r} is not available here ({error}): install the jax build for "
            "it, or give --config.platform=auto"
        ) from error
    if platform not in ("auto", actual):
        raise UserError(f"platform={platform!r}, but JAX already runs on {actual!r} here")


def first_line(config: ConfigDict, mesh: Mesh) -> str:
    """Says what the run computes on and with."""
    versions = ", ".join(f"{name} {_version(name)}" for name in ("jax", "flax", "optax"))
    kind = mesh.devices.flat[0].device_kind
    return (
        f"platform {jax.default_backend()} | {mesh.devices.size} x {kind} | "
        f"precision {config.precision} | python {host.python_version()}, {versions}, "
        f"zoo {_version('jax-model-zoo')}"
    )


def parameter_rows(params: Any) -> list[tuple[str, str, int]]:
    """Returns layer, shapes and number of parameters for each module that has parameters."""
    rows: dict[str, tuple[list[str], int]] = {}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    # Kernels before biases, layers in their own order.
    for path, leaf in sorted(leaves, key=lambda item: (str(item[0][:-1]), -item[1].ndim)):
        *layer, name = [str(key.key) for key in path]
        shapes, count = rows.get("/".join(layer), ([], 0))
        shape = "x".join(map(str, leaf.shape))
        rows["/".join(layer)] = ([*shapes, f"{name} {shape}"], count + leaf.size)
    return [(layer, ", ".join(shapes), count) for layer, (shapes, count) in rows.items()]


def batch_shapes(parts: Parts, batch_size: int) -> Shapes:
    """Returns the shapes of a global batch, from one transformed example."""
    source = data.open_source(parts.info.name, "train", **_location(parts.config))
    batch = next(iter(data.eval_batches(source, _transform(parts, train=False), batch_size=1)))
    return {
        name: jax.ShapeDtypeStruct((batch_size, *rows.shape[1:]), rows.dtype)
        for name, rows in batch.items()
    }


class Evaluator:
    """Evaluates states on the splits of a run's data, with one compiled function."""

    def __init__(
        self, parts: Parts, state: Any, mesh: Mesh, stop: StopSignal | None = None
    ) -> None:
        """Compiles; ``compile_seconds`` says how long it took.

        Args:
            parts: the run's parts.
            state: a train state or its shapes.
            mesh: the devices.
            stop: asked between two batches.
        """
        self._parts, self._mesh, self._stop = parts, mesh, stop
        self._compiled, self.compile_seconds = compile_evaluation(
            parts.task.evaluate,
            parts.task.predict,
            state,
            batch_shapes(parts, parts.config.train.eval_batch_size),
            mesh,
            precision=parts.config.precision,
        )

    def __call__(self, state: TrainState, split: str) -> tuple[dict[str, float], dict[str, Any]]:
        """Returns the means over a split, and the task's scores of the whole of it."""
        parts = self._parts
        source = data.open_source(parts.info.name, split, **_location(parts.config))
        batches = data.eval_batches(
            source,
            _transform(parts, train=False),
            batch_size=parts.config.train.eval_batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        means, outputs, references = evaluate_split(
            self._compiled,
            state,
            batches,
            self._mesh,
            references=parts.task.references,
            stop=self._stop,
        )
        return means, parts.task.score(outputs, references)


def _train_and_report(
    config: ConfigDict, info: data.DataInfo, folder: Workdir, console: Console, stop: StopSignal
) -> dict[str, Any]:
    workdir = folder.path
    choose_platform(config.platform)
    mesh = make_mesh(config.mesh.data)
    _check_divisible(config, mesh)
    console.print(first_line(config, mesh))
    console.print(f"work directory {workdir}")
    parts = build(config, info)
    state = jax.jit(lambda: init_state(parts))()
    # Not before: a config that fails until here leaves the folder free for the mended one.
    folder.save_config(config)
    console.print(parameter_table(parameter_rows(state.params)))
    report: dict[str, Any] = {
        "status": "running",
        "platform": jax.default_backend(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    }
    checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep)
    try:
        shapes = batch_shapes(parts, config.train.batch_size)
        training = loop.begin_or_resume(state, parts.train_step, shapes, checkpoints, mesh)
        finished = _finished_report(workdir)
        if training.step == parts.lengths.steps == finished.get("steps"):
            console.print(
                f"this run has finished {training.step} steps: give more train.steps or "
                "train.epochs to go on, or --restart to begin anew"
            )
            return finished
        try:
            _write_report(workdir, report | {"steps": training.step})
            report = _train(
                parts, training, shapes, checkpoints, mesh, workdir, console, stop, report
            )
        except Stopped:
            _write_report(workdir, report | {"status": "stopped", "steps": training.step})
            raise
        except loop.NonFiniteLoss as error:
            reason = {"status": "failed", "reason": str(error), "steps": training.step}
            _write_report(workdir, report | reason)
            raise
    finally:
        checkpoints.close()
    plot_curves(
        workdir / "curves.png", read_records(workdir / "metrics.jsonl"), ("loss", "accuracy")
    )
    plot_confusion_matrix(
        workdir / "confusion_matrix.png", report["confusion_matrix"], info.class_names
    )
    _write_report(workdir, report)
    return report


def _train(
    parts: Parts,
    training: loop.Training,
    shapes: Shapes,
    checkpoints: Checkpoints,
    mesh: Mesh,
    workdir: Path,
    console: Console,
    stop: StopSignal,
    report: dict[str, Any],
) -> dict[str, Any]:
    first, last, progress = training.step, parts.lengths.steps, training.progress
    if first:
        console.print(f"resuming at step {first} of {last}")
    bar = ConsoleWriter(console, last, parts.lengths.steps_per_epoch)
    writer = RunWriter(workdir, bar, step=first, evaluated_step=progress.evaluated_step)
    try:
        compiled = loop.compile_train_step(parts.train_step, training, shapes, mesh)
        evaluator = Evaluator(parts, training.state, mesh, stop)
        progress.compile_seconds += evaluator.compile_seconds
        console.print(f"compiled in {progress.compile_seconds:.1f} s")
        has_validation = "validation" in parts.info.sizes
        if not has_validation:
            console.print(
                f"data.name={parts.info.name!r} has no validation split: best/ is not kept "
                "(data.validation_fraction makes one)"
            )
        bar.start(first)
        with _train_batches(parts, first) as batches:
            loop.fit(
                training,
                compiled,
                batches,
                parts.lengths,
                mesh=mesh,
                learning_rate=lambda step: float(parts.learning_rate(step)),
                evaluate=(lambda s: evaluator(s, "validation")[0]) if has_validation else None,
                checkpoints=checkpoints,
                writer=writer,
                stop=stop,
            )
        test, scores = evaluator(training.state, "test")
        writer.write({"split": "test", "step": last, "epoch": parts.lengths.epoch(last), **test})
    finally:
        writer.close()
    text = scores.pop("text")
    console.print(f"\nTest loss: {test['loss']:.4f}")
    console.print(f"Test accuracy: {100 * test['accuracy']:.2f}%\n")
    console.print(f"Classification report\n{text}")
    console.print("Confusion matrix (rows = true, columns = predicted)")
    console.print(np.array2string(np.array(scores["confusion_matrix"])))
    seen = parts.lengths.examples_seen(last)
    metrics = {"train": loop.epoch_means(training), "test": test}
    return report | {
        "status": "finished",
        "steps": last,
        "epochs": last / parts.lengths.steps_per_epoch,
        "train_seconds": progress.train_seconds,
        "compile_seconds": progress.compile_seconds,
        "examples_per_second": seen / progress.train_seconds,
        "metrics": metrics,
        "best": {"step": progress.best_step, parts.lengths.best_metric: progress.best},
        **scores,
    }


@contextlib.contextmanager
def _train_batches(parts: Parts, first: int) -> Iterator[Iterator[HostBatch]]:
    config = parts.config
    batches = data.train_batches(
        data.open_source(parts.info.name, "train", **_location(config)),
        _transform(parts, train=True),
        batch_size=config.train.batch_size,
        seed=config.seed,
        start=first,
        stop=parts.lengths.steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.data.workers,
        prefetch=config.data.prefetch,
    )
    with contextlib.closing(batches):
        yield batches


def _transform(parts: Parts, *, train: bool) -> Any:
    section = parts.config.data
    return data.make_transform(
        section.transform,
        train=train,
        image_size=section.image_size,
        mean=section.mean,
        std=section.std,
        degrees=section.rotation_degrees,
        brightness=section.brightness,
        contrast=section.contrast,
    )


def _location(config: ConfigDict) -> dict[str, Any]:
    section = config.data
    return {
        "data_dir": section.data_dir or None,
        "path": section.path or None,
        "validation_fraction": section.validation_fraction,
    }


def _lengths(config: ConfigDict, info: data.DataInfo) -> loop.Schedule:
    examples, train = info.sizes["train"], config.train
    steps_per_epoch = data.steps_per_epoch(examples, train.batch_size)
    return loop.Schedule(
        steps=configs.steps_in_all(config, steps_per_epoch),
        examples=examples,
        batch_size=train.batch_size,
        log_every=train.log_every,
        eval_every=train.eval_every or steps_per_epoch,
        save_every=config.checkpoint.every,
        best_metric=config.checkpoint.metric,
    )


def _check_divisible(config: ConfigDict, mesh: Mesh) -> None:
    devices = mesh.devices.size
    for name in ("batch_size", "eval_batch_size"):
        rows = config.train[name] // (config.train.accumulate if name == "batch_size" else 1)
        if rows % devices:
            raise configs.ConfigError(
                f"train.{name}={config.train[name]} cannot be divided over {devices} devices"
                f"{' in every accumulated part' if config.train.accumulate > 1 else ''}: take a "
                f"multiple of {devices}, or fewer devices with mesh.data"
            )


def _finished_report(workdir: Path) -> dict[str, Any]:
    file = workdir / "report.json"
    report = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return report if report.get("status") == "finished" else {}


def _write_report(workdir: Path, report: dict[str, Any]) -> None:
    write_atomically(workdir / "report.json", json.dumps(report, indent=2) + "\n")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return "(not installed)"
