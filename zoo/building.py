"""Makes the parts of a checked config: data, model, task, optimizer, step. Nothing is computed."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from zoo import config as configs
from zoo import data, finetuning, process, remote, storage
from zoo.catalog import catalog
from zoo.errors import UserError
from zoo.families import Family, create_model
from zoo.flops import count_flops
from zoo.layers import fuse
from zoo.native import library
from zoo.tasks import Task, Wing
from zoo.tasks.adapted import Adapted
from zoo.training import loop, lora, processes
from zoo.training.evaluation import Evaluator
from zoo.training.layout import Layout, make_mesh
from zoo.training.optimizers import freeze, make_optimizer
from zoo.training.placement import Table, placement_of, rows_of
from zoo.training.schedules import make_schedule
from zoo.training.settings import Settings
from zoo.training.state import TrainState, create_state
from zoo.training.step import make_train_step
from zoo.training.stopping import StopSignal
from zoo.training.watching import Speed, peak_flops

HostBatch = dict[str, np.ndarray]
Shapes = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of a run, before anything is computed.

    Attributes:
        dataset: the data that are read.
        task: the model joined with its loss and metrics.
        optimizer: the optax chain.
        learning_rate: the learning rate as a function of the step; None if it is not known.
        train_step: the pure train step.
        lengths: the numbers of steps and epochs, and the intervals between events.
        settings: the settings of the run, such as its seed and batch size.
        axes: what the axes of parameters are; see ``Family``.
    """

    dataset: data.Dataset
    task: Task
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule | None
    train_step: Any
    lengths: loop.Lengths
    settings: Settings
    axes: Table = ()


def family_of(config: ConfigDict) -> Family:
    """Returns the family of a checked config's model."""
    return catalog(config.extensions).families[config.model.name]


def wing_of(config: ConfigDict) -> Wing:
    """Returns the wing of a checked config's task."""
    return catalog(config.extensions).wings[config.task.name]


def with_data(config: ConfigDict) -> tuple[ConfigDict, data.Dataset]:
    """Describes the data, and fills in numbers of classes or symbols that the config leaves at 0.

    Examples from which the model cannot learn are left out of the data, which say so.

    Raises:
        UserError: the data are missing, or the config gives fewer classes than the data have.
    """
    wing = wing_of(config)
    fields = {name: config.data[name] for name in wing.data_fields}
    # The config keeps the address, so that the run is the same on another machine.
    if remote.is_remote(fields.get("path", "")):
        fields["path"] = str(remote.local_copy(fields["path"], newest=()))
    dataset = wing.load(**fields)
    config = config.copy_and_resolve_references()
    fields_of_data = {name: n for name, n in dataset.model_fields.items() if name in config.model}
    if dataset.model_fields and not fields_of_data:
        raise configs.ConfigError(
            f"model.name={config.model.name!r} has none of the fields that data.name="
            f"{dataset.name!r} sets: {', '.join(dataset.model_fields)}. Give a model that has them"
        )
    for name, found in fields_of_data.items():
        given = config.model[name]
        if not given:
            config.model[name] = found
        elif given < found:
            raise configs.ConfigError(
                f"model.{name}={given} is fewer than the {found} of data.name={dataset.name!r}: "
                f"give {found}, or 0 to take it from the data"
            )
    return config, wing.select(_model(config), dataset)


def lengths(config: ConfigDict, dataset: data.Dataset) -> loop.Lengths:
    """Returns the length of a config's run, and the intervals between its events."""
    steps_per_epoch = data.steps_per_epoch(
        data.examples_per_epoch(dataset.sizes["train"], config.train.batch_size, dataset.order),
        config.train.batch_size,
    )
    metric = config.checkpoint.metric
    return lengths_of(
        configs.settings(config),
        dataset,
        steps=configs.steps_in_all(config, steps_per_epoch),
        best_metric=metric,
        best_is_lowest=wing_of(config).metrics[metric] == "lowest",
    )


def lengths_of(
    settings: Settings,
    dataset: data.Dataset,
    *,
    steps: int,
    best_metric: str,
    best_is_lowest: bool,
) -> loop.Lengths:
    """Returns the length of a run, and the intervals between its events."""
    size = settings.batch_size
    examples = data.examples_per_epoch(dataset.sizes["train"], size, dataset.order)
    return loop.Lengths(
        steps=steps,
        examples=examples,
        batch_size=size,
        log_every=settings.log_every,
        eval_every=settings.eval_every or data.steps_per_epoch(examples, size),
        save_every=settings.save_every,
        best_metric=best_metric,
        best_is_lowest=best_is_lowest,
    )


