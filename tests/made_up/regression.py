"""The made-up task: the line through points."""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import numpy as np
from jaxtyping import PRNGKeyArray

from made_up.data import load_lines
from zoo import fields
from zoo.data import Dataset, Vocabulary
from zoo.reports.plots import new_figure, save
from zoo.reports.sections import Figure, Section, Table
from zoo.tasks import Answer, SumsTask, Verb, Wing
from zoo.tasks.loaded import Loaded
from zoo.tasks.task import Batch, Sums


@dataclasses.dataclass(frozen=True)
class Regression(SumsTask):
    """The squared error of each point, times ``scale``."""

    model: nn.Module
    scale: float = 1.0

    references: ClassVar[tuple[str, ...]] = ("y",)

    def init(self, key: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        """Returns the model's variables."""
        return dict(self.model.init(key, batch["x"][:1]))

    def sums(self, params: Any, batch: Batch, key: PRNGKeyArray | None = None) -> Sums:
        """Returns ``loss`` and ``misfit``."""
        made: Any = self.model.apply({"params": params}, batch["x"])
        errors = ((made - batch["y"]) ** 2).mean(axis=1)
        mask = batch["mask"]
        return {
            "loss": ((self.scale * errors * mask).sum(), mask.sum()),
            "misfit": ((errors * mask).sum(), mask.sum()),
        }

    def predict(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> dict[str, Any]:
        """Returns ``y``."""
        return {"y": self.model.apply({"params": params}, batch["x"])}

    def score(
        self, outputs: dict[str, np.ndarray], references: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        """Returns the largest error, and the first points."""
        worst = float(np.abs(outputs["y"] - references["y"]).max())
        return {"metrics": {"worst": worst}, "first_points": references["y"][0].tolist()}


def _encode(loaded: Loaded, given: str) -> dict[str, np.ndarray]:
    return {"x": np.asarray([float(number) for number in given.split()], np.float32)}


def _continue(loaded: Loaded, options: argparse.Namespace, say: Any) -> Iterator[Answer]:
    for given in options.inputs:
        x = _encode(loaded, given)["x"]
        made: Any = loaded.module.apply(loaded.variables, x[None])
        output = np.asarray(made[0]).tolist()
        yield Answer(given, output, (" ".join(f"{value:.3f}" for value in output),))


def _draw(
    report: Mapping[str, Any],
    folder: Path,
    vocabularies: Mapping[str, Vocabulary],
    dataset: Dataset,
) -> None:
    figure, (axis,) = new_figure(ncols=1, size=(3.0, 3.0))
    axis.plot(report["first_points"])
    save(figure, folder / "points.png")


def _sections(report: Mapping[str, Any], folder: Path) -> tuple[Section, ...]:
    row = tuple(f"{value:.3f}" for value in report["first_points"])
    columns = tuple(f"point {index}" for index in range(len(row)))
    return (Figure("Points", "points.png"), Table("First points", columns, (row,)))


WING = Wing(
    name="regression",
    kinds=("line",),
    fields=fields.of(Regression, {"scale": fields.ABOVE_ZERO}),
    data_fields={
        "name": fields.Field("lines", fields.choice("lines")),
        **fields.of(load_lines, {"points": fields.at_least(1), "noise": fields.at_least(0)}),
    },
    metrics={"loss": "lowest", "misfit": "lowest"},
    load=load_lines,
    make=lambda model, vocabularies, task, data: Regression(model, **task),
    encode=_encode,
    verbs={
        "lay": Verb(
            "the line's values at places",
            lambda parser: parser.add_argument("inputs", nargs="+", help="places") and None,
            _continue,
        )
    },
    draw=_draw,
    sections=_sections,
)
