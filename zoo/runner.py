"""The composition root: config -> data, model, task, state, writers -> loop -> report."""

import importlib.metadata
import json
import platform as host
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from zoo import building, data
from zoo import config as configs
from zoo.data.scenes import to_pixels
from zoo.errors import Stopped, UserError
from zoo.reports.console import ConsoleWriter, parameter_table
from zoo.reports.page import write_page
from zoo.reports.plots import plot_curves, plot_scores, write_mistakes
from zoo.reports.records import read_records, write_atomically
from zoo.reports.writers import RunWriter
from zoo.training import loop
from zoo.training.checkpoints import Checkpoints
from zoo.training.partitioning import make_mesh, run_once
from zoo.training.state import TrainState
from zoo.training.stopping import StopSignal
from zoo.workdir import Workdir, claim


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
    config = configs.check(config)
    # Before the data: the threads of their reader would take memory from heaps of their own.
    settings = building.start_jax(config)
    config, dataset = building.with_data(config)
    folder = claim(
        config,
        default=Path("runs") / name,
        explicit=Path(workdir) if workdir else None,
        restart=restart,
        extend=extend,
        steps_per_epoch=building.lengths(config, dataset).steps_per_epoch,
        say=console.print,
    )
    try:
        with StopSignal() as stop:
            return _train_and_report(config, dataset, folder, settings, console, stop)
    finally:
        folder.close()


def environment(config: ConfigDict, mesh: Mesh) -> dict[str, str]:
    """Returns what the run computes on and with, for the report."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "jax-model-zoo")
    return {
        "device": f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}",
        "precision": config.precision,
        "system": host.platform(),
        "python": host.python_version(),
        **{name: _version(name) for name in packages},
    }


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


def _train_and_report(
    config: ConfigDict,
    dataset: data.Dataset,
    folder: Workdir,
    settings: str,
    console: Console,
    stop: StopSignal,
) -> dict[str, Any]:
    workdir = folder.path
    mesh = make_mesh(config.mesh.data)
    building.check_divisible(config, mesh)
    console.print(f"{first_line(config, mesh)} | {settings}")
    console.print(f"work directory {workdir}")
    parts = building.build(config, dataset)
    state = run_once(lambda: building.init_state(parts))
    # A run that goes on has its weights in its checkpoint; the others may be gone by now.
    resumes = any((workdir / "checkpoints").glob("[0-9]*"))
    state, said = (state, []) if resumes else building.started(parts, state)
    # Not before: a config that fails until here leaves the folder free for the mended one.
    folder.save_config(config)
    _keep_vocabularies(workdir, dataset)
    console.print(parameter_table(parameter_rows(state.params)))
    for line in said:
        console.print(line)
    report: dict[str, Any] = {
        "status": "running",
        "platform": jax.default_backend(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        # Lists, as JSON gives them back.
        "parameter_table": [list(row) for row in parameter_rows(state.params)],
        "environment": environment(config, mesh),
    }
    checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep)
    try:
        shapes = building.train_shapes(parts)
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
    plot_curves(workdir / "curves.png", read_records(workdir / "metrics.jsonl"))
    symbols = {name: v.symbols for name, v in dataset.vocabularies.items()}
    plot_scores(workdir, report, symbols)
    if "mistakes" in report:
        source = dataset.open("test")
        wrong = [source[mistake["index"]] for mistake in report["mistakes"]]
        write_mistakes(workdir, [example["image"] for example in wrong if "image" in example])
    _write_report(workdir, report)
    write_page(workdir / "report.html", {workdir.name: workdir})
    return report


def _train(
    parts: building.Parts,
    training: loop.Training,
    shapes: building.Shapes,
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
        evaluator = building.Evaluator(parts.config, parts.dataset, parts.task, mesh, stop)
        has_validation = "validation" in parts.dataset.sizes
        state = training.state
        evaluator.compile("evaluate", state.eval_params, state.model_state, "test")
        progress.compile_seconds += evaluator.compile_seconds
        console.print(f"compiled in {progress.compile_seconds:.1f} s")
        if not has_validation:
            console.print(
                f"data.name={parts.dataset.name!r} has no validation split: best/ is not kept "
                "(data.validation_fraction makes one)"
            )

        def evaluate(state: TrainState) -> dict[str, float]:
            if parts.task.draws:
                drawn = evaluator.samples(state.eval_params, state.model_state, "validation")
                writer.write_images("validation", training.step, to_pixels(drawn["image"]))
            return evaluator.means(state.eval_params, state.model_state, "validation")

        bar.start(first)
        with building.train_batches(parts, first=first) as batches:
            loop.fit(
                training,
                compiled,
                batches,
                parts.lengths,
                mesh=mesh,
                learning_rate=lambda step: float(parts.learning_rate(step)),
                evaluate=evaluate if has_validation else None,
                checkpoints=checkpoints,
                writer=writer,
                stop=stop,
            )
        state = training.state
        test = evaluator.means(state.eval_params, state.model_state, "test")
        scores = evaluator.scores(state.eval_params, state.model_state, "test")
        test |= scores.pop("metrics", {})
        writer.write({"split": "test", "step": last, "epoch": parts.lengths.epoch(last), **test})
    finally:
        writer.close()
    console.print()
    for name, value in test.items():
        console.print(f"Test {name}: {value:.4f}")
    console.print(scores.pop("text", ""))
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


def _keep_vocabularies(workdir: Path, dataset: data.Dataset) -> None:
    """Writes what the data's numbers stand for beside the run, or compares with what is there."""
    file, text = workdir / "vocabulary.json", data.vocabularies_to_json(dataset.vocabularies)
    if not file.exists():
        write_atomically(file, text)
    elif file.read_text(encoding="utf-8") != text:
        raise UserError(
            f"the data have changed since the run in {workdir} began: their symbols are not those "
            f"of {file}. Bring the old data back, or begin anew with --restart"
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
