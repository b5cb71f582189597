"""From a checked config to its parts: data, model, task, optimizer, step. Computes nothing yet."""

import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from zoo import config as configs
from zoo import data, finetuning, process
from zoo.errors import UserError
from zoo.kernels import library
from zoo.layers import fuse
from zoo.models import create_model
from zoo.tasks import Task, make_task
from zoo.tasks.language_modelling import CARRY
from zoo.training import loop
from zoo.training.evaluation import compile_evaluation, evaluate_split
from zoo.training.optimizers import freeze, make_optimizer
from zoo.training.schedules import make_schedule
from zoo.training.state import TrainState, create_state
from zoo.training.step import make_train_step
from zoo.training.stopping import StopSignal

HostBatch = dict[str, np.ndarray]
Shapes = dict[str, jax.ShapeDtypeStruct]
# Examples whose outputs are looked at when a run is evaluated.
SAMPLES = 16


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a config stands for, before anything is computed.

    Attributes:
        config: the checked config, what follows from the data filled in.
        dataset: what is read.
        task: the model joined with its loss and metrics.
        learning_rate: learning rate by step.
        optimizer: the optax chain.
        train_step: the pure step.
        lengths: steps, epochs and intervals.
    """

    config: ConfigDict
    dataset: data.Dataset
    task: Task
    learning_rate: optax.Schedule
    optimizer: optax.GradientTransformation
    train_step: Any
    lengths: loop.Schedule


def with_data(config: ConfigDict) -> tuple[ConfigDict, data.Dataset]:
    """Describes the data, and fills in the numbers of classes or symbols that are 0 in the config.

    Raises:
        UserError: the data are not there, or the config gives fewer classes than they have.
    """
    dataset = data.load(config.task.name, config.data.to_dict())
    config = config.copy_and_resolve_references()
    for name, found in dataset.model_fields.items():
        given = config.model[name]
        if not given:
            config.model[name] = found
        elif given < found:
            raise configs.ConfigError(
                f"model.{name}={given} is fewer than the {found} of data.name={dataset.name!r}: "
                f"give {found}, or 0 to take it from the data"
            )
    return config, dataset


def lengths(config: ConfigDict, dataset: data.Dataset) -> loop.Schedule:
    """Returns how long the run is, and what happens when."""
    train = config.train
    examples = data.examples_per_epoch(dataset.sizes["train"], train.batch_size, dataset.order)
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


def build_task(config: ConfigDict, vocabularies: dict[str, data.Vocabulary]) -> Task:
    """Makes the model that a checked config names, joined with its task."""
    attributes = {name: value for name, value in config.model.items() if name != "name"}
    fields = {name: value for name, value in config.task.items() if name != "name"}
    return make_task(
        config.task.name,
        create_model(config.model.name, **attributes),
        {name: vocabulary.symbols for name, vocabulary in vocabularies.items()},
        lanes=config.data.get("order") == "lanes",
        **fields,
    )


def build(config: ConfigDict, dataset: data.Dataset) -> Parts:
    """Makes the parts that a checked config names."""
    schedule = lengths(config, dataset)
    task = build_task(config, dict(dataset.vocabularies))
    optimizer = config.optimizer
    learning_rate = make_schedule(
        optimizer.schedule,
        optimizer.learning_rate,
        total_steps=schedule.steps,
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
    if config.freeze:
        chain = freeze(chain, config.freeze)
    train_step = make_train_step(
        task.loss,
        chain,
        accumulate=config.train.accumulate,
        ema=config.train.ema_decay or None,
        precision=config.precision,
    )
    return Parts(config, dataset, task, learning_rate, chain, train_step, schedule)


def init_state(parts: Parts) -> TrainState:
    """Makes the state of step 0, from the config's seed alone.

    Compiled, it costs no forward pass: only the parameters are results.
    """
    init_key, run_key = jax.random.split(jax.random.key(parts.config.seed))
    example = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), train_shapes(parts))
    variables = parts.task.init(init_key, example)
    return create_state(variables, parts.optimizer, run_key, ema=parts.config.train.ema_decay > 0)


def started(parts: Parts, state: TrainState) -> tuple[TrainState, list[str]]:
    """Returns the state of step 0 with the weights that ``init_from`` names, and lines that say so.

    Raises:
        UserError: the weights do not fit, or ``reset`` or ``freeze`` match nothing.
    """
    config, said = parts.config, []
    if config.freeze:
        said.append(finetuning.frozen_paths(state.params, config.freeze)[1])
    if not config.init_from:
        return state, said
    # What a task keeps beside the model's own collections, such as rows' states, is not in files.
    collections = {name: v for name, v in state.model_state.items() if name != CARRY}
    variables, line = finetuning.start_from(
        config.init_from,
        config.model.name,
        parts.task.model,
        {"params": state.params} | collections,
        reset=config.reset,
    )
    params = variables.pop("params")
    return (
        dataclasses.replace(
            state,
            params=params,
            model_state={**state.model_state, **variables},
            ema_params=None if state.ema_params is None else jax.tree.map(jnp.array, params),
        ),
        [line, *said],
    )


# Compiled programs take megabytes each; the least recently used go first.
_CACHE_BYTES = 2 << 30


def start_jax(config: ConfigDict) -> str:
    """Makes the settings of the process, and JAX use the platform that a config names.

    Returns:
        Which settings, in a few words for a log.

    Raises:
        UserError: the platform is not there, or JAX already runs on another one.
    """
    if config.process_settings:
        said = [process.tune_allocator(), library.describe(), _keep_compiled_programs()]
    else:
        os.environ[library.SWITCH] = "off"
        said = ["process as it is"]
    _choose_platform(config.platform)
    return ", ".join(said)


def _keep_compiled_programs() -> str:
    folder = jax.config.values["jax_compilation_cache_dir"]
    if folder is None:
        folder = process.compilation_cache_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            process.remove_unfinished(folder)
        except OSError as error:
            return f"compiled programs not kept ({error})"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return f"compiled programs kept in {folder}"


def _choose_platform(platform: str) -> None:
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


@contextlib.contextmanager
def train_batches(
    parts: Parts, *, first: int = 0, batch_size: int | None = None
) -> Iterator[Iterator[HostBatch]]:
    """Opens this process's rows of the training batches, from number ``first`` on."""
    config, dataset = parts.config, parts.dataset
    batches = data.train_batches(
        dataset.open("train"),
        dataset.transform(True),
        batch_size=batch_size or config.train.batch_size,
        seed=config.seed,
        start=first,
        stop=parts.lengths.steps,
        order=dataset.order,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.data.workers,
        prefetch=config.data.prefetch,
    )
    with contextlib.closing(batches):
        yield batches