def build_task(config: ConfigDict, vocabularies: Mapping[str, data.Vocabulary]) -> Task:
    """Makes the model that a checked config names, and joins it with its task."""
    task, own_data = (
        {name: value for name, value in config[section].items() if name != "name"}
        for section in ("task", "data")
    )
    return wing_of(config).make(_model(config), vocabularies, task, own_data)


def _model(config: ConfigDict) -> nn.Module:
    attributes = {name: value for name, value in config.model.items() if name != "name"}
    if family_of(config).can_rematerialize:
        attributes["remat"] = config.train.remat
    return create_model(config.model.name, catalog(config.extensions).families, **attributes)


def build(config: ConfigDict, dataset: data.Dataset) -> Parts:
    """Makes the parts that a checked config names."""
    how_long = lengths(config, dataset)
    optimizer = {name: value for name, value in config.optimizer.items() if name != "name"}
    schedule = {
        name: optimizer.pop(name) for name in ("warmup_steps", "end_value", "step_size", "gamma")
    }
    learning_rate = make_schedule(
        optimizer.pop("schedule"),
        optimizer.pop("learning_rate"),
        total_steps=how_long.steps,
        **schedule,
    )
    chain = make_optimizer(config.optimizer.name, learning_rate, **optimizer)
    task = build_task(config, dataset.vocabularies)
    return assemble(
        Adapted(task, lora.Lora(**config.lora)) if config.lora.rank else task,
        dataset,
        freeze(chain, config.freeze) if config.freeze else chain,
        how_long,
        configs.settings(config),
        learning_rate=learning_rate,
        axes=family_of(config).axes,
    )


def assemble(
    task: Task,
    dataset: data.Dataset,
    optimizer: optax.GradientTransformation,
    how_long: loop.Lengths,
    settings: Settings,
    *,
    learning_rate: optax.Schedule | None = None,
    axes: Table = (),
) -> Parts:
    """Makes the train step, and returns it with the other parts of a run."""
    train_step = make_train_step(
        task.loss,
        optimizer,
        accumulate=settings.accumulate,
        ema=settings.ema_decay or None,
        precision=settings.precision,
    )
    return Parts(dataset, task, optimizer, learning_rate, train_step, how_long, settings, axes)


def init_state(parts: Parts) -> TrainState:
    """Makes the state of step 0 from the run's seed alone.

    The compiled function runs no forward pass, since it returns only the parameters.
    """
    init_key, run_key = jax.random.split(jax.random.key(parts.settings.seed))
    example = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), train_shapes(parts))
    variables = parts.task.init(init_key, example)
    return create_state(variables, parts.optimizer, run_key, ema=parts.settings.ema_decay > 0)


def state_shapes(parts: Parts) -> TrainState:
    """Returns the shapes and types of a run's state; nothing is computed."""
    shapes: TrainState = jax.eval_shape(lambda: init_state(parts))
    return shapes


def mesh_of(settings: Settings) -> Mesh:
    """Returns the mesh of this program's devices that the settings name; see ``make_mesh``."""
    return make_mesh(settings.devices, settings.fsdp, settings.tensor, settings.sequence)


def layout_of(
    parts: Parts, mesh: Mesh, state: TrainState | None = None
) -> tuple[Layout, list[str]]:
    """Returns where the arrays of a run lie on a mesh; nothing is computed.

    Args:
        parts: the parts of the run.
        mesh: the devices.
        state: what ``state_shapes`` returned, where it is known already.

    Returns:
        The layout, and lines on large parameters that are not divided; see ``placement_of``.
    """
    if mesh.size == 1:
        return Layout(mesh), []
    state = state or state_shapes(parts)
    placement, said = placement_of(parts.axes, frozen_or_trained(state), mesh)
    own = {name: state.model_state.get(name) for name in parts.task.own_state}
    return Layout(mesh, placement | rows_of(own, mesh)), said


def frozen_or_trained(state: TrainState) -> Any:
    """Returns the model's own parameters: with LoRA the frozen ones, to which others are added."""
    return state.model_state.get(lora.BASE, state.params)


