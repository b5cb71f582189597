"""What a report page can show of a run; a task says which of it, and in which order."""

import dataclasses
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Figure:
    """One picture.

    Attributes:
        title: the caption.
        file: a PNG file, relative to the run's folder.
        kind: ``chart``: a wide plot, which keeps a readable width on a narrow screen;
            ``pixels``: a small picture whose pixels stay sharp; ``plain``: neither.
    """

    title: str
    file: str
    kind: str = "chart"

    def __post_init__(self) -> None:
        """Raises ValueError where ``kind`` is unknown."""
        if self.kind not in ("chart", "pixels", "plain"):
            raise ValueError(f"Figure.kind={self.kind!r} must be chart, pixels or plain")


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Several small pictures side by side.

    Attributes:
        title: the heading.
        items: a PNG file, relative to the run's folder, and a caption for each picture.
    """

    title: str
    items: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under one heading.

    Attributes:
        title: the heading.
        columns: a name for each column.
        rows: one text per column in each row.
        prose: names of the columns that hold running text. They are set flush left and wrap; the
            others are set flush right, as numbers are, and the first one flush left.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    prose: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError where a row has more or fewer texts than there are columns."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"Table {self.title!r}: {row} needs {len(self.columns)} texts")


@dataclasses.dataclass(frozen=True)
class Curve:
    """Values to draw against 0, 1, 2, ….

    The page of several runs draws their curves of the same title over one another.

    Attributes:
        title: the heading, unique among the curves of a run.
        xlabel: what is counted.
        ylabel: what the values are.
        values: one for each count.
        log: whether the values' axis is logarithmic.
    """

    title: str
    xlabel: str
    ylabel: str
    values: tuple[float, ...]
    log: bool = False


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Further numbers, beside those that every run has; ``zoo report`` compares them too.

    Attributes:
        values: a name and a text for each number.
    """

    values: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Failure:
    """A part of the page that could not be made.

    Attributes:
        title: the part.
        reason: why it is not there.
    """

    title: str
    reason: str


Section = Figure | Gallery | Table | Curve | Numbers | Failure


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, ready to be shown.

    Attributes:
        name: how the page calls it.
        folder: its work directory.
        report: the content of ``report.json``.
        sections: what its task shows besides the numbers and curves that every run has.
    """

    name: str
    folder: Path
    report: dict[str, Any]
    sections: tuple[Section, ...] = ()
