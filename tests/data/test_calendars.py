"""Steps of the calendar, against dates made by hand and by Python's own calendar."""

import calendar
import datetime
import itertools
import pickle

import numpy as np
import pytest

from zoo.data import DataError
from zoo.data.calendars import is_frequency
from zoo.data.series import load_series, read_series

DAY = datetime.timedelta(days=1)


def series(times, frequency="", values=None):
    rows = [f"{time},{i if values is None else values[i]}\n" for i, time in enumerate(times)]
    return read_series("own.csv", "date,value\n" + "".join(rows), "date", "value", frequency)


def months(first, count, step=1, day=lambda year, month: 1):
    for i in range(count):
        year, month = divmod(first[0] * 12 + first[1] - 1 + i * step, 12)
        yield datetime.date(year, month + 1, day(year, month + 1))


def last_day(year, month):
    return calendar.monthrange(year, month)[1]


def last_weekday(year, month):
    day = last_day(year, month)
    return day - max(0, datetime.date(year, month, day).weekday() - 4)


def first_weekday(year, month):
    return 1 + (7 - datetime.date(year, month, 1).weekday()) % 7 * (
        datetime.date(year, month, 1).weekday() > 4
    )


def weekdays(first, count, of=range(5)):
    days = (first + i * DAY for i in itertools.count())
    return list(itertools.islice((day for day in days if day.weekday() in of), count))


def hours(first, count, step):
    begin = datetime.datetime.fromisoformat(first)
    return [begin + i * step for i in range(count)]


MINUTES = datetime.timedelta(minutes=1)

