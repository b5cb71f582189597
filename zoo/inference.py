"""Uses of a finished run, whatever its task: load it, evaluate it, export it."""

import importlib.resources
import json
import math
import os
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from zoo import building, data, finetuning, remote, storage
from zoo import config as configs
from zoo.catalog import catalog
from zoo.errors import UserError
from zoo.families import Family, create_model, find, list_models
from zoo.flops import count_flops
from zoo.pretrained import save_pretrained, tables_of
from zoo.reports.page import in_words, made
from zoo.reports.sections import Run
from zoo.tasks.loaded import Loaded
from zoo.tokenizers import characters
from zoo.training import lora
from zoo.training.checkpoints import Checkpoints
from zoo.training.layout import Layout, make_mesh
from zoo.training.placement import placement_of
from zoo.training.settings import Settings
from zoo.weights.adapters import peft_adapter
from zoo.weights.files import write_weights

__all__ = ["Loaded", "describe_models", "evaluate", "export", "load", "shown"]


def load(workdir: str | Path, *, checkpoint: str = "latest") -> Loaded:
    """Loads a run; needs neither its data nor its devices.

    The functions that use a loaded run are in ``zoo.tasks``, such as
    ``zoo.tasks.forecasting.forecast(loaded, "co2.csv")``. ``docs/using.md`` has an example for each
    config.

    Args:
        workdir: the run's folder, or its address on an object store, from which it is copied;
            nothing is written to it.
        checkpoint: ``latest`` or ``best``.

    Raises:
        UserError: the folder does not hold a run, or has no such checkpoint.
    """
    workdir = remote.local(workdir)
    config = building.read_config(workdir)
    vocabularies = _vocabularies(workdir)
    building.start_jax(config)
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        read = checkpoints.read_state(checkpoint, Layout(make_mesh(1)))
    finally:
        checkpoints.close()
    if read is None:
        raise UserError(f"the work directory {workdir} has no {checkpoint} checkpoint")
    state, step = read
    try:
        task = building.build_task(config, vocabularies)
    except KeyError as error:
        raise storage.DamagedFile(
            f"{workdir / 'vocabulary.json'} is damaged: it lacks the vocabulary {error}. Bring it "
            "back from a copy: the run cannot be used without it"
        ) from error
    params = state["ema_params"] or state["params"]
    if config.lora.rank:
        base = _base(config, task.model, state["model_state"][lora.BASE])
        params = lora.merged(base, params, config.lora.alpha)
    variables = {"params": params} | building.weights_in(state["model_state"], task)
    return Loaded(task.model, variables, vocabularies, config, task, step, building.wing_of(config))


def _base(config: ConfigDict, module: Any, digest: Any) -> Any:
    """Returns the weights that a run's low ranks are added to.

    Raises:
        UserError: they cannot be read, or have changed.
    """
    family = building.family_of(config)
    inputs = family.example(module)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), **inputs))
    variables, _ = finetuning.start_from(config.init_from, family, module, shapes)
    lora.check_base(digest, lora.digest(variables["params"]))
    return variables["params"]


def _vocabularies(workdir: Path) -> dict[str, data.Vocabulary]:
    """Reads the vocabularies of a run."""
    file = workdir / "vocabulary.json"
    if not os.path.lexists(file):
        raise UserError(f"the run in {workdir} is incomplete: there is no {file}")
    way_out = "Bring it back from a copy: the run cannot be used without it"
    content = storage.read_object(file, way_out)
    try:
        return data.vocabularies_from_json(content)
    except data.DataError as error:
        raise storage.DamagedFile(f"{file} is damaged: {error}. {way_out}") from error


