"""Tables in your own files: rows with values by column name."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zoo.data.files import shown
from zoo.data.reading import composed, read_text
from zoo.data.sources import DataError
from zoo.errors import did_you_mean

SUFFIXES = (".csv", ".tsv", ".jsonl")

Rows = list[tuple[int, dict[str, str]]]

_HALF_PAIR = re.compile("[\ud800-\udfff]")
_WORDS = {type(None): "null", bool: "true or false", list: "a list", tuple: "an object"}


class _Number(str):
    """A number of JSON as it is written."""


def read_columns(
    path: str | Path,
    columns: Sequence[str],
    fields: Sequence[str] = (),
    *,
    values: Sequence[str] = (),
) -> Rows:
    """Reads columns of a file.

    Each row becomes a pair: its line number, and its texts by column name. Texts have the
    characters that the file has; see ``zoo.data.reading.composed``.

    Args:
        path: a text file, see ``zoo.data.reading.read_text``: ``.csv`` as RFC 4180 describes it or
            ``.tsv``, which differs in the separator only, both with a header; or ``.jsonl`` with an
            object a line. In ``.csv`` and ``.tsv`` a cell with a separator, a quote or a line break
            is quoted, and a quote within it is doubled.
        columns: the names of the columns, or the keys, to read; others are ignored.
        fields: the config fields that give these names, for error messages.
        values: those of ``columns`` that in JSON may also be numbers, ``true`` or ``false``, which
            are read as JSON writes them, or ``null``, which is read as an empty text.

    Raises:
        DataError: the file is no text file, see ``read_text``, or is of another type or empty, a
            name stands above two columns, or a line is wrong; the message names the line.
    """
    _check_suffix(path)
    return parse_columns(path, read_text(path), columns, fields, values=values)


def parse_columns(
    path: str | Path,
    text: str,
    columns: Sequence[str],
    fields: Sequence[str] = (),
    *,
    values: Sequence[str] = (),
) -> Rows:
    """Reads columns of a file's text; see ``read_columns``."""
    suffix, name = _check_suffix(path), shown(path)
    read = _read_json(name, text) if suffix == ".jsonl" else _read_table(name, text, suffix)
    named = dict(zip(columns, fields, strict=False))
    rows = []
    for number, cells in read:
        counts = Counter(column for column, _ in cells)
        row = dict(cells)
        chosen = {}
        for column in columns:
            key = composed(column)
            where = f"{name}, line {number}:"
            field = f" (data.{named[column]})" if column in named else ""
            if key not in row:
                raise DataError(
                    f"{where} no text in the column {column!r}{field}."
                    f"{did_you_mean(column, list(row))}{_about_header(suffix, list(row))}"
                )
            if counts[key] > 1:
                raise DataError(
                    f"{where if suffix == '.jsonl' else name + ':'} {counts[key]} columns are "
                    f"called {column!r}{field}: rename all but the one to read"
                )
            value = _as_text(row[key], column in values)
            if value is None:
                raise DataError(
                    f"{where} the column {column!r}{field} holds {_in_words(row[key])}, not a text"
                    f"{': put it in quotes' if isinstance(row[key], _Number | bool) else ''}"
                )
            if half := _HALF_PAIR.search(value):
                raise DataError(
                    f"{where} the column {column!r}{field} has \\u{ord(half[0]):x}, half of a "
                    "character, as where a text was cut within an emoji: remove it, or write "
                    "\\ufffd in its place"
                )
            chosen[column] = value
        rows.append((number, chosen))
    if not rows:
        raise DataError(f"{name} is empty: it has no rows")
    return rows


def _check_suffix(path: str | Path) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"data.path={shown(path)} must end in {', '.join(SUFFIXES[:-1])} or .jsonl")
    return suffix


def _about_header(suffix: str, header: Sequence[str]) -> str:
    """Returns what may be wrong with a header that lacks a column."""
    if suffix == ".jsonl":
        return ""
    for separator, what in ((";", "semicolons"), ("\t", "tabs"), (",", "commas")):
        if len(header) == 1 and separator in header[0]:
            return (
                f" The header has {what}: save the file with "
                f"{'commas' if suffix == '.csv' else 'tabs'} between the columns, or with the "
                "suffix that fits (.csv for commas, .tsv for tabs)."
            )
    return " The first line is read as the header: if it is data, write one above it."


def _as_text(value: Any, any_value: bool) -> str | None:
    """Returns a value of a row as a text; None for what is not one."""
    if any_value and value is None:
        return ""
    if any_value and isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, _Number):
        return str(value) if any_value else None
    return value if isinstance(value, str) else None


def _in_words(value: Any) -> str:
    return f"the number {value}" if isinstance(value, _Number) else _WORDS[type(value)]


# A row is a list of pairs, because a name may stand above two columns.
_Cells = list[tuple[str, Any]]


def _read_table(name: str, text: str, suffix: str) -> Iterator[tuple[int, _Cells]]:
    delimiter = "," if suffix == ".csv" else "\t"
    # The reader takes its lines from the file: Python's splitlines would also cut at U+2028 and
    # others, which are characters of a cell.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    begin = 1
    # The limit is of the whole process, so it is set for this call only.
    limit = csv.field_size_limit(max(len(text), 1))
    try:
        rows = []
        for cells in reader:
            rows.append((begin, cells))
            begin = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{name}, line {begin} is not valid {suffix}: {error}. A cell that begins with a quote "
            "must end with one, and a quote within it is doubled"
        ) from error
    finally:
        csv.field_size_limit(limit)
    for number, cells in rows:
        if not cells:
            continue
        if not header:
            header = [composed(cell) for cell in cells]
            continue
        if len(cells) != len(header):
            separator = "comma" if suffix == ".csv" else "tab"
            raise DataError(
                f"{name}, line {number} has {len(cells)} columns, the header has {len(header)}: "
                f"put a cell with a {separator} in quotes, and write empty cells too"
            )
        yield number, list(zip(header, cells, strict=True))


def _read_json(name: str, text: str) -> Iterator[tuple[int, _Cells]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(
                line,
                parse_int=_Number,
                parse_float=_Number,
                parse_constant=_Number,
                object_pairs_hook=tuple,
            )
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{name}, line {number} is not JSON: {error}. Each line must be an object of its "
                "own"
            ) from error
        if not isinstance(row, tuple):
            what = "a text" if type(row) is str else _in_words(row)
            raise DataError(
                f"{name}, line {number} holds {what}, not an object such as {{'text': …}}"
            )
        yield number, [(composed(key), value) for key, value in row]