KINDS = {
    "month": list(months((1980, 1), 500)),
    "month, its end": list(months((1980, 1), 500, day=last_day)),
    "month, the 15th": list(months((1980, 1), 500, day=lambda *_: 15)),
    "month, the 30th": list(months((1980, 1), 500, day=lambda *m: min(30, last_day(*m)))),
    "month, its last weekday": list(months((1980, 1), 500, day=last_weekday)),
    "month, its first weekday": list(months((1980, 1), 500, day=first_weekday)),
    "quarter": list(months((1950, 2), 300, step=3)),
    "quarter, its end": list(months((1950, 3), 300, step=3, day=last_day)),
    "2 months": list(months((1950, 2), 300, step=2)),
    "year": list(months((1850, 1), 170, step=12)),
    "year, its end": list(months((1850, 6), 170, step=12, day=last_day)),
    "business day": weekdays(datetime.date(2015, 1, 5), 900),
    "business day, from a Friday": weekdays(datetime.date(2015, 1, 9), 900),
    "business day, Sun to Thu": weekdays(datetime.date(2015, 1, 4), 900, of=(6, 0, 1, 2, 3)),
    "business day, shops": weekdays(datetime.date(2015, 1, 5), 900, of=range(6)),
    "day": weekdays(datetime.date(2019, 12, 25), 900, of=range(7)),
    "7 days": [datetime.date(2019, 12, 28) + 7 * i * DAY for i in range(500)],
    "14 days": [datetime.date(2019, 12, 28) + 14 * i * DAY for i in range(200)],
    "hour": hours("2020-02-28T22:00", 3000, 60 * MINUTES),
    "15 minutes": hours("2020-02-28T22:15", 3000, 15 * MINUTES),
    "minute": hours("2020-02-28T22:15", 3000, MINUTES),
    "day, at six": hours("2020-02-20T06:00", 300, DAY),
}


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_found_and_a_forecast_goes_on_with_them(kind):
    times, words = KINDS[kind], kind.partition(",")[0]
    whole = series(times)
    assert len(whole.values) == len(times)
    assert not len(whole.filled)
    assert whole.steps.words.partition(" (")[0] == words
    assert [whole.date(i) for i in range(len(times))] == times
    assert whole.notes == (
        f"own.csv: {len(times):,} values from {times[0].isoformat()} to {times[-1].isoformat()}, "
        f"one every {whole.steps.words}",
    )
    # The dates after the first part of a series are those of the rest.
    begun = series(times[: len(times) // 2])
    assert [begun.date(i) for i in range(len(times))] == times


@pytest.mark.parametrize("kind", KINDS)
def test_times_that_are_left_out_are_filled_and_said(kind):
    times = KINDS[kind]
    out = {7, 8, 20, len(times) - 2}
    found = series([time for i, time in enumerate(times) if i not in out])
    np.testing.assert_array_equal(found.filled, sorted(out))
    assert len(found.values) == len(times)
    assert found.date(len(times) - 1) == times[-1]
    assert "own.csv: 4 missing values are filled in along a straight line" in found.notes


@pytest.mark.parametrize("kind", KINDS)
def test_a_phase_grows_by_one_and_does_not_depend_on_the_beginning(kind):
    times = KINDS[kind]
    whole, late = series(times), series(times[60:])
    assert [late.phase(i) for i in range(3)] == [whole.phase(60 + i) for i in range(3)]
    steps = np.diff([np.float32(whole.phase(i)) for i in range(len(times))])
    np.testing.assert_allclose(steps, 1, atol=1e-3)


def test_workers_can_read_a_series():
    found = pickle.loads(pickle.dumps(series(KINDS["business day, shops"])))
    assert [found.date(i) for i in range(900)] == KINDS["business day, shops"]


def test_the_months_of_a_year_have_the_same_phases_every_year():
    found = series(KINDS["month"])
    assert found.phase(0) == -240
    assert {found.phase(12 * i + 3) % 12 for i in range(30)} == {3}
    ends = series(KINDS["month, its end"])
    assert ends.phase(0) == -240


def test_the_windows_of_a_monthly_series_are_cut_from_all_values(tmp_path):
    file = tmp_path / "own.csv"
    rows = "".join(f"{month},{i}\n" for i, month in enumerate(months((1980, 1), 480)))
    file.write_text("date,value\n" + rows)
    dataset = load_series("series", path=str(file), context=24, horizon=12, period=12)
    last = dataset.open("test")[len(dataset.open("test")) - 1]
    np.testing.assert_array_equal(last["target"], range(468, 480))
    found = dataset.open("train").series
    assert found.date(480) == datetime.date(2020, 1, 1)
    assert dataset.notes == found.notes


@pytest.mark.parametrize(
    ("texts", "first", "after", "words"),
    [
        (["2020-01", "2020-02", "2020-03"], "2020-01-01", "2020-04-01", "month"),
        (["2020/1", "2020/2", "2020/3"], "2020-01-01", "2020-04-01", "month"),
        (["2020-Q1", "2020-Q2", "2020-Q4"], "2020-01-01", "2021-01-01", "quarter"),
        (["1999Q4", "2000q1", "2000Q2"], "1999-10-01", "2000-07-01", "quarter"),
        (["1999", "2000", "2001"], "1999-01-01", "2002-01-01", "year"),
        (["20200101", "20200102", "20200103"], "2020-01-01", "2020-01-04", "day"),
        (["2020/1/9", "2020/1/10", "2020/1/11"], "2020-01-09", "2020-01-12", "day"),
        (["2020-01-01 05:00:00", "2020-01-01T06", "2020-01-01 07:00"],
         "2020-01-01T05:00:00", "2020-01-01T08:00:00", "hour"),
    ],
)  # fmt: skip
def test_times_as_people_write_them(texts, first, after, words):
    found = series(texts)
    count = len(found.values)
    assert (found.date(0).isoformat(), found.date(count).isoformat()) == (first, after)
    assert found.steps.words == words


def test_clocks_that_change_do_not_change_the_steps():
    utc = [datetime.datetime(2020, 10, 24, 12, tzinfo=datetime.UTC) + i * 60 * MINUTES
           for i in range(48)]  # fmt: skip
    change = datetime.datetime(2020, 10, 25, 1, tzinfo=datetime.UTC)
    berlin = [
        time.astimezone(datetime.timezone(datetime.timedelta(hours=2 if time < change else 1)))
        for time in utc
    ]
    found = series([time.isoformat() for time in berlin])
    assert len(found.values) == 48
    assert not len(found.filled)
    assert found.date(48) == utc[-1] + 60 * MINUTES
    assert "own.csv: times are in UTC" in found.notes
    # Without their offsets, one hour is there twice.
    with pytest.raises(DataError, match="line 15: .* give their offset from UTC"):
        series([time.replace(tzinfo=None) for time in berlin])
    # Days begin at midnight, whatever the clock's offset.
    days = [datetime.datetime(2020, 10, 20) + i * DAY for i in range(10)]
    offset = ["+02:00" if day.day <= 25 else "+01:00" for day in days]
    found = series([f"{day.isoformat()}{o}" for day, o in zip(days, offset, strict=True)])
    assert found.date(10) == datetime.date(2020, 10, 30)
    # One offset stays as it is.
    found = series([f"2020-01-01T{hour:02}:00+05:30" for hour in range(5)])
    assert found.date(5).isoformat() == "2020-01-01T05:00:00+05:30"


def test_a_given_step_takes_times_anywhere_in_it():
    # The values of weeks, some of them a day early or late.
    mondays = [datetime.date(2020, 1, 6) + 7 * i * DAY for i in range(30)]
    moved = [day + (i % 5 == 3) * DAY - (i % 7 == 2) * DAY for i, day in enumerate(mondays)]
    with pytest.raises(DataError, match="is no whole number of steps .* data.frequency"):
        series(moved)
    found = series(moved, "W")
    assert len(found.values) == 30
    assert [found.date(i) for i in range(30)] == mondays
    assert series(moved, "W-WED").date(0) == datetime.date(2020, 1, 8)
    # The values of months, each on some day.
    some = list(
        months((2020, 1), 30, day=lambda year, month: 1 + 7 * month % last_day(year, month))
    )
    assert [series(some, "MS").date(i) for i in range(30)] == list(months((2020, 1), 30))
    assert [series(some, "ME").date(i) for i in range(30)] == list(
        months((2020, 1), 30, day=last_day)
    )
    assert [series(some, "BME").date(i) for i in range(30)] == list(
        months((2020, 1), 30, day=last_weekday)
    )
    assert [series(some, "BMS").date(i) for i in range(30)] == list(
        months((2020, 1), 30, day=first_weekday)
    )
    quarters = some[1::3]
    assert series(quarters, "QS").date(10) == datetime.date(2022, 7, 1)
    assert series(quarters, "QE").date(10) == datetime.date(2022, 9, 30)
    # A clock that is some seconds off.
    late = [f"2020-01-01 {10 + i // 4}:{i % 4 * 15:02}:{i % 3:02}" for i in range(20)]
    found = series(late, "15min")
    assert found.date(20) == datetime.datetime(2020, 1, 1, 15)
    # Midnight of Berlin, in UTC.
    night = ["2020-03-27T23:00Z", "2020-03-28T23:00Z", "2020-03-29T22:00Z", "2020-03-30T22:00Z"]
    assert len(series(night, "D").values) == 4


def test_what_shares_a_step_or_is_on_none_is_named():
    with pytest.raises(
        DataError, match="line 3: 2020-01-20 is in the same step .month. as 2020-01-05"
    ):
        series(["2020-01-05", "2020-01-20", "2020-03-01"], "MS")
    with pytest.raises(DataError, match="line 3: 2020-01-04 is no whole number of steps"):
        series(["2020-01-03", "2020-01-04", "2020-01-06"], "B")
    with pytest.raises(
        DataError, match="line 5: 2020-01-23 is no whole number of steps .* one every 7 days"
    ):
        series(["2020-01-01", "2020-01-08", "2020-01-15", "2020-01-23"])
    with pytest.raises(DataError, match="sort the rows by time"):
        series(["2020-01-03", "2020-01-02", "2020-01-01"])
    with pytest.raises(DataError, match="line 4: .* do not both have an offset"):
        series(["2020-01-01T00:00Z", "2020-01-02T00:00Z", "2020-01-03T00:00"])
    with pytest.raises(DataError, match="10 seconds apart, and the shortest step is a minute"):
        series([f"2020-01-01T00:00:{i}0" for i in range(5)])
    with pytest.raises(DataError, match="second apart, and the shortest step is a minute"):
        series([f"2020-01-01T00:00:00.{i}" for i in range(5)])
    with pytest.raises(DataError, match="longest gap is before 2200-01-01, own.csv, line 32"):
        series([*(datetime.date(2020, 1, 1) + i * DAY for i in range(30)), "2200-01-01"])
    for wrong in ("31.12.2020", "12/31/2020", "2020-13", "2020-02-30", "1577836800", "soon", ""):
        with pytest.raises(DataError, match="line 3: .* is not a time that is known"):
            series(["2020-01-01", wrong, "2020-01-03"])


def test_cells_of_a_missing_value_and_wrong_ones():
    days = [datetime.date(2020, 1, 1) + i * DAY for i in range(8)]
    found = series(days, values=["1", "NA", "nan", "#N/A", "", "null", " ", "8"])
    np.testing.assert_array_equal(found.values, range(1, 9))
    assert len(found.filled) == 6
    for wrong in ("1_000", "12 %", "-inf", "1e39", "1e999"):
        with pytest.raises(DataError, match="line 3"):
            series(days, values=["1", wrong, *"345678"])
    found = read_series(
        "own.jsonl",
        '{"t": 1999, "v": 1}\n{"t": "2000", "v": null}\n{"t": 2001, "v": 3e0}\n',
        "t",
        "v",
    )
    np.testing.assert_array_equal(found.values, [1, 2, 3])


def test_names_of_steps():
    for name in ("", "15min", "h", "2h", "D", "B", "W", "W-MON", "2W", "MS", "3ME", "QS", "YE"):
        assert is_frequency(name), name
    for name in ("M", "weekly", "30s", "ms", "-1D", "0D", "2B", "C", "5", "bh"):
        assert not is_frequency(name), name