def evaluate(
    workdir: str | Path, config: ConfigDict, *, split: str = "test", checkpoint: str = "latest"
) -> dict[str, Any]:
    """Evaluates the checkpoint of a run on a split.

    Args:
        workdir: the run's folder; nothing is written to it.
        config: the run's config; it may name another data set.
        split: the name of a split, or several names joined by ``+``.
        checkpoint: ``latest`` or ``best``.

    Returns:
        ``split``, ``step``, ``metrics`` and the task's scores; also ``notes``, lines on what was
        left out of the data, if there are any.

    Raises:
        UserError: there is no such checkpoint, or the data do not fit the model.
    """
    config = configs.check(config)
    # This comes before the data, as in ``zoo.run``, because it configures the process.
    loaded = load(workdir, checkpoint=checkpoint)
    config, dataset = building.with_data(config)
    _check_symbols(loaded, dataset)
    dataset.open(split)
    settings = configs.settings(config)
    mesh, notes = _mesh_here(settings)
    placement, _ = placement_of(building.family_of(config).axes, loaded.params, mesh)
    layout = Layout(mesh, placement)
    evaluator = building.make_evaluator(loaded.task, dataset, settings, layout)
    metrics = evaluator.means(loaded.params, loaded.model_state, split)
    scores = evaluator.scores(loaded.params, loaded.model_state, split)
    metrics |= scores.pop("metrics", {})
    made = {"split": split, "step": loaded.step, "metrics": metrics} | scores
    notes = [*dataset.notes, *notes]
    return made | {"notes": notes} if notes else made


def _mesh_here(settings: Settings) -> tuple[Mesh, list[str]]:
    """Returns the mesh of a run, or one device where it has more devices than are here."""
    sizes = (settings.devices, settings.fsdp, settings.tensor, settings.sequence)
    needed, here = math.prod(size for size in sizes if size != -1), len(jax.devices())
    fits = needed <= here and (-1 not in sizes or here % needed == 0)
    if fits:
        return building.mesh_of(settings), []
    return make_mesh(1), [
        f"evaluated on one device: the run's mesh of {needed} devices does not fit the {here} here"
    ]


def _check_symbols(loaded: Loaded, dataset: data.Dataset) -> None:
    """Raises UserError if a number of the data stands for another symbol than in the run.

    Classes may be named otherwise, because a model does not read them.
    """
    for name, known in loaded.vocabularies.items():
        found = dataset.vocabularies.get(name)
        if known.kind != "class name" and found is not None and found.symbols != known.symbols:
            new = [symbol for symbol in found.symbols if symbol not in known.numbers]
            raise UserError(
                f"the {len(found)} {known.kind}s of data.name={dataset.name!r} are not the "
                f"{len(known)} of the run, so the model would read other {known.kind}s than are "
                f"there{f' (new are {new[:5]})' if new else ''}: evaluate the data that it was "
                "trained on"
            )


def describe_models(pattern: str = "*") -> list[dict[str, Any]]:
    """Describes the models whose names match; nothing is computed.

    Each model has ``name``, ``parameters``, ``gflop`` (the products and convolutions of a forward
    pass), ``input`` and ``verified``. The last names what the model was compared with and the
    largest difference of gradients in float64. It comes from ``zoo/families/verified.json``, which
    the tests write.
    """
    file = importlib.resources.files("zoo.families").joinpath("verified.json")
    verified = json.loads(file.read_text(encoding="utf-8"))
    rows = []
    for name in list_models(pattern):
        module = create_model(name)
        inputs = find(name).example(module)
        shapes = jax.eval_shape(lambda m=module, i=inputs: m.init(jax.random.key(0), **i))
        flops = count_flops(lambda v, m=module, i=inputs: m.apply(v, **i), shapes)
        known = verified.get(type(module).__name__)
        checked = f"{known['reference']} ({known['gradient']['float64']:.0e})" if known else "no"
        rows.append(
            {
                "name": name,
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])),
                "gflop": flops / 1e9,
                "input": ", ".join(f"{key} {list(x.shape)}" for key, x in inputs.items()),
                "verified": checked,
            }
        )
    return rows