def state_bytes(parts: Parts) -> int:
    """Returns the bytes of a run's state; nothing is computed."""
    shapes = state_shapes(parts)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def model_flops(parts: Parts) -> int:
    """Returns the operations that the model needs for a training step; nothing is computed.

    They are three times those of the forward pass, since a product has two gradients, of the size
    of the product each. What is computed again to save memory is no part of them.
    """
    state = state_shapes(parts)
    key = jax.eval_shape(lambda: jax.random.key(0))
    forward = count_flops(
        parts.task.loss, state.params, state.model_state, train_shapes(parts), key
    )
    return 3 * forward


def speed(parts: Parts, layout: Layout) -> Speed:
    """Returns what the records of a run say about its speed."""
    device = layout.mesh.devices.flat[0]
    said = Speed(devices=layout.devices, tokens=parts.task.counts_tokens)
    peak = peak_flops(device.device_kind)
    if peak is None:
        # Tracing takes a while, and says nothing without a peak.
        return said
    state = state_shapes(parts)
    done = count_flops(parts.train_step, state, train_shapes(parts), platform=device.platform)
    return dataclasses.replace(
        said,
        flops_per_step=float(model_flops(parts)),
        flops_with_remat=float(done),
        peak=peak,
    )


def started(parts: Parts, config: ConfigDict, state: TrainState) -> tuple[TrainState, list[str]]:
    """Loads the weights that ``init_from`` names into the state of step 0; also returns log lines.

    With LoRA they are those that stay frozen.

    Raises:
        UserError: the weights do not fit, or ``reset`` or ``freeze`` matches nothing.
    """
    said = []
    if config.freeze:
        said.append(finetuning.frozen_paths(state.params, config.freeze)[1])
    if not config.init_from:
        return state, said
    variables, line = finetuning.start_from(
        config.init_from,
        family_of(config),
        parts.task.model,
        {"params": frozen_or_trained(state)} | weights_in(state.model_state, parts.task),
        reset=config.reset,
    )
    params = variables.pop("params")
    if config.lora.rank:
        trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        frozen = sum(leaf.size for leaf in jax.tree.leaves(params))
        kernels = len(jax.tree.leaves(state.params)) // 2
        said.append(
            f"{trained:,} parameters of rank {config.lora.rank} are added to {kernels} kernels and "
            f"trained; {frozen:,} are frozen"
        )
        model_state = {**state.model_state, **variables, lora.BASE: params}
        return dataclasses.replace(state, model_state=model_state), [line, *said]
    return (
        dataclasses.replace(
            state,
            params=params,
            model_state={**state.model_state, **variables},
            ema_params=None if state.ema_params is None else jax.tree.map(jnp.array, params),
        ),
        [line, *said],
    )


