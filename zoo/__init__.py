"""A functional model zoo for JAX.

The packages are ``zoo.models`` and ``zoo.layers`` (linen modules), ``zoo.families`` (names, sizes
and weights of the models), ``zoo.losses`` and ``zoo.metrics`` (pure functions), ``zoo.tasks`` (what
is trained), ``zoo.training`` (the shared train step, checkpoints and loop), ``zoo.data`` and
``zoo.config``. ``zoo.run`` joins them for a config, and ``zoo.fit`` for your own model and data.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from zoo.errors import UserError

__all__ = [
    "UserError",
    "create_model",
    "fit",
    "from_pretrained",
    "list_models",
    "load",
    "load_state",
    "make_task",
    "run",
    "save_state",
    "use_kernels",
]


def run(config: ConfigDict, workdir: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Trains what a config describes and returns its report: see ``zoo.runner.run``."""
    from zoo import process
    from zoo.native import library

    if config.get("process_settings"):
        # This runs before the first thread starts: that thread would keep a heap of its own.
        process.tune_allocator()
        library.ask()
        if config.get("platform") in ("auto", "cpu"):
            # This happens while Python imports the rest.
            library.compile_ahead()
    # The composition root imports every package; `import zoo` should not pay for that.
    from zoo import runner

    return runner.run(config, workdir, **options)


def fit(task: Any, **options: Any) -> Any:
    """Trains your own task on your own data: see ``zoo.runner.fit``."""
    use_kernels()
    from zoo import runner

    return runner.fit(task, **options)


def make_task(model: Any, loss: Any) -> Any:
    """Joins a linen module with a loss, for ``zoo.fit``: see ``zoo.tasks.make_task``."""
    from zoo import tasks

    return tasks.make_task(model, loss)


def load(workdir: str | Path, *, checkpoint: str = "latest") -> Any:
    """Loads a finished run: see ``zoo.inference.load``."""
    from zoo import inference

    return inference.load(workdir, checkpoint=checkpoint)


def save_state(folder: str | Path, state: Any) -> None:
    """Writes a state, such as your own, to disk: see ``zoo.training.checkpoints.save_state``."""
    from zoo.training import checkpoints

    checkpoints.save_state(folder, state)


def load_state(folder: str | Path, like: Any) -> Any:
    """Reads what ``save_state`` wrote: see ``zoo.training.checkpoints.load_state``."""
    from zoo.training import checkpoints

    return checkpoints.load_state(folder, like)


def use_kernels() -> None:
    """Lets this process compile and use the C++ kernels of ``zoo.layers``, as runs do.

    Without it, code that only imports ``zoo.layers`` or ``zoo.models`` uses XLA's operations, and
    no C++ compiler runs. The environment variable ``ZOO_KERNELS`` takes precedence.
    """
    from zoo.native import library

    library.ask()


def create_model(name: str, **overrides: Any) -> Any:
    """Returns a model's linen module by name: see ``zoo.families.create_model``."""
    from zoo import families

    return families.create_model(name, **overrides)


def from_pretrained(
    name: str | Path, path_or_hub_id: str | Path | None = None, **overrides: Any
) -> Any:
    """Returns a model with published weights: see ``zoo.pretrained.from_pretrained``."""
    from zoo import pretrained

    return pretrained.from_pretrained(name, path_or_hub_id, **overrides)


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of the models that match a pattern, such as ``resnet*``."""
    from zoo import families

    return families.list_models(pattern)
