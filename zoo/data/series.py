"""Time series, cut into windows of past and future values."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int

from zoo.data.columns import parse_columns
from zoo.data.datasets import Dataset
from zoo.data.sources import DataError, Example
from zoo.data.text import embedded_text, read_text
from zoo.errors import did_you_mean

NAMES = ("co2_weekly", "series")
_SHARES = (0.7, 0.1)
_EPOCH = datetime.date(2000, 1, 1)


def load_series(
    name: str,
    *,
    path: str = "",
    time_column: str = "date",
    value_column: str = "value",
    context: int = 156,
    horizon: int = 52,
    period: int = 52,
) -> Dataset:
    """Describes windows of a series: ``context`` values, and the ``horizon`` values after them.

    Windows whose forecast ends in the first 70 % of the series are ``train``. Windows whose
    forecast lies in the next 10 % are ``validation``, and those whose forecast lies in the rest are
    ``test``. Missing values are interpolated linearly. Windows that begin or forecast in a filled
    stretch of more than ``context`` values are left out.

    Args:
        name: ``co2_weekly`` comes with the package; ``series`` is your own file.
        path: the file for ``series``: a UTF-8 ``.csv`` with a header.
        time_column: the column with increasing dates, ``YYYY-MM-DD`` or ``YYYYMMDD``.
        value_column: the column with the numbers; an empty cell is a missing value.
        context: number of values that are read.
        horizon: number of values that are forecast.
        period: number of values in a season, for the naive forecast.

    Raises:
        DataError: the file is absent or too short, or a line is wrong; the message names the line.
    """
    if name not in NAMES:
        raise DataError(f"data.name={name!r} is unknown.{did_you_mean(name, NAMES)}")
    if name == "co2_weekly":
        if path:
            raise DataError(
                f"data.path={path!r} has no meaning for data.name='co2_weekly': use "
                "data.name='series' for your own series"
            )
        text = embedded_text("co2_weekly.csv.gz")
        series = read_series("co2_weekly.csv", text, *columns(name, time_column, value_column))
    else:
        if not path:
            raise DataError("data.name='series' needs data.path: a .csv file")
        series = read_series(path, read_text(path), time_column, value_column)
    values = series.values
    if context < period:
        raise DataError(
            f"data.context={context} must be at least data.period={period}: the naive forecast "
            "repeats a season"
        )
    ends = [round(len(values) * sum(_SHARES[: i + 1])) for i in range(2)]
    first = {"train": context, "validation": max(context, ends[0]), "test": max(context, ends[1])}
    last = {"train": ends[0], "validation": ends[1], "test": len(values)}
    sources = {
        split: Windows(
            series, context, horizon, period, range(first[split], last[split] - horizon + 1)
        )
        for split in first
    }
    for split, source in sources.items():
        if not len(source):
            raise DataError(
                f"the {split} split of data.name={name!r} is empty: the series has {len(values)} "
                "values; lower data.context or data.horizon, or give a longer series"
            )
    return Dataset(
        name=name,
        sizes={split: len(source) for split, source in sources.items()},
        vocabularies={},
        model_fields={"horizon": horizon},
        open_split=lambda split: sources[split],
        transform=lambda train: lambda example, generator: example,
    )


@dataclasses.dataclass(frozen=True)
class Series:
    """Values at equal distances in time.

    Attributes:
        values: the values; missing ones are interpolated linearly.
        filled: indices of the values that were missing.
        start: date of the first value.
        step: time from one value to the next.
    """

    values: Float64[np.ndarray, " time"]
    filled: Int[np.ndarray, " missing"]
    start: datetime.date
    step: datetime.timedelta

    def date(self, index: int) -> datetime.date:
        """Returns the date of a value, which may lie after the end of the series."""
        return self.start + index * self.step

    def phase(self, index: int) -> float:
        """Returns the steps from the first day of 2000 to a value, which all series share."""
        return (self.date(index) - _EPOCH) / self.step


@dataclasses.dataclass(frozen=True)
class Windows:
    """Examples ``{"series", "phase", "target", "naive"}``, by index of the first forecast."""

    series: Series
    context: int
    horizon: int
    period: int
    begins: Sequence[int]

    def __len__(self) -> int:
        return len(self.begins)

    def __getitem__(self, index: int) -> Example:
        begin, values = self.begins[index], self.series.values
        season = values[begin - self.period : begin]
        repeats = math.ceil(self.horizon / self.period)
        return {
            "series": values[begin - self.context : begin].astype(np.float32),
            "phase": np.asarray(self.series.phase(begin - 1), np.float32),
            "target": values[begin : begin + self.horizon].astype(np.float32),
            "naive": np.tile(season, repeats)[: self.horizon].astype(np.float32),
        }


def columns(name: str, time_column: str, value_column: str) -> tuple[str, str]:
    """Returns the names of the time and value columns; they are fixed for ``co2_weekly``."""
    return ("date", "co2") if name == "co2_weekly" else (time_column, value_column)


def read_series(path: str, text: str, time_column: str, value_column: str) -> Series:
    """Reads a series from the text of a CSV file.

    The most common distance between two dates is the step. Dates that are left out and empty cells
    are missing values.

    Args:
        path: the path of the file, for error messages.
        text: the text of the file.
        time_column: the column with the dates.
        value_column: the column with the numbers.

    Raises:
        DataError: a column is missing, or a line is wrong; the message names the line.
    """
    dates, numbers = [], []
    for line, row in parse_columns(
        path, text, (time_column, value_column), ("time_column", "value_column")
    ):
        try:
            dates.append(datetime.date.fromisoformat(row[time_column]))
            numbers.append(float(row[value_column]) if row[value_column] else math.nan)
        except ValueError as error:
            raise DataError(f"{path}, line {line}: {error}") from error
        if not math.isfinite(numbers[-1]) and row[value_column]:
            raise DataError(f"{path}, line {line}: {row[value_column]} is not a number")
        if len(dates) > 1 and dates[-1] <= dates[-2]:
            raise DataError(
                f"{path}, line {line}: the date {dates[-1]} is not after the one before"
            )
    if len(dates) < 3:
        raise DataError(f"{path} has {len(dates)} values: a series needs at least 3")
    distances = [(b - a).days for a, b in itertools.pairwise(dates)]
    step = max(set(distances), key=distances.count)
    places = [round((date - dates[0]).days / step) for date in dates]
    values = np.full(places[-1] + 1, np.nan)
    values[places] = numbers
    missing = np.flatnonzero(np.isnan(values))
    there = np.flatnonzero(~np.isnan(values))
    if not len(there):
        raise DataError(f"{path} has no value in {value_column!r}")
    values[missing] = np.interp(missing, there, values[there])
    return Series(values, missing, dates[0], datetime.timedelta(days=step))
