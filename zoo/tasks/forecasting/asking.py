"""Forecasts the values that follow a series in a file."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float32

from zoo.data.reading import read_text
from zoo.data.series import Series, columns, read_series
from zoo.errors import UserError
from zoo.tasks.forecasting.page import draw_bands
from zoo.tasks.loaded import Loaded
from zoo.tasks.wing import Answer, Say, Verb, png
from zoo.training.layout import jit


@dataclasses.dataclass(frozen=True)
class Forecast:
    """A forecast of the values that follow a series.

    Attributes:
        dates: the dates of the forecast values, which continue the steps of the series. They are
            ``datetime.datetime`` if steps are shorter than a day.
        probabilities: the probabilities of the quantiles, in increasing order. The middle quantile
            is the forecast.
        quantiles: the quantiles for each date.
        series: the values from which the forecast was made.
        filled: the number of missing values in the whole file that were filled along a straight
            line.
        notes: the step of the series, and how many values were filled, in words.
    """

    dates: tuple[datetime.date, ...]
    probabilities: tuple[float, ...]
    quantiles: Float32[np.ndarray, "horizon quantiles"]
    series: Float32[np.ndarray, " context"]
    filled: int
    notes: tuple[str, ...] = ()


def encode(loaded: Loaded, given: str) -> dict[str, np.ndarray]:
    """Returns ``series`` and ``phase`` of the end of a file's series.

    Raises:
        UserError: see ``forecast``.
    """
    return _end(loaded, _read(loaded, given), given)


def forecast(loaded: Loaded, path: str) -> Forecast:
    """Returns quantiles of the values that follow a series.

    Args:
        loaded: a run of ``configs/forecast.py``.
        path: a ``.csv``, ``.tsv`` or ``.jsonl`` file with the run's own columns of time and value.

    Raises:
        UserError: the run is of another task, the file has an error in a line that is named, or
            the series is shorter than the model's context.
    """
    loaded.need("forecasting", "forecast")
    series = _read(loaded, path)
    seen = _end(loaded, series, path)
    model: Any = loaded.module
    compiled = loaded.compiled("forecast", lambda: jit(model.apply))
    made = compiled(loaded.variables, seen["series"][None], seen["phase"][None])
    last = len(series.values) - 1
    return Forecast(
        dates=tuple(series.date(last + 1 + i) for i in range(model.horizon)),
        probabilities=tuple(model.quantiles),
        quantiles=np.asarray(made)[0],
        series=seen["series"],
        filled=len(series.filled),
        notes=series.notes,
    )


def _read(loaded: Loaded, path: str) -> Series:
    fields = loaded.config.data
    names = columns(fields.name, fields.time_column, fields.value_column)
    return read_series(path, read_text(path, field=""), *names, fields.frequency)


def _end(loaded: Loaded, series: Series, path: str) -> dict[str, np.ndarray]:
    context = loaded.config.data.context
    if len(series.values) < context:
        raise UserError(
            f"{path} has {len(series.values)} values; this run reads data.context={context}"
        )
    return {
        "series": series.values[-context:].astype(np.float32),
        "phase": np.asarray(series.phase(len(series.values) - 1), np.float32),
    }


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", help="files of series, for what comes next")
    parser.add_argument(
        "--plot", type=png("--plot"), default=None, help="the PNG file to draw the forecast in"
    )


def _answer(loaded: Loaded, options: argparse.Namespace, say: Say) -> Iterator[Answer]:
    for file in options.inputs:
        made = forecast(loaded, file)
        names = [f"quantile_{probability:g}" for probability in made.probabilities]
        rows: list[dict[str, Any]] = [
            {"date": day.isoformat(), **dict(zip(names, map(float, values), strict=True))}
            for day, values in zip(made.dates, made.quantiles, strict=True)
        ]
        for note in made.notes:
            say(note)
        if options.plot:
            draw_bands(options.plot, [{"series": made.series, "quantiles": made.quantiles}])
            say(f"plot in {options.plot}")
        lines = [
            ",".join(["date", *names]),
            *(",".join([row["date"], *(f"{row[name]:.6g}" for name in names)]) for row in rows),
        ]
        yield Answer(file, rows, ("\n".join(lines),))


VERBS = {"predict": Verb("forecasts of series", _add_arguments, _answer)}
