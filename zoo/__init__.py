"""A functional model zoo for JAX.

Rooms: ``zoo.models`` and ``zoo.layers`` (linen modules), ``zoo.losses`` and ``zoo.metrics`` (pure
functions), ``zoo.tasks`` (what is trained), ``zoo.training`` (the shared train step, checkpoints
and loop), ``zoo.data`` and ``zoo.config``. ``zoo.run`` joins them.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from zoo.errors import UserError

__all__ = ["UserError", "create_model", "from_pretrained", "list_models", "load", "run"]


def run(config: ConfigDict, workdir: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Trains what a config describes and returns its report: see ``zoo.runner.run``."""
    from zoo import process
    from zoo.kernels import library

    if config.get("process_settings"):
        # Before the first thread is started: it would have a heap of its own for good.
        process.tune_allocator()
        if config.get("platform") in ("auto", "cpu"):
            # Beside what Python imports next.
            library.compile_ahead()
    # The composition root imports every room; `import zoo` does not pay for it.
    from zoo import runner

    return runner.run(config, workdir, **options)


def load(workdir: str | Path, *, checkpoint: str = "latest") -> Any:
    """Loads a finished run: see ``zoo.inference.load``."""
    from zoo import inference

    return inference.load(workdir, checkpoint=checkpoint)


def create_model(name: str, **overrides: Any) -> Any:
    """Returns a model's linen module by name: see ``zoo.models.create_model``."""
    from zoo import models

    return models.create_model(name, **overrides)


def from_pretrained(name: str, path_or_hub_id: str | Path, **overrides: Any) -> Any:
    """Returns a model with published weights: see ``zoo.pretrained.from_pretrained``."""
    from zoo import pretrained

    return pretrained.from_pretrained(name, path_or_hub_id, **overrides)


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of the models that match a pattern, such as ``resnet*``."""
    from zoo import models

    return models.list_models(pattern)
