"""The composition root. Joins data, model, task, state and writers, runs the loop, and reports."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform as host
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from zoo import building, data, remote, sizing, storage
from zoo import config as configs
from zoo.data.own import OwnSource, own_dataset
from zoo.errors import NotWritten, Stopped, UserError, did_you_mean
from zoo.files import write_atomically
from zoo.reports.console import ConsoleWriter, Output, parameter_table
from zoo.reports.page import in_words, write_page
from zoo.reports.plots import NotDrawn, draw_each, plot_curves
from zoo.reports.records import read_records
from zoo.reports.results import FAILURES, FILE, read_report, write_end, write_report
from zoo.reports.sections import Run, Section
from zoo.reports.writers import NoWriter, RunWriter
from zoo.tasks import Task
from zoo.training import loop, lora, processes
from zoo.training.checkpoints import Checkpoints
from zoo.training.layout import Layout, make_state
from zoo.training.placement import Table
from zoo.training.settings import CONFIG_FIELDS, Settings
from zoo.training.state import TrainState
from zoo.training.stopping import StopSignal
from zoo.training.watching import Profile
from zoo.workdir import Differences, SharedWorkdir, Workdir, WorkdirError, claim

__all__ = ["Fitted", "fit", "run"]

Report = dict[str, Any]

_PAGE = "report.html"
_SCORES = "scores"


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The result of ``fit``.

    Attributes:
        variables: the model's variables, for ``model.apply(fitted.variables, ...)``. They hold the
            average of the parameters if the run kept one.
        report: the content of ``report.json``.
    """

    variables: dict[str, Any]
    report: Report


@dataclasses.dataclass(frozen=True)
class Job:
    """A run before anything is computed, in the form that ``run`` and ``fit`` share.

    Attributes:
        parts: the data, the task, the step and the lengths.
        description: the content of ``config.json``.
        start: changes the first state, for example to load weights, and describes the change.
        given: what the user gave, for messages.
        told: further words for the first line.
        draw: draws a report's figures into the run's folder.
        sections: returns what the report page shows beside the numbers.
    """

    parts: building.Parts
    description: str
    start: Callable[[TrainState], tuple[TrainState, list[str]]] = lambda state: (state, [])
    given: sizing.Given = dataclasses.field(default_factory=sizing.Given)
    told: str = ""
    draw: Callable[[Report, Path], None] = lambda report, folder: None
    sections: Callable[[Report, Path], Sequence[Section]] = lambda report, folder: ()


def run(
    config: ConfigDict,
    workdir: str | Path | None = None,
    *,
    name: str = "run",
    restart: bool = False,
    extend: bool = False,
) -> Report:
    """Trains what a config describes, or resumes where the same run stopped.

    Args:
        config: see ``zoo.config``; ``configs/*.py`` make one.
        workdir: the run's folder. The default is ``runs/<name>``, or the next free
            ``runs/<name>-2``, ….
        name: the name of the default folder.
        restart: move the content of the folder aside and begin anew.
        extend: continue even though the learning rate depends on the length, which has changed.

    Returns:
        The content of ``report.json``.

    Raises:
        UserError: the config, the data or the folder cannot be used; the message gives the fix.
        NotWritten: the disk is full, for example; the message says how much room is missing.
        Stopped: SIGTERM or SIGINT arrived. The state is saved, and the same call resumes the run.
    """
    config = configs.check(config)
    # This comes before the data, because the threads of their reader would each use its own heap.
    told = building.start_jax(config)
    console = _console()
    config, dataset = building.with_data(config)
    for note in dataset.notes:
        console.print(note)
    _check_same({**configs.flatten(config), "workdir": workdir and str(workdir)}, dataset)
    steps_per_epoch = building.lengths(config, dataset).steps_per_epoch
    folder = _claimed(
        lambda saved: configs.differences(
            configs.from_json(saved), config, extend=extend, steps_per_epoch=steps_per_epoch
        ),
        default=Path("runs") / name,
        explicit=workdir,
        restart=restart,
        console=console,
    )
    try:
        parts = building.build(config, dataset)
        wing = building.wing_of(config)
        job = Job(
            parts,
            configs.to_json(config),
            start=lambda state: building.started(parts, config, state),
            given=sizing.Given(configs.flatten(config), CONFIG_FIELDS),
            told=told,
            draw=lambda report, path: wing.draw(report, path, dataset.vocabularies, dataset),
            sections=wing.sections,
        )
        return _execute(job, folder, console)[1]
    finally:
        folder.close()