def weights_in(model_state: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Returns the collections of a model state that belong to the model, not to its task."""
    others = (*task.own_state, lora.BASE)
    return {name: values for name, values in model_state.items() if name not in others}


# Each compiled program takes megabytes; the least recently used ones are removed first.
_CACHE_BYTES = 2 << 30


def start_jax(config: ConfigDict) -> str:
    """Configures the process, and makes JAX use the platform that a config names.

    Returns:
        A few words that name the settings, for a log.

    Raises:
        UserError: the platform is not available, JAX already runs on another one, or the
            processes of the run did not find each other.
    """
    if config.process_settings:
        library.ask()
        said = [process.tune_allocator(), library.describe(), _keep_compiled_programs()]
    else:
        os.environ[library.SWITCH] = "off"
        said = ["process as it is"]
    process.quiet_libtpu()
    processes.start(platform=config.platform, **config.distributed)
    _choose_platform(config.platform)
    joined = processes.in_words()
    return ", ".join([joined, *said] if joined else said)


def _keep_compiled_programs() -> str:
    folder = jax.config.values["jax_compilation_cache_dir"]
    if folder is None:
        folder = process.compilation_cache_folder()
        try:
            process.make_private(folder)
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
    parts: Parts,
    *,
    first: int = 0,
    batch_size: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Iterator[HostBatch]]:
    """Opens this process's rows of the training batches, starting with batch ``first``.

    Args:
        parts: the data and the lengths.
        first: the number of the first batch.
        batch_size: the number of rows of the global batch; None takes that of the settings.
        share: which part of the rows this process reads, and the number of parts; see
            ``zoo.training.processes.share_of_rows``.
    """
    dataset, settings = parts.dataset, parts.settings
    batches = data.train_batches(
        dataset.open("train"),
        dataset.transform(True),
        batch_size=batch_size or settings.batch_size,
        seed=settings.seed,
        start=first,
        stop=parts.lengths.steps,
        order=dataset.order,
        process_index=share[0],
        process_count=share[1],
        workers=settings.workers,
        prefetch=settings.prefetch,
    )
    with contextlib.closing(batches):
        yield batches


def train_shapes(parts: Parts) -> Shapes:
    """Returns the shapes of a global training batch, taken from one transformed example."""
    one = data.train_batches(
        parts.dataset.open("train"),
        parts.dataset.transform(True),
        batch_size=1,
        seed=parts.settings.seed,
        stop=1,
        order=parts.dataset.order,
    )
    return _with_rows(one, parts.settings.batch_size)


def eval_shapes(dataset: data.Dataset, split: str, rows: int) -> Shapes:
    """Returns the shapes of a global batch of evaluation, taken from one transformed example."""
    return _with_rows(_eval_batches(dataset, split, 1, (0, 1)), rows)


def _eval_batches(
    dataset: data.Dataset, split: str, rows: int, share: tuple[int, int]
) -> data.batching.Batches:
    return data.eval_batches(
        dataset.open(split),
        dataset.transform(False),
        batch_size=rows,
        process_index=share[0],
        process_count=share[1],
    )


def make_evaluator(
    task: Task,
    dataset: data.Dataset,
    settings: Settings,
    layout: Layout,
    stop: StopSignal | None = None,
) -> Evaluator:
    """Returns the evaluator of a task on the splits of a data set.

    Args:
        task: the model joined with its metrics.
        dataset: the data that are read.
        settings: the run's settings; ``seed``, ``precision`` and ``eval_batch_size`` are used.
        layout: where arrays lie.
        stop: checked between two batches.
    """

    @contextlib.contextmanager
    def batches(split: str, rows: int) -> Iterator[Iterator[HostBatch]]:
        share = processes.share_of_rows(layout.rows)
        with contextlib.closing(_eval_batches(dataset, split, rows, share)) as opened:
            yield opened

    return Evaluator(
        task,
        batches,
        layout,
        batch_size=settings.eval_batch_size,
        shapes=lambda split, rows: eval_shapes(dataset, split, rows),
        precision=settings.precision,
        seed=settings.seed,
        fuse=fuse,
        stop=stop,
    )


def _with_rows(batches: data.batching.Batches, rows: int) -> Shapes:
    with contextlib.closing(batches):
        batch = next(batches)
    return {
        name: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype)
        for name, array in batch.items()
    }


def check_divisible(settings: Settings, layout: Layout, names: Mapping[str, str]) -> None:
    """Raises ConfigError if batches cannot be divided over the devices.

    Args:
        settings: the batch sizes.
        layout: the devices.
        names: the user's name of each setting.
    """
    processes = jax.process_count()
    if layout.row_parts % processes:
        axes = " x ".join(names.get(axis, axis) for axis in ("devices", "fsdp"))
        raise configs.ConfigError(
            f"{axes} = {layout.row_parts} must be a multiple of the {processes} processes, since "
            "each reads rows of its own: keep the other axes of the mesh within a process"
        )
    for name in ("batch_size", "eval_batch_size"):
        size, parts = getattr(settings, name), settings.accumulate if name == "batch_size" else 1
        if (size // parts) % layout.row_parts:
            fewer = " x ".join(names.get(axis, axis) for axis in ("devices", "fsdp"))
            raise configs.ConfigError(
                f"{names.get(name, name)}={size} cannot be divided over {layout.row_parts} devices"
                f"{' in every accumulated part' if parts > 1 else ''}: take a "
                f"multiple of {layout.row_parts}, or fewer devices with {fewer}"
            )


def read_config(workdir: Path) -> ConfigDict:
    """Returns the config of a run.

    Raises:
        UserError: the folder does not hold a run.
    """
    file = workdir / "config.json"
    if not os.path.lexists(file):
        raise UserError(f"--workdir={workdir} holds no run: there is no {file}")
    way_out = "Bring it back from a copy: the run cannot be used without it"
    storage.read_object(file, way_out)
    try:
        return configs.from_json(storage.read_text(file, way_out))
    except configs.ConfigError as error:
        raise configs.ConfigError(f"{file}: {error}") from error
