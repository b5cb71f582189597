import datetime

import numpy as np
import pytest

from zoo.data import DataError
from zoo.data.series import Windows, load_series, read_series

HEADER = "date,value\n"


def load(**fields):
    return load_series(**{"name": "co2_weekly", **fields})


def series(text):
    return read_series("own.csv", HEADER + text, "date", "value")


def test_missing_values_and_dates_are_filled_along_a_line():
    found = series("2020-01-01,1\n2020-01-08,\n2020-01-15,3\n2020-02-05,6\n2020-02-12,7\n")
    np.testing.assert_allclose(found.values, [1, 2, 3, 4, 5, 6, 7])
    np.testing.assert_array_equal(found.filled, [1, 3, 4])
    assert found.steps.length == datetime.timedelta(days=7)
    assert found.date(7) == datetime.date(2020, 2, 19)


def test_a_phase_follows_the_date_not_the_beginning_of_the_file():
    late = series("2020-01-15,3\n2020-01-22,4\n2020-01-29,5\n")
    early = series("2020-01-01,1\n2020-01-08,2\n2020-01-15,3\n")
    assert late.phase(0) == early.phase(2)
    assert late.phase(1) == late.phase(0) + 1


def test_a_window_has_what_was_what_came_and_what_the_season_before_had():
    days = [datetime.date(2020, 1, 1) + datetime.timedelta(days=i) for i in range(20)]
    found = series("".join(f"{day},{i}\n" for i, day in enumerate(days)))
    window = Windows(found, context=6, horizon=5, period=3, begins=range(6, 16))[4]
    np.testing.assert_array_equal(window["series"], range(4, 10))
    np.testing.assert_array_equal(window["target"], range(10, 15))
    np.testing.assert_array_equal(window["naive"], [7, 8, 9, 7, 8])


def test_no_test_value_is_seen_in_training():
    dataset = load()
    train, test = dataset.open("train"), dataset.open("test")
    assert isinstance(train, Windows)
    assert isinstance(test, Windows)
    assert train.begins[-1] + train.horizon <= test.begins[0]
    assert test.begins[-1] + test.horizon == len(test.series.values)
    # 59 weeks without a value, as the file's own empty cells say.
    assert len(test.series.filled) >= 59


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2020-01-01,1\n", "has 1 values"),
        ("2020-13-01,1\n", "line 2"),
        ("2020-01-01,x\n", "line 2"),
        ("2020-01-01,inf\n", "line 2: inf is not a number"),
        ("2020-01-01,1\n2020-01-01,2\n", "line 3: the date 2020-01-01 is not after"),
        ("2020-01-01,\n2020-01-02,\n2020-01-03,\n", "no value in 'value'"),
    ],
)
def test_a_wrong_line_is_named(text, words):
    with pytest.raises(DataError, match=words):
        series(text)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "series"}, "needs data.path"),
        ({"path": "a.csv"}, "has no meaning for data.name='co2_weekly'"),
        ({"context": 20}, "must be at least data.period=52"),
        ({"context": 1900}, "lower data.context or data.horizon"),
        ({"name": "co2"}, "unknown"),
    ],
)
def test_what_cannot_work_is_refused(fields, words):
    with pytest.raises(DataError, match=words):
        load(**fields)