def fit(
    task: Task,
    *,
    train: OwnSource,
    validation: OwnSource | None = None,
    test: OwnSource | None = None,
    workdir: str | Path,
    optimizer: optax.GradientTransformation,
    steps: int,
    train_transform: data.transforms.Transform | None = None,
    learning_rate: optax.Schedule | None = None,
    best_metric: str = "loss",
    best_is_lowest: bool = True,
    restart: bool = False,
    seed: int = Settings.seed,
    precision: str = Settings.precision,
    batch_size: int = Settings.batch_size,
    accumulate: int = Settings.accumulate,
    ema_decay: float = Settings.ema_decay,
    eval_batch_size: int = Settings.eval_batch_size,
    log_every: int = Settings.log_every,
    eval_every: int = Settings.eval_every,
    save_every: int = Settings.save_every,
    keep: int = Settings.keep,
    workers: int = Settings.workers,
    prefetch: int = Settings.prefetch,
    devices: int = Settings.devices,
    fsdp: int = Settings.fsdp,
    tensor: int = Settings.tensor,
    sequence: int = Settings.sequence,
    axes: Table = (),
) -> Fitted:
    """Trains your own task on your own data, with the loop of ``train.py``.

    A second call with the same folder resumes the run where it stopped, whatever stopped it, and
    reaches the same numbers. The folder holds the same things as that of a config's run:
    checkpoints, records, TensorBoard logs and the report page.

    Args:
        task: the result of ``zoo.make_task``, or any ``zoo.tasks.Task``.
        train: the training examples. They are a dictionary of arrays whose first axes are equal,
            or anything with ``__len__`` and ``__getitem__`` that gives a dictionary of arrays for
            an index, such as a list of dictionaries, a ``torch.utils.data.Dataset``, grain's
            ``MapDataset`` or a ``datasets.Dataset``.
        validation: examples in the same form. They are evaluated every ``eval_every`` steps, and
            the evaluation chooses the best state.
        test: examples in the same form. They are evaluated once, at the end.
        workdir: the run's folder.
        optimizer: one optax transformation, which includes the learning rate.
        steps: the number of updates. A larger number continues a finished run.
        train_transform: changes a training example at random. It takes the example and a
            ``numpy.random.Generator`` of its own.
        learning_rate: the learning rate as a function of the step; used only for the records.
        best_metric: the metric of the validation that chooses the best state.
        best_is_lowest: whether the lowest value of ``best_metric`` is the best.
        restart: move the content of the folder aside and begin anew.
        seed: see ``zoo.training.settings.Settings``, also for the arguments that follow.
        precision: see ``Settings``.
        batch_size: see ``Settings``.
        accumulate: see ``Settings``.
        ema_decay: see ``Settings``.
        eval_batch_size: see ``Settings``.
        log_every: see ``Settings``.
        eval_every: see ``Settings``.
        save_every: see ``Settings``.
        keep: see ``Settings``.
        workers: see ``Settings``.
        prefetch: see ``Settings``.
        devices: see ``Settings``.
        fsdp: see ``Settings``.
        tensor: see ``Settings``.
        sequence: see ``Settings``.
        axes: the names of parameters' axes, which ``tensor`` needs: patterns of paths, such as
            ``up/kernel``, each with names of ``zoo.axes``. What has no name is divided over
            ``fsdp`` along its largest axis.

    Returns:
        The variables, and the content of ``report.json``.

    Raises:
        UserError: an argument is out of range, a source does not give dictionaries of arrays, or
            the folder holds another run; the message gives the fix.
        NotWritten: the disk is full, for example; the message says how much room is missing.
        Stopped: SIGTERM or SIGINT arrived. The state is saved, and the same call resumes the run.
    """
    settings = Settings(
        seed=seed,
        precision=precision,
        batch_size=batch_size,
        accumulate=accumulate,
        ema_decay=ema_decay,
        eval_batch_size=eval_batch_size,
        log_every=log_every,
        eval_every=eval_every,
        save_every=save_every,
        keep=keep,
        workers=workers,
        prefetch=prefetch,
        devices=devices,
        fsdp=fsdp,
        tensor=tensor,
        sequence=sequence,
    )
    settings.check()
    if steps < 1:
        raise UserError(f"steps={steps} must be at least 1")
    splits = {"train": train, "validation": validation, "test": test}
    dataset = own_dataset(
        {split: source for split, source in splits.items() if source is not None}, train_transform
    )
    how_long = building.lengths_of(
        settings, dataset, steps=steps, best_metric=best_metric, best_is_lowest=best_is_lowest
    )
    console = _console()
    # The settings that affect the numbers of a run and can be compared.
    decides = {
        name: getattr(settings, name)
        for name in ("seed", "precision", "batch_size", "accumulate", "ema_decay")
    } | {"model": type(task.model).__name__, "examples": dict(dataset.sizes)}
    _check_same({**decides, "steps": steps, "workdir": str(workdir)}, dataset)
    folder = _claimed(
        lambda saved: _other_fit(saved, decides, steps),
        default=Path(),
        explicit=workdir,
        restart=restart,
        console=console,
    )
    try:
        parts = building.assemble(
            task, dataset, optimizer, how_long, settings, learning_rate=learning_rate, axes=axes
        )
        description = json.dumps({"fit": decides | {"steps": steps}}, indent=2) + "\n"
        state, report = _execute(Job(parts, description), folder, console)
    finally:
        folder.close()
    own = building.weights_in(state.model_state, task)
    return Fitted({"params": state.eval_params, **own}, report)