def train_shapes(parts: Parts) -> Shapes:
    """Returns the shapes of a global training batch, from one transformed example."""
    one = data.train_batches(
        parts.dataset.open("train"),
        parts.dataset.transform(True),
        batch_size=1,
        seed=parts.config.seed,
        stop=1,
        order=parts.dataset.order,
    )
    return _with_rows(one, parts.config.train.batch_size)


def _with_rows(batches: data.batching.Batches, rows: int) -> Shapes:
    with contextlib.closing(batches):
        batch = next(batches)
    return {
        name: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype)
        for name, array in batch.items()
    }


class Evaluator:
    """Evaluates parameters on the splits of a data set; what it needs is compiled once."""

    def __init__(
        self,
        config: ConfigDict,
        dataset: data.Dataset,
        task: Task,
        mesh: Mesh,
        stop: StopSignal | None = None,
    ) -> None:
        """Prepares; ``compile_seconds`` says how long compilations have taken so far.

        Args:
            config: the checked config.
            dataset: what is read.
            task: the model joined with its metrics.
            mesh: the devices.
            stop: asked between two batches.
        """
        self._config, self._dataset, self._task = config, dataset, task
        self._mesh, self._stop = mesh, stop
        # The same key at every evaluation: what is drawn, such as noise, does not differ.
        self._key = jax.random.key(config.seed)
        self._compiled: dict[str, Any] = {}
        self.compile_seconds = 0.0

    def means(self, params: Any, model_state: Any, split: str) -> dict[str, float]:
        """Returns the means over a split."""
        self.compile("evaluate", params, model_state, split)
        return self._run("evaluate", params, model_state, split)[0]

    def scores(self, params: Any, model_state: Any, split: str) -> dict[str, Any]:
        """Returns the task's scores of a whole split, from the outputs for all its examples."""
        self.compile("predict", params, model_state, split)
        _, outputs, references = self._run("predict", params, model_state, split)
        return self._task.score(outputs, references)

    def samples(self, params: Any, model_state: Any, split: str) -> dict[str, np.ndarray]:
        """Returns the task's outputs for the first examples of a split, to look at.

        There are 16 of them, or as many more as the devices divide.
        """
        self.compile("samples", params, model_state, split)
        return self._run("samples", params, model_state, split, batches=1)[1]

    def compile(self, what: str, params: Any, model_state: Any, split: str) -> None:
        """Compiles ``evaluate`` or ``predict`` of the task, or its ``samples``, only once."""
        if what in self._compiled:
            return
        self._compiled[what], seconds = compile_evaluation(
            fuse(self._task.evaluate) if what == "evaluate" else None,
            None if what == "evaluate" else fuse(self._task.predict),
            self._carry(params, model_state),
            _with_rows(self._batches(split, rows=1), self._rows(what)),
            self._mesh,
            precision=self._config.precision,
        )
        self.compile_seconds += seconds

    def _rows(self, what: str) -> int:
        if what != "samples":
            return self._config.train.eval_batch_size
        devices = self._mesh.devices.size
        return math.ceil(SAMPLES / devices) * devices

    def _run(
        self, what: str, params: Any, model_state: Any, split: str, batches: int | None = None
    ) -> tuple[Any, Any, Any]:
        with contextlib.closing(self._batches(split, rows=self._rows(what))) as all_batches:
            return evaluate_split(
                self._compiled[what],
                self._carry(params, model_state),
                itertools.islice(all_batches, batches),
                self._mesh,
                references=self._task.references if what == "predict" else (),
                stop=self._stop,
            )

    def _carry(self, params: Any, model_state: Any) -> dict[str, Any]:
        return {"params": params, "model_state": model_state, "key": self._key}

    def _batches(self, split: str, *, rows: int) -> data.batching.Batches:
        single = rows == 1
        return data.eval_batches(
            self._dataset.open(split),
            self._dataset.transform(False),
            batch_size=rows,
            process_index=0 if single else jax.process_index(),
            process_count=1 if single else jax.process_count(),
        )


def check_divisible(config: ConfigDict, mesh: Mesh) -> None:
    """Raises ConfigError if batches cannot be divided over the devices."""
    devices = mesh.devices.size
    for name in ("batch_size", "eval_batch_size"):
        rows = config.train[name] // (config.train.accumulate if name == "batch_size" else 1)
        if rows % devices:
            raise configs.ConfigError(
                f"train.{name}={config.train[name]} cannot be divided over {devices} devices"
                f"{' in every accumulated part' if config.train.accumulate > 1 else ''}: take a "
                f"multiple of {devices}, or fewer devices with mesh.data"
            )


def read_config(workdir: Path) -> ConfigDict:
    """Returns the config of a run.

    Raises:
        UserError: the folder holds no run.
    """
    file = workdir / "config.json"
    if not file.is_file():
        raise UserError(f"--workdir={workdir} holds no run: there is no {file}")
    return configs.from_json(file.read_text(encoding="utf-8"))
