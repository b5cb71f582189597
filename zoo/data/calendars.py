"""The steps of a series in time: minutes to weeks, business days, months, quarters and years.

The steps of a calendar are not equally long: a month has 28 to 31 days. pandas' offsets know them.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int

# Steps are counted from this day, so that those of all files of a kind of series agree.
_EPOCH = datetime.datetime(2000, 1, 1)
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_BUSINESS = _WEEKDAYS[:5]
# A week's pattern of other days than these counts only if it is seen in so many days.
_DAYS_OF_PATTERN = 28
# pandas' offsets of months and longer, and the number of their months.
_MONTHS = {
    "MonthBegin": 1, "MonthEnd": 1, "BusinessMonthBegin": 1, "BusinessMonthEnd": 1,
    "QuarterBegin": 3, "QuarterEnd": 3, "BQuarterBegin": 3, "BQuarterEnd": 3,
    "YearBegin": 12, "YearEnd": 12, "BYearBegin": 12, "BYearEnd": 12,
}  # fmt: skip
DAY = datetime.timedelta(days=1)
SHORTEST = datetime.timedelta(minutes=1)
_UNITS = (
    (DAY, "day"),
    (datetime.timedelta(hours=1), "hour"),
    (SHORTEST, "minute"),
    (datetime.timedelta(seconds=1), "second"),
)


@dataclasses.dataclass(frozen=True)
class Steps:
    """Steps in time; only one of the last three attributes is set.

    Attributes:
        start: the time of step 0, a ``pandas.Timestamp``.
        offset: what leads from one step to the next, a ``pandas.DateOffset`` or a time difference.
        length: the length of a step, if all are equally long.
        months: the number of months in a step, if steps are months, quarters or years.
        weekdays: the days of the week that count, if steps are business days.
    """

    start: Any
    offset: Any
    length: datetime.timedelta | None = None
    months: int = 0
    weekdays: tuple[str, ...] = ()

    def time(self, index: int) -> datetime.datetime:
        """Returns the time of a step."""
        return (self.start + index * self.offset).to_pydatetime()

    def phase(self, index: int) -> float:
        """Returns the number of steps from the first day of 2000 to a step."""
        if self.length is not None:
            return (self.time(index) - _EPOCH) / self.length
        start = self.time(0)
        if self.months:
            months = (start.year - _EPOCH.year) * 12 + start.month - _EPOCH.month
            return (months + index * self.months) / self.months
        mask = [day in self.weekdays for day in _WEEKDAYS]
        return float(np.busday_count(_EPOCH.date(), start.date(), weekmask=mask) + index)

    def places(self, times: Any) -> Int[np.ndarray, " times"]:
        """Returns the step of each time; -1 for a time between two steps.

        Args:
            times: a ``pandas.DatetimeIndex`` of increasing times, not before ``start``.
        """
        import pandas as pd

        if self.length is not None:
            after = (times - self.start).total_seconds().to_numpy().astype(np.int64)
            step = int(self.length.total_seconds())
            return np.where(after % step, -1, after // step)
        return pd.date_range(self.start, times[-1], freq=self.offset).get_indexer(times)

    @property
    def words(self) -> str:
        """A step in words, such as ``month``, ``7 days`` or ``business day (Mon to Fri)``."""
        if self.weekdays:
            days = "Mon to Fri" if self.weekdays == _BUSINESS else ", ".join(self.weekdays)
            return f"business day ({days})"
        if self.length is not None:
            size, unit = next(known for known in _UNITS if not self.length % known[0])
            count = self.length // size
        else:
            months, unit = next(
                known
                for known in ((12, "year"), (3, "quarter"), (1, "month"))
                if not self.months % known[0]
            )
            count = self.months // months
        return unit if count == 1 else f"{count} {unit}s"


def find_steps(times: Any) -> Steps:
    """Returns the steps that times are apart; some times may be missing.

    Months are tried first, then business days, and then the most common distance. If no steps fit
    all times, those of the most common distance are returned.

    Args:
        times: a ``pandas.DatetimeIndex`` of at least two increasing times.
    """
    found = [*_months(times), *_business_days(times), _most_common(times)]
    return next((steps for steps in found if (steps.places(times) >= 0).all()), found[-1])


def named_steps(frequency: str, times: Any) -> tuple[Steps, Any]:
    """Returns the steps of a name, and the step that each time is in.

    A time is in the month, quarter, year or day of its date, in the week whose day is nearest, and
    in the nearest step of hours or minutes.

    Args:
        frequency: a name that ``is_frequency`` knows.
        times: a ``pandas.DatetimeIndex`` of increasing times.

    Returns:
        The steps, and the times moved to the steps. One on a day that does not count in steps of
        business days is not moved.
    """
    import pandas as pd

    offset = _offset(frequency)
    months = _MONTHS.get(type(offset).__name__, 0) * offset.n
    if months:
        # Business months end before their last day, so the whole month must lie on one side.
        ends = type(offset).__name__.endswith("End")
        roll = offset.rollforward if ends else offset.rollback
        month = times.to_period("M")
        moved = pd.DatetimeIndex(
            [roll(t) for t in month.to_timestamp(how="start" if ends else "end").normalize()]
        )
        return Steps(moved[0], offset, months=months), moved
    if isinstance(offset, pd.offsets.BusinessDay):
        days = times if _one_time_of_day(times) else times.normalize()
        return Steps(days[0], offset, weekdays=_BUSINESS), days
    length = _length(offset)
    steps = Steps(times[0], length, length=length)
    week = isinstance(offset, pd.offsets.Week)
    weekday = _common(times.day_of_week.to_numpy())
    if week and "-" in frequency:
        weekday = offset.weekday
    if (steps.places(times) >= 0).all() and not (week and times[0].weekday() != weekday):
        return steps, times
    if week:
        day = times.normalize()
        moved = day + pd.to_timedelta((weekday - day.day_of_week + 3) % 7 - 3, unit="D")
        start = moved[0]
    elif not length % DAY:
        moved = times.normalize()
        start = moved[0]
    else:
        start = times[0].round(pd.Timedelta(length))
        moved = start + length * np.rint((times - start) / length).astype(np.int64)
    return Steps(start, length, length=length), moved


def is_frequency(name: str) -> bool:
    """Whether a name is empty or that of steps; see ``named_steps``."""
    if not name:
        return True
    try:
        offset = _offset(name)
    except ValueError:
        return False
    import pandas as pd

    if offset.n < 1:
        return False
    if type(offset) is pd.offsets.BusinessDay:
        return offset.n == 1
    known = type(offset).__name__ in _MONTHS
    return known or ((length := _length(offset)) is not None and length >= SHORTEST)


def _offset(name: str) -> Any:
    from pandas.tseries.frequencies import to_offset

    return to_offset(name)


def _length(offset: Any) -> Any:
    """Returns the length of an offset of equally long steps, or None."""
    import pandas as pd

    if isinstance(offset, pd.offsets.Week):
        return offset.n * 7 * DAY
    if isinstance(offset, pd.offsets.Day):
        return offset.n * DAY
    if isinstance(offset, pd.offsets.Tick):
        return pd.Timedelta(offset).to_pytimedelta()
    return None


def _months(times: Any) -> Iterator[Steps]:
    import pandas as pd

    months = (times.year * 12 + times.month).to_numpy()
    distances = np.diff(months)
    if distances.min() < 1:
        return
    step = _common(distances)
    offsets = pd.offsets
    for kind in (
        offsets.MonthBegin,
        offsets.MonthEnd,
        offsets.BMonthBegin,
        offsets.BMonthEnd,
    ):
        if all(kind().is_on_offset(time) for time in times):
            yield Steps(times[0], kind(step), months=step)
    # The same day of every month, such as the 15th; the 30th is the last day of February.
    day = times.day.max()
    if times[0].day == min(day, times[0].days_in_month):
        yield Steps(times[0], offsets.DateOffset(months=step, day=day), months=step)


def _business_days(times: Any) -> Iterator[Steps]:
    import pandas as pd

    if not _one_time_of_day(times):
        return
    days = (times - times[0]).days.to_numpy()
    seen = set(times.day_of_week)
    absent = set(range(7)) - seen
    # A few daily values within one week say nothing about weekends.
    weekend = absent == {5, 6} and times[0].weekday() + days[-1] > 6
    pattern = len(seen) > 1 and len(absent) > 0 and days[-1] >= _DAYS_OF_PATTERN
    if _common(np.diff(days)) != 1 or not (weekend or pattern):
        return
    names = tuple(name for number, name in enumerate(_WEEKDAYS) if number in seen)
    offset = (
        pd.offsets.BDay()
        if names == _BUSINESS
        else pd.offsets.CustomBusinessDay(weekmask=" ".join(names))
    )
    yield Steps(times[0], offset, weekdays=names)


def _most_common(times: Any) -> Steps:
    step = _common(np.diff(times.to_numpy().astype("datetime64[s]").astype(np.int64)))
    # Times within a second are refused like all steps below a minute.
    length = datetime.timedelta(seconds=max(step, 1))
    return Steps(times[0], length, length=length)


def _common(numbers: Int[np.ndarray, " numbers"]) -> int:
    """Returns the most common number, the smallest one of several."""
    values, counts = np.unique(numbers, return_counts=True)
    return int(values[counts.argmax()])


def _one_time_of_day(times: Any) -> bool:
    return len((times - times.normalize()).unique()) == 1
