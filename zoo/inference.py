"""What is done with a finished run: load it, evaluate it, and ask it."""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from zoo import building, data
from zoo import config as configs
from zoo.errors import UserError
from zoo.tasks import Task
from zoo.training.checkpoints import Checkpoints
from zoo.training.partitioning import make_mesh, replicated


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A run's model with its weights.

    Attributes:
        module: the linen module.
        variables: its variables, the average of the parameters where the run kept one:
            ``module.apply(variables, ...)``.
        vocabularies: what the data's numbers stand for, by name.
        config: the run's config.
        task: the module joined with its loss and metrics.
        step: number of updates.
    """

    module: nn.Module
    variables: dict[str, Any]
    vocabularies: dict[str, data.Vocabulary]
    config: ConfigDict
    task: Task
    step: int


def load(workdir: str | Path, *, checkpoint: str = "latest") -> Loaded:
    """Loads a run; neither its data nor its devices are needed.

    Args:
        workdir: the run's folder; it is only read.
        checkpoint: ``latest`` or ``best``.

    Raises:
        UserError: the folder holds no run, or has no such checkpoint.
    """
    workdir = Path(workdir)
    config = building.read_config(workdir)
    file = workdir / "vocabulary.json"
    if not file.is_file():
        raise UserError(f"the run in {workdir} is not whole: there is no {file}")
    vocabularies = data.vocabularies_from_json(file.read_text(encoding="utf-8"))
    building.choose_platform(config.platform)
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        read = checkpoints.read_state(checkpoint, replicated(make_mesh(1)))
    finally:
        checkpoints.close()
    if read is None:
        raise UserError(f"the work directory {workdir} has no {checkpoint} checkpoint")
    state, step = read
    task = building.build_task(config, vocabularies)
    params = state.get("ema_params") or state["params"]
    variables = {"params": params} | state.get("model_state", {})
    return Loaded(task.model, variables, vocabularies, config, task, step)


def evaluate(
    workdir: str | Path, config: ConfigDict, *, split: str = "test", checkpoint: str = "latest"
) -> dict[str, Any]:
    """Evaluates the checkpoint of a run on a split.

    Args:
        workdir: the run's folder; it is only read.
        config: the run's config, with another data set if wanted.
        split: name of the split, or several joined by ``+``.
        checkpoint: ``latest`` or ``best``.

    Returns:
        ``split, step, metrics`` and the task's scores.

    Raises:
        UserError: there is no such checkpoint, or the data do not fit the model.
    """
    config, dataset = building.with_data(configs.check(config))
    dataset.open(split)
    loaded = load(workdir, checkpoint=checkpoint)
    evaluator = building.Evaluator(config, dataset, loaded.task, make_mesh(config.mesh.data))
    model_state = {name: v for name, v in loaded.variables.items() if name != "params"}
    metrics = evaluator.means(loaded.variables["params"], model_state, split)
    scores = evaluator.scores(loaded.variables["params"], model_state, split)
    metrics |= scores.pop("metrics", {})
    return {"split": split, "step": loaded.step, "metrics": metrics} | scores
