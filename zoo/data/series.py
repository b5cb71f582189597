"""Time series, cut into windows of past and future values."""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int

from zoo.data.calendars import DAY, SHORTEST, Steps, find_steps, named_steps
from zoo.data.columns import parse_columns
from zoo.data.datasets import Dataset
from zoo.data.files import shown
from zoo.data.reading import read_text
from zoo.data.sources import DataError, Example
from zoo.data.text import embedded_text
from zoo.errors import did_you_mean

NAMES = ("co2_weekly", "series")
_SHARES = (0.7, 0.1)
# What programs write for a missing value, in small letters.
_MISSING = frozenset(("", "na", "n/a", "#n/a", "nan", "null", "none"))
# If fewer than one in so many steps has a value, the steps or a time are wrong.
_STEPS_PER_VALUE = 20
# Dates that ``datetime.fromisoformat`` does not read.
_DATE = re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?!\d)(.*)")
_MONTH = re.compile(r"(\d{4})(?:[-/](\d{1,2})|-?[Qq]([1-4]))?")


def load_series(
    name: str,
    *,
    path: str = "",
    time_column: str = "date",
    value_column: str = "value",
    context: int = 156,
    horizon: int = 52,
    period: int = 52,
    frequency: str = "",
) -> Dataset:
    """Describes windows of a series: ``context`` values, and the ``horizon`` values after them.

    Windows whose forecast ends in the first 70 % of the series are ``train``. Windows whose
    forecast lies in the next 10 % are ``validation``, and those whose forecast lies in the rest are
    ``test``. The values are one step apart, and a step may be one of the calendar, such as a month.
    Missing values are interpolated linearly; the notes of the data set say how many.

    Args:
        name: ``co2_weekly`` comes with the package; ``series`` is your own file.
        path: the file for ``series``: ``.csv`` or ``.tsv`` with a header, or ``.jsonl``; see
            ``zoo.data.columns.read_columns``.
        time_column: the column with increasing times; see ``read_series``.
        value_column: the column with the numbers; an empty cell, ``NA`` or ``null`` is a missing
            value.
        context: number of values that are read.
        horizon: number of values that are forecast.
        period: number of values in a season, for the naive forecast.
        frequency: the step, by the name that pandas has for it; see ``read_series``. Empty finds it
            from the times.

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
    else:
        if not path:
            raise DataError("data.name='series' needs data.path: a .csv, .tsv or .jsonl file")
        text = read_text(path)
    names = columns(name, time_column, value_column)
    series = read_series(path or "co2_weekly.csv", text, *names, frequency)
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
        notes=series.notes,
    )


@dataclasses.dataclass(frozen=True)
class Series:
    """Values one step apart.

    Attributes:
        values: the values; missing ones are interpolated linearly.
        filled: indices of the values that were missing.
        steps: the times of the values.
        zone: the time zone of the times; None if the file gives none.
        notes: the length of the series, its step, and how many values are filled in, in words.
    """

    values: Float64[np.ndarray, " time"]
    filled: Int[np.ndarray, " missing"]
    steps: Steps
    zone: datetime.tzinfo | None = None
    notes: tuple[str, ...] = ()

    def date(self, index: int) -> datetime.date:
        """Returns the time of a value, which may lie after the end of the series.

        It is a date if steps are at least a day and begin at midnight, else a ``datetime``.
        """
        return _shown_time(self.steps, index, self.zone)

    def phase(self, index: int) -> float:
        """Returns the steps from the first day of 2000 to a value, which all series share."""
        return self.steps.phase(index)


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


def read_series(
    path: str, text: str, time_column: str, value_column: str, frequency: str = ""
) -> Series:
    """Reads a series from the text of a file.

    A time is ``YYYY-MM-DD``, ``YYYY-MM``, ``YYYY-Q1`` or ``YYYY``, or a date with a time of day and
    perhaps an offset from UTC, as ISO 8601 writes them. Times with several offsets, as where clocks
    change, are read as dates if all have the same time of day, and else in UTC.

    The steps are those of ``frequency``. If it is empty, they are found from the times. They are
    months (or quarters, or years) if all times are on the first, the last or the same day of a
    month; business days if the same days of every week are missing; and else the most common
    distance. Each time must then be on a step. With a ``frequency`` a time may be anywhere in its
    step, but no two may be in the same. Steps without a time, and empty cells, are missing values.

    Args:
        path: the path of the file; its suffix says how the text is read, see
            ``zoo.data.columns.read_columns``.
        text: the text of the file.
        time_column: the column with the times.
        value_column: the column with the numbers.
        frequency: the name of the steps, see ``zoo.data.calendars.named_steps``; empty finds them.

    Raises:
        DataError: a column is missing, or a line is wrong; the message names the line.
    """
    import pandas as pd

    names = (time_column, value_column)
    rows = parse_columns(path, text, names, ("time_column", "value_column"), values=names)
    lines = [f"{shown(path)}, line {line}" for line, _ in rows]
    texts = [row[time_column].strip() for _, row in rows]
    numbers = [_number(line, row[value_column]) for line, (_, row) in zip(lines, rows, strict=True)]
    read, zone = _one_zone(
        lines, texts, [_time(line, text) for line, text in zip(lines, texts, strict=True)]
    )
    if len(rows) < 3:
        raise DataError(f"{shown(path)} has {len(rows)} values: a series needs at least 3")
    times = pd.DatetimeIndex(np.array(read, "datetime64[s]"))
    steps, moved = named_steps(frequency, times) if frequency else (find_steps(times), times)
    if steps.length is not None and steps.length < SHORTEST:
        raise DataError(
            f"{shown(path)}: the times are {steps.words} apart, and the shortest step is a minute: "
            "take the mean of each minute"
        )
    places = steps.places(moved)
    if (places < 0).any():
        at = int(np.argmax(places < 0))
        common = "" if frequency else ", the most common distance"
        raise DataError(
            f"{lines[at]}: {texts[at]} is no whole number of steps after {texts[0]}, with "
            f"one every {steps.words}{common}. Mend the time, or give another data.frequency, such "
            "as 'D', 'B' (business days), 'W' or 'MS' (months), which takes a time anywhere in its "
            "step"
        )
    if (same := np.flatnonzero(np.diff(places) < 1)).size:
        at = int(same[0])
        raise DataError(
            f"{lines[at + 1]}: {texts[at + 1]} is in the same step ({steps.words}) as {texts[at]}: "
            f"keep one value for each, or give a shorter step than data.frequency={frequency!r}"
        )
    if places[-1] > _STEPS_PER_VALUE * len(rows):
        at = int(np.argmax(np.diff(places)))
        raise DataError(
            f"{shown(path)} has {len(rows):,} values for {places[-1] + 1:,} steps, one every "
            f"{steps.words}: the longest gap is before {texts[at + 1]}, {lines[at + 1]}. Mend the "
            "time, cut the series there, or give a longer step with data.frequency"
        )
    values = np.full(places[-1] + 1, np.nan)
    values[places] = numbers
    missing = np.flatnonzero(np.isnan(values))
    there = np.flatnonzero(~np.isnan(values))
    if not len(there):
        raise DataError(f"{shown(path)} has no value in {value_column!r}")
    values[missing] = np.interp(missing, there, values[there])
    first, last = (_shown_time(steps, i, zone).isoformat() for i in (0, int(places[-1])))
    notes = [
        f"{shown(path)}: {len(values):,} values from {first} to {last}, one every {steps.words}"
    ]
    if len(missing):
        notes.append(
            f"{shown(path)}: {len(missing):,} missing values are filled in along a straight line"
        )
    if zone is datetime.UTC:
        notes.append(f"{shown(path)}: times are in UTC")
    return Series(values, missing, steps, zone, tuple(notes))


def _number(line: str, text: str) -> float:
    """Returns the number in a cell; nan if it is missing."""
    if text.strip().lower() in _MISSING:
        return math.nan
    try:
        value = float(text.replace("_", "x"))
    except ValueError as error:
        raise DataError(
            f"{line}: {text!r} is not a number: write it as 1234.5, and leave a missing one empty"
        ) from error
    if not math.isfinite(value):
        raise DataError(f"{line}: {text} is not a number")
    if abs(value) > float(np.finfo(np.float32).max):
        raise DataError(f"{line}: {text} is beyond the numbers of float32: scale the series")
    return value


def _time(line: str, text: str) -> datetime.datetime:
    """Returns the time in a cell, which has a time zone if the cell has one."""
    try:
        if short := _MONTH.fullmatch(text):
            year, month, quarter = short.groups()
            return datetime.datetime(
                int(year), int(month) if month else 3 * int(quarter or 1) - 2, 1
            )
        if date := _DATE.fullmatch(text):
            year, month, day, rest = date.groups()
            text = f"{year}-{month:0>2}-{day:0>2}{rest}"
        return datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise DataError(
            f"{line}: {text!r} is not a time that is known ({error}): write 2020-01-31, 2020-01-31 "
            "18:30 (with +01:00 or Z after it where clocks change), 2020-01, 2020-Q1 or 2020"
        ) from error


def _one_zone(
    lines: Sequence[str], texts: Sequence[str], times: Sequence[datetime.datetime]
) -> tuple[list[datetime.datetime], datetime.tzinfo | None]:
    """Checks that times increase; returns them without their time zone, and the zone."""
    offsets = {time.utcoffset() for time in times}
    if None in offsets and len(offsets) > 1:
        at = next(
            i for i, time in enumerate(times) if (time.tzinfo is None) != (times[0].tzinfo is None)
        )
        raise DataError(
            f"{lines[at]}: {texts[at]} and {texts[0]}, the first time, do not both have an offset "
            "from UTC: give all times one, or none"
        )
    for at in range(1, len(times)):
        if times[at] <= times[at - 1]:
            clocks = ", and where clocks go back give their offset from UTC, such as +01:00"
            no_clocks = times[at].tzinfo or times[at].time() == datetime.time()
            raise DataError(
                f"{lines[at]}: the date {texts[at]} is not after the one before, {texts[at - 1]}: "
                f"sort the rows by time, with one row for each{'' if no_clocks else clocks}"
            )
    local = [time.replace(tzinfo=None) for time in times]
    if len(offsets) == 1:
        return local, times[0].tzinfo
    if len({time.time() for time in local}) == 1:
        return local, None
    return [time.astimezone(datetime.UTC).replace(tzinfo=None) for time in times], datetime.UTC


def _shown_time(steps: Steps, index: int, zone: datetime.tzinfo | None) -> datetime.date:
    time = steps.time(index)
    whole_days = steps.length is None or not steps.length % DAY
    if whole_days and time.time() == datetime.time():
        return time.date()
    return time.replace(tzinfo=zone)
