"""Series in time: what has been, and what came next."""

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

    Windows whose forecast ends in the first 70 % of the series are ``train``, those whose forecast
    lies in the next 10 % ``validation``, those whose forecast lies in the rest ``test``. Missing
    values are filled along a straight line; no window that begins or forecasts in a filled stretch
    of more than ``context`` values is kept.

    Args:
        name: ``co2_weekly`` comes with the package; ``series`` is a file of one's own.
        path: the file of ``series``: ``.csv`` with a header; in UTF-8.
        time_column: the column of dates, ``YYYY-MM-DD`` or ``YYYYMMDD``, increasing.
        value_column: the column of numbers; an empty cell is a missing value.
        context: values that are read.
        horizon: values that are forecast.
        period: values in a season, for the naive forecast.

    Raises:
        DataError: the file is absent or wrong in a named line, or too short.
    """
    if name not in NAMES:
        raise DataError(f"data.name={name!r} is unknown.{did_you_mean(name, NAMES)}")
    if name == "co2_weekly":
        if path:
            raise DataError(
                f"data.path={path!r} has no meaning for data.name='co2_weekly': for a series of "
                "your own take data.name='series'"
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
                "values; lower data.context or data.horizon, or give a longer one"
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
    """Values at even distances.

    Attributes:
        values: missing ones filled along a straight line.
        filled: which were missing.
        start: date of the first.
        step: from one to the next.
    """

    values: Float64[np.ndarray, " time"]
    filled: Int[np.ndarray, " missing"]
    start: datetime.date
    step: datetime.timedelta

    def date(self, index: int) -> datetime.date:
        """Returns the date of a value, also of one that is still to come."""
        return self.start + index * self.step

    def phase(self, index: int) -> float:
        """Returns how many steps a value is after the first day of 2000: series agree on it."""
        return (self.date(index) - _EPOCH) / self.step


@dataclasses.dataclass(frozen=True)
class Windows:
    """Examples ``{"series", "phase", "target", "naive"}``, by the number of the first forecast."""

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
    """Returns the names of the columns of time and value: those of what is shipped are fixed."""
    return ("date", "co2") if name == "co2_weekly" else (time_column, value_column)


def read_series(path: str, text: str, time_column: str, value_column: str) -> Series:
    """Reads a series from the text of a CSV file.

    The commonest distance of two dates is the step; dates that are left out, and empty cells, are
    missing values.

    Args:
        path: for messages.
        text: of the file.
        time_column: the column of dates.
        value_column: the column of numbers.

    Raises:
        DataError: a column is missing, or a line is wrong, which is named.
    """
    dates, numbers = [], []
    for line, row in parse_columns(path, text, (time_column, value_column)):
        try:
            dates.append(datetime.date.fromisoformat(row[time_column]))
            numbers.append(float(row[value_column]) if row[value_column] else math.nan)
        except ValueError as error:
            raise DataError(f"{path}, line {line}: {error}") from error
        if not math.isfinite(numbers[-1]) and row[value_column]:
            raise DataError(f"{path}, line {line}: {row[value_column]} is no number")
        if len(dates) > 1 and dates[-1] <= dates[-2]:
            raise DataError(
                f"{path}, line {line}: the date {dates[-1]} is not after the one before"
            )
    if len(dates) < 3:
        raise DataError(f"{path} has {len(dates)} values: a series needs more")
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