def _other_fit(saved: str, decides: Mapping[str, Any], steps: int) -> list[str]:
    """Returns why the run that ``config.json`` describes is not this one; empty if it is."""
    description = json.loads(saved)
    there = description.get("fit")
    if there is None:
        return ["it is the run of a config"]
    if not isinstance(there, dict) or not isinstance(there.get("steps"), int):
        return ["its config.json is damaged: it gives no steps. Bring it back from a copy"]
    reasons = [
        f"{name} is {there.get(name)!r} there and {value!r} here"
        for name, value in decides.items()
        if there.get(name) != value
    ]
    if there["steps"] > steps:
        reasons.append(f"it has {there['steps']} steps, more than the {steps} here")
    return reasons


def environment(precision: str, mesh: Mesh) -> dict[str, str]:
    """Returns the devices and software versions of the run, for the report."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "jax-model-zoo")
    return {
        "device": f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}",
        "mesh": " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
        or "1",
        "precision": precision,
        "system": host.platform(),
        "python": host.python_version(),
        **{name: _version(name) for name in packages},
    }


def first_line(precision: str, mesh: Mesh) -> str:
    """Returns a line with the devices, the precision and the software versions of the run."""
    versions = ", ".join(f"{name} {_version(name)}" for name in ("jax", "flax", "optax"))
    kind = mesh.devices.flat[0].device_kind
    return (
        f"platform {jax.default_backend()} | {mesh.devices.size} x {kind} | "
        f"precision {precision} | python {host.python_version()}, {versions}, "
        f"zoo {_version('jax-model-zoo')}"
    )


def parameter_rows(params: Any) -> list[tuple[str, str, int]]:
    """Returns the layer, shapes and number of parameters of each module that has parameters."""
    rows: dict[str, tuple[list[str], int]] = {}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    # Kernels come before biases, and layers keep their own order.
    for path, leaf in sorted(leaves, key=lambda item: (str(item[0][:-1]), -item[1].ndim)):
        *layer, name = [str(key.key) for key in path]
        shapes, count = rows.get("/".join(layer), ([], 0))
        shape = "x".join(map(str, leaf.shape))
        rows["/".join(layer)] = ([*shapes, f"{name} {shape}"], count + leaf.size)
    return [(layer, ", ".join(shapes), count) for layer, (shapes, count) in rows.items()]


# The first process locks the folder and writes in it.
_Folder = Workdir | SharedWorkdir
# What may differ between the processes of one run: who they are, and where each has its data.
_OF_ONE_PROCESS = ("distributed.process", "data.data_dir")


def _check_same(fields: Mapping[str, Any], dataset: data.Dataset) -> None:
    """Raises UserError in every process unless all train the same on the same data."""
    same = {name: value for name, value in fields.items() if name not in _OF_ONE_PROCESS}
    vocabularies = data.vocabularies_to_json(dataset.vocabularies)
    described = {
        "the number of examples": dict(dataset.sizes),
        "the symbols of the data": hashlib.sha256(vocabularies.encode()).hexdigest(),
        "the version of jax": _version("jax"),
    }
    processes.check_same("the run", same | described)


def _claimed(
    differences: Differences,
    *,
    default: Path,
    explicit: str | Path | None,
    restart: bool,
    console: Console,
) -> _Folder:
    """Returns the folder that the first process claims, as each process may use it."""
    if explicit and remote.is_remote(explicit):
        return _spooled(differences, str(explicit), restart, console)
    folder: _Folder = processes.of_first(
        "the work directory",
        lambda: claim(
            differences,
            default=default,
            explicit=Path(explicit) if explicit else None,
            restart=restart,
            say=console.print,
        ),
        tell=lambda claimed: str(claimed.path.absolute()),
        take=lambda path: SharedWorkdir(Path(path)),
    )
    return folder


def _spooled(differences: Differences, url: str, restart: bool, console: Console) -> Workdir:
    """Returns the local folder of a run on an object store."""
    if jax.process_count() > 1:
        raise UserError(
            f"--workdir={url}: {jax.process_count()} processes write parts of one checkpoint, so "
            "they need a file system that all of them share, such as NFS or Filestore: give a "
            "folder there"
        )
    spool = remote.Spool(url, console.print, restart=restart)
    try:
        folder = claim(
            differences, default=spool.path, explicit=spool.path, restart=False, say=console.print
        )
    except BaseException:
        spool.close()
        raise
    folder.spool = spool
    console.print(f"{url} is copied from and to {spool.path}")
    return folder


def _execute(job: Job, folder: _Folder, console: Console) -> tuple[TrainState, Report]:
    """Trains or resumes, writes the report, and returns the last state and the report."""
    try:
        with StopSignal(processes.agreement()) as stop:
            done = _train_and_report(job, folder, console, stop)
            # A process that left earlier would be missed while the first one draws.
            processes.meet("the report is written")
            return done
    except BaseException as error:
        # Whatever ends a run: its report shall not go on saying that it is running.
        known = _known(error, job, folder)
        if known is error:
            raise
        raise known from error


def _known(error: BaseException, job: Job, folder: _Folder) -> BaseException:
    """Returns what ended a run as the user shall see it, and writes it to the report.

    An error that says nothing about the disk or the folder is returned as it is.
    """
    workdir = folder.path
    known = error
    if isinstance(error, Exception) and not isinstance(error, Stopped):
        refused = storage.refusal(error)
        try:
            folder.check_there()
        except WorkdirError as gone:
            return gone
        if refused is not None:
            known = storage.not_written(workdir, refused, building.state_bytes(job.parts))
            # Frees the room of what was not finished, which the next start would remove anyway.
            if processes.is_first():
                storage.clear_unfinished(workdir)
        elif sizing.is_memory(error):
            known = sizing.used_up(job.parts, job.given)
        elif not isinstance(error, UserError):
            for found in storage.system_errors(error):
                if _lies_in(found.filename, workdir):
                    known = WorkdirError(
                        f"the work directory {workdir} cannot be used ({storage.said(found)}): "
                        "mend this, or give another --workdir"
                    )
                    break
    ended: Report = {"status": "failed", "reason": str(known) or type(known).__name__}
    if isinstance(known, Stopped | KeyboardInterrupt):
        ended = {"status": "stopped"}
    if not processes.is_first():
        return known
    steps = max(storage.steps_saved(workdir), default=0)
    left = write_end(workdir, {**ended, "steps": steps, "platform": jax.default_backend()})
    if left and isinstance(known, NotWritten):
        return NotWritten(f"{known} ({left})")
    return known


def _lies_in(name: Any, workdir: Path) -> bool:
    if not isinstance(name, str | bytes):
        return False
    return Path(os.fsdecode(name)).absolute().is_relative_to(workdir.absolute())


def _train_and_report(
    job: Job, folder: _Folder, console: Console, stop: StopSignal
) -> tuple[TrainState, Report]:
    workdir, parts = folder.path, job.parts
    mesh = building.mesh_of(parts.settings)
    building.check_divisible(parts.settings, Layout(mesh), job.given.names)
    layout, undivided = sizing.laid_out(parts, mesh, job.given)
    sizing.check(parts, layout, job.given)
    words = [first_line(parts.settings.precision, layout.mesh), *([job.told] if job.told else [])]
    console.print(" | ".join(words))
    console.print(f"work directory {workdir}")
    for line in undivided:
        console.print(f"not divided: {line}")
    state = make_state(lambda: building.init_state(parts), layout)
    # A resumed run has its weights in its checkpoint; the initial ones may be gone by now. But no
    # checkpoint holds frozen ones.
    resumes = Checkpoints(workdir, read_only=True).latest_step() is not None
    starts = not resumes or lora.BASE in state.model_state
    state, said = job.start(state) if starts else (state, [])
    # The file is written only now: a config that fails earlier leaves the folder free for a fixed
    # one.
    folder.save_config(job.description)
    processes.meet("config.json is written")
    folder.check_shared()
    processes.of_first(
        "the vocabularies",
        lambda: _keep_vocabularies(workdir, parts.dataset, console.print if resumes else None),
    )
    console.print(parameter_table(parameter_rows(state.params)))
    for line in said:
        console.print(line)
    report: Report = {
        "status": "running",
        "platform": jax.default_backend(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        # Use lists, since JSON returns lists.
        "parameter_table": [list(row) for row in parameter_rows(state.params)],
        "environment": environment(parts.settings.precision, layout.mesh),
    }
    checkpoints = Checkpoints(
        workdir, keep=parts.settings.keep, say=console.print, saved=folder.saved
    )
    try:
        shapes = building.train_shapes(parts)
        training = loop.begin_or_resume(state, parts.train_step, shapes, checkpoints, layout)
        finished = processes.of_first(
            "the report of before", lambda: _finished_report(workdir, console)
        )
        if training.step == parts.lengths.steps == finished.get("steps"):
            console.print(
                f"this run has finished {training.step} steps: ask for more steps to go on, or "
                "restart it to begin anew"
            )
            if processes.is_first():
                read_records(workdir / "metrics.jsonl", console.print)
            report = finished
        else:
            if processes.is_first():
                write_report(workdir, report | {"steps": training.step})
            report = _train(
                parts,
                training,
                shapes,
                checkpoints,
                layout,
                workdir,
                console,
                stop,
                report,
                job.given,
            )
            # The numbers are safe before anything is drawn.
            if processes.is_first():
                write_report(workdir, report)
    finally:
        checkpoints.close()
    if not processes.is_first():
        return training.state, report
    if report.get(FAILURES) or not (workdir / _PAGE).is_file():
        report = _draw(job, folder, report, console)
    return training.state, report


def _draw(job: Job, folder: _Folder, report: Report, console: Console) -> Report:
    """Draws the pictures and the page of a finished run, and returns its report.

    A part that cannot be drawn is named in the terminal, on the page and in the report. It is tried
    again when the same command is run again.
    """
    workdir = folder.path
    # Before the page, so that it shows the failures of this time only.
    failures = {name: why for name, why in report.get(FAILURES, {}).items() if name == _SCORES}

    def failed(name: str, error: Exception) -> None:
        if storage.refusal(error) is not None or isinstance(error, Stopped):
            raise error
        failures[name] = in_words(error)
        console.print(f"warning: {name} could not be made ({failures[name]})")

    def curves(path: Path) -> None:
        plot_curves(path, read_records(workdir / "metrics.jsonl", console.print))

    for draw in (
        lambda: draw_each(workdir, {"curves.png": curves}),
        lambda: job.draw(report, workdir),
    ):
        try:
            draw()
        except NotDrawn as error:
            for name, reason in error.failures.items():
                failed(name, reason)
        except Exception as error:  # noqa: BLE001 (tasks outside the zoo may raise anything)
            failed("pictures", error)
    sections: tuple[Section, ...] = ()
    try:
        sections = tuple(job.sections(report, workdir))
    except Exception as error:  # noqa: BLE001 (as above)
        failed("sections", error)
    report = _with_failures(report, failures)
    run = Run(workdir.name, workdir, report, sections)
    not_shown = write_page(workdir / _PAGE, [run])
    for title, why in not_shown.items():
        if title not in failures:
            console.print(f"warning: {title} could not be made ({why})")
    report = _with_failures(report, not_shown | failures)
    write_report(workdir, report)
    return report


def _with_failures(report: Report, failures: Mapping[str, str]) -> Report:
    """Returns a report with these failures in place of those that it had."""
    others = {name: value for name, value in report.items() if name != FAILURES}
    return others | {FAILURES: dict(failures)} if failures else others


def _train(
    parts: building.Parts,
    training: loop.Training,
    shapes: building.Shapes,
    checkpoints: Checkpoints,
    layout: Layout,
    workdir: Path,
    console: Console,
    stop: StopSignal,
    report: Report,
    given: sizing.Given,
) -> Report:
    first, last, progress = training.step, parts.lengths.steps, training.progress
    task, sizes = parts.task, parts.dataset.sizes
    if first:
        console.print(f"resuming at step {first} of {last}")
    bar = ConsoleWriter(console, last, parts.lengths.steps_per_epoch)
    writer: RunWriter | NoWriter = NoWriter()
    if processes.is_first():
        writer = RunWriter(
            workdir,
            bar,
            step=first,
            evaluated_step=progress.evaluated_step,
            epochs=first // parts.lengths.steps_per_epoch,
            say=console.print,
        )
    scores: Report = {}
    # The page is missing until it is drawn, also if the run is killed before that.
    failures = {_PAGE: "it has not been written yet"}
    test: dict[str, float] = {}
    try:
        compiled = loop.compile_train_step(parts.train_step, training, shapes, layout)
        sizing.check_compiled(compiled, parts, given)
        evaluator = building.make_evaluator(task, parts.dataset, parts.settings, layout, stop)
        state = training.state
        for split in ("validation", "test"):
            if split in sizes:
                evaluator.compile("evaluate", state.eval_params, state.model_state, split)
        if "validation" in sizes and parts.lengths.best_metric not in evaluator.metrics():
            raise UserError(
                f"best_metric={parts.lengths.best_metric!r} is not evaluated."
                f"{did_you_mean(parts.lengths.best_metric, evaluator.metrics())}"
            )
        progress.compile_seconds += evaluator.compile_seconds
        console.print(f"compiled in {progress.compile_seconds:.1f} s")
        if "validation" not in sizes:
            console.print(
                f"{parts.dataset.name} has no validation split: best/ is not kept"
                f"{parts.dataset.without_validation}"
            )

        def evaluate(state: TrainState) -> dict[str, float]:
            if task.draws:
                drawn = evaluator.samples(state.eval_params, state.model_state, "validation")
                try:
                    writer.write_images("validation", training.step, task.pictures(drawn))
                except Exception as error:
                    if _must_end(error):
                        raise
                    console.print(f"warning: the samples are not drawn ({in_words(error)})")
            return evaluator.means(state.eval_params, state.model_state, "validation")

        if processes.is_first():
            bar.start(first)
        rate = parts.learning_rate
        share = processes.share_of_rows(layout.rows)
        # One of several processes writes the profile; their programs are the same.
        profiled = parts.settings.profile_steps if processes.is_first() else ""
        with (
            building.train_batches(parts, first=first, share=share) as batches,
            Profile(workdir / "tensorboard", profiled) as profile,
        ):
            loop.train(
                training,
                compiled,
                batches,
                parts.lengths,
                layout=layout,
                learning_rate=None if rate is None else lambda step: float(rate(step)),
                evaluate=evaluate if "validation" in sizes else None,
                checkpoints=checkpoints,
                writer=writer,
                stop=stop,
                speed=building.speed(parts, layout),
                profile=profile,
            )
        state = training.state
        if "test" in sizes:
            test = evaluator.means(state.eval_params, state.model_state, "test")
            try:
                scores = evaluator.scores(state.eval_params, state.model_state, "test")
            except Exception as error:
                # The losses above are known, and the run is worth more than its scores.
                if _must_end(error):
                    raise
                failures[_SCORES] = in_words(error)
                console.print(f"warning: the scores could not be made ({failures[_SCORES]})")
            test |= scores.pop("metrics", {})
            writer.write(
                {"split": "test", "step": last, "epoch": parts.lengths.epoch(last), **test}
            )
    finally:
        writer.close()
    console.print()
    for name, value in test.items():
        console.print(f"Test {name}: {value:.4f}")
    console.print(scores.pop("text", ""))
    seen = parts.lengths.examples_seen(last)
    metrics = {"train": loop.epoch_means(training)}
    metrics |= {"validation": progress.validation} if progress.validation else {}
    metrics |= {"test": test} if "test" in sizes else {}
    return report | {
        "status": "finished",
        "steps": last,
        "epochs": last / parts.lengths.steps_per_epoch,
        "train_seconds": progress.train_seconds,
        "compile_seconds": progress.compile_seconds,
        "examples_per_second": seen / progress.train_seconds if progress.train_seconds else 0.0,
        "metrics": metrics,
        "best": {"step": progress.best_step, parts.lengths.best_metric: progress.best},
        FAILURES: failures,
        **scores,
    }


def _must_end(error: Exception) -> bool:
    """Returns whether an error ends the run, although it came while scores or pictures were made.

    These are a signal, an error that the user can mend, a full disk and memory that is used up.
    """
    return isinstance(error, Stopped | UserError | MemoryError | jax.errors.JaxRuntimeError) or (
        storage.refusal(error) is not None
    )


def _console() -> Console:
    """Returns the terminal; only the first of several processes writes there."""
    return Console(
        file=cast(IO[str], Output(sys.stdout)),
        soft_wrap=True,
        markup=False,
        highlight=False,
        quiet=not processes.is_first(),
    )


def _keep_vocabularies(
    workdir: Path, dataset: data.Dataset, say: Callable[[str], None] | None
) -> None:
    """Writes the data's vocabularies into the run's folder, or compares them with those there.

    Args:
        workdir: the run's folder.
        dataset: the data that are read.
        say: tells the user that the file of a run that resumes was absent; None for a new run.
    """
    file, text = workdir / "vocabulary.json", data.vocabularies_to_json(dataset.vocabularies)
    if not os.path.lexists(file):
        with storage.named(file):
            write_atomically(file, text)
        if say is not None:
            say(f"{file} was absent and is written anew, from the data as they are now")
        return
    way_out = (
        "Bring it back from a copy; or, if the data have not changed since the run began, remove "
        "it and run the same command, which writes it anew"
    )
    if storage.read_text(file, way_out) != text:
        # A damaged file is no sign that the data have changed.
        storage.read_object(file, way_out)
        raise UserError(
            f"the data have changed since the run in {workdir} began: their symbols are not those "
            f"of {file}. Bring the old data back, or begin anew with --restart"
        )


def _finished_report(workdir: Path, console: Console) -> Report:
    """Returns the report of a run that has nothing left to do but drawing; else nothing."""
    if not os.path.lexists(workdir / FILE):
        return {}
    try:
        report = read_report(workdir, "It is written anew")
    except storage.DamagedFile as error:
        aside = storage.move_aside(workdir / FILE)
        console.print(f"{error}; the old one is kept as {aside.name}")
        return {}
    unscored = _SCORES in report.get(FAILURES, {})
    return report if report["status"] == "finished" and not unscored else {}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return "(not installed)"