def export(
    workdir: str | Path,
    out: str | Path | None = None,
    *,
    checkpoint: str = "latest",
    adapter: bool = False,
) -> Path:
    """Writes a run's weights as safetensors, with the reference's names, and ``config.json``.

    A language model of characters has its ``tokenizer.json`` too. ``zoo.from_pretrained`` reads
    the folder again, and so does the reference's library where it has the model: see
    ``zoo.pretrained.save_pretrained``.

    Args:
        workdir: the run's folder; nothing is written to it.
        out: the folder to write to; None writes to ``export`` in the run's folder.
        checkpoint: ``latest`` or ``best``.
        adapter: write the low ranks alone that a run with ``lora.rank`` has trained, in the format
            of the library ``peft``; by default they are added to the weights.

    Returns:
        The path of ``model.safetensors``, or of ``adapter_model.safetensors``.

    Raises:
        UserError: there is no such checkpoint, the run has no low ranks, or the folder cannot be
            written.
    """
    if out is None and remote.is_remote(workdir):
        raise UserError(f"the run is on an object store, {workdir}: give --out, a local folder")
    if adapter:
        return _export_adapter(remote.local(workdir), Path(out) if out else None, checkpoint)
    loaded = load(workdir, checkpoint=checkpoint)
    family = building.family_of(loaded.config)
    description = {
        "model": loaded.config.model.to_dict(),
        "data": loaded.config.data.to_dict(),
        "labels": {name: list(v.symbols) for name, v in loaded.vocabularies.items()},
        "step": loaded.step,
    }
    folder = Path(out) if out else Path(workdir) / "export"
    return save_pretrained(
        folder, family, loaded.module, loaded.variables, description, _tokenizer_of(loaded, family)
    )


def _export_adapter(workdir: Path, out: Path | None, checkpoint: str) -> Path:
    config = building.read_config(workdir)
    if not config.lora.rank:
        raise UserError(f"the run in {workdir} has lora.rank=0: export its weights without --lora")
    loaded = load(workdir, checkpoint=checkpoint)
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        read = checkpoints.read_state(checkpoint, Layout(make_mesh(1)))
    finally:
        checkpoints.close()
    assert read is not None, "load has read it"
    tables = tables_of(building.family_of(config), loaded.module, loaded.params, loaded.variables)
    (library, table), *_ = tables.items()
    if library != "transformers":
        raise UserError(f"peft has no model that is named as by {library}: export without --lora")
    arrays, description = peft_adapter(
        read[0]["ema_params"] or read[0]["params"],
        table,
        alpha=config.lora.alpha,
        dropout=config.lora.dropout,
        base=str(config.init_from),
    )
    return write_weights(
        out or workdir / "adapter",
        arrays,
        description,
        file="adapter_model.safetensors",
        config="adapter_config.json",
    )


def _tokenizer_of(loaded: Loaded, family: Family) -> dict[str, str]:
    """Returns the files of a tokenizer that reads texts as the run does; empty if none can.

    A run's characters are one. What a run calls words, no tokenizer of others cuts out alike.
    """
    known = loaded.vocabularies.get("characters")
    if family.kind != "causal_lm" or known is None or max(map(len, known.symbols)) > 1:
        return {}
    return characters(known.symbols)


def shown(name: str, folder: Path, report: dict[str, Any]) -> Run:
    """Returns a finished run as the report page shows it.

    Args:
        name: the run's name on the page.
        folder: the run's folder.
        report: the content of the run's ``report.json``.

    Raises:
        UserError: the folder does not hold a run.
    """
    description = storage.read_object(
        folder / "config.json", "Bring it back from a copy: the run cannot be shown without it"
    )
    # A run of zoo.fit has no wing, so its page shows only what every run has.
    if "fit" in description:
        return Run(name, folder, report)
    try:
        wing = catalog(tuple(description.get("extensions", ()))).wings[description["task"]["name"]]
    except (KeyError, TypeError) as error:
        raise storage.DamagedFile(
            f"{folder / 'config.json'} names no task of the zoo ({in_words(error)}): if it is "
            "damaged, bring it back from a copy"
        ) from error
    sections = made("Sections", lambda: wing.sections(report, folder))
    return Run(name, folder, report, tuple(sections))
