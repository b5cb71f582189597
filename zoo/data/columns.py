"""Tables in your own files: rows with values by column name."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zoo.data.sources import DataError
from zoo.data.text import read_text
from zoo.errors import did_you_mean

SUFFIXES = (".csv", ".tsv", ".jsonl")

Rows = list[tuple[int, dict[str, str]]]


def read_columns(path: str | Path, columns: Sequence[str], fields: Sequence[str] = ()) -> Rows:
    """Reads columns of a file.

    Each row becomes a pair: its line number, and its texts by column name.

    Args:
        path: a UTF-8 file: ``.csv`` (cells with a comma or a line break are quoted) or ``.tsv``
            (without quotes) with a header, or ``.jsonl``.
        columns: the names of the columns, or the keys, to read; others are ignored.
        fields: the config fields that give these names, for error messages.

    Raises:
        DataError: the file is absent, not UTF-8, of another type or empty, or a line is wrong; the
            message names the line.
    """
    if Path(path).suffix not in SUFFIXES:
        raise DataError(f"data.path={path} must end in {', '.join(SUFFIXES[:-1])} or .jsonl")
    return parse_columns(path, read_text(path), columns, fields)


def parse_columns(
    path: str | Path, text: str, columns: Sequence[str], fields: Sequence[str] = ()
) -> Rows:
    """Reads columns of a file's text; see ``read_columns``."""
    suffix = Path(path).suffix
    read = _read_json(path, text) if suffix == ".jsonl" else _read_table(path, text, suffix)
    named = dict(zip(columns, fields, strict=False))
    rows = []
    for number, row in read:
        for column in columns:
            if not isinstance(row.get(column), str):
                field = f" (data.{named[column]})" if column in named else ""
                header = (
                    ""
                    if suffix == ".jsonl" or column in row
                    else " The first line is read as the header: if it is data, write one above it."
                )
                raise DataError(
                    f"{path}, line {number}: no text in the column {column!r}{field}."
                    f"{did_you_mean(column, [str(name) for name in row])}{header}"
                )
        rows.append((number, {column: row[column] for column in columns}))
    if not rows:
        raise DataError(f"{path} is empty: it has no rows")
    return rows


def _read_table(path: str | Path, text: str, suffix: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Line breaks within quotes belong to the cell.
    reader = (
        csv.reader(text.splitlines(keepends=True), strict=True)
        if suffix == ".csv"
        else csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    )
    header: list[str] = []
    begin = 1
    try:
        for cells in reader:
            number, begin = begin, reader.line_num + 1
            if not cells:
                continue
            if not header:
                header = cells
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, line {number} has {len(cells)} columns, the header has {len(header)}"
                )
            yield number, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {begin} is not valid {suffix}: {error}") from error


def _read_json(path: str | Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}") from error
        yield number, row if isinstance(row, dict) else {}
