"""Pictures of a run, as PNG files."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import UInt8

from zoo import storage
from zoo.reports.sections import Curve

# In each record, but not a metric of the model.
NOT_METRICS = (
    "split",
    "step",
    "epoch",
    "seconds",
    "learning_rate",
    "examples_per_second",
    "data_wait_seconds",
    "data_wait_share",
    "examples_per_second_per_device",
    "tokens_per_second_per_device",
    "mfu",
    "hfu",
    "slowest_process",
    "slowest_process_seconds",
)


class NotDrawn(Exception):
    """Some pictures could not be drawn; the others were."""

    def __init__(self, failures: Mapping[str, Exception]) -> None:
        """Takes the reason for each picture that is missing, by its name."""
        super().__init__(", ".join(failures))
        self.failures = failures


def draw_each(folder: Path, pictures: Mapping[str, Callable[[Path], None]]) -> None:
    """Draws pictures one after the other, also after one that fails.

    Args:
        folder: the run's folder.
        pictures: for each name in the folder the function that draws it; it takes the path.

    Raises:
        NotDrawn: some pictures could not be drawn. What an earlier run drew under their names is
            removed, because it does not show this run.
        OSError: the system refuses to write.
    """
    failures: dict[str, Exception] = {}
    for name, draw in pictures.items():
        try:
            with storage.named(folder / name):
                draw(folder / name)
        except Exception as error:
            if storage.refusal(error) is not None:
                raise
            failures[name] = error
            if (folder / name).is_file():
                (folder / name).unlink()
    if failures:
        raise NotDrawn(failures)


def plot_curves(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Draws each metric that is evaluated during a run against the step, one line per split.

    Many metrics take several rows, because a picture that is too wide cannot be written.

    Args:
        path: the PNG file to write.
        records: the records of ``metrics.jsonl``. If they hold no evaluation, the metrics of
            training are drawn.
    """
    evaluated = [record for record in records if record["split"] in ("validation", "test")]
    names = {name for record in evaluated or records for name in record} - set(NOT_METRICS)
    # A metric that is measured once, at the end, makes no curve. A very short run has no others.
    counts = Counter(name for record in records for name in record)
    metrics = sorted(
        {name for name in names if counts[name] > 1} or names or {"loss"},
        key=lambda name: (name != "loss", name),
    )
    columns = min(len(metrics), 8)
    rows = math.ceil(len(metrics) / columns)
    figure, axes = new_figure(ncols=columns, nrows=rows, size=(5.0 * columns, 3.5 * rows))
    for axis in axes[len(metrics) :]:
        axis.set_visible(False)
    styles: dict[str, dict[str, Any]] = {
        "train": {"alpha": 0.5},
        "train_epoch": {"marker": "o"},
        "validation": {"marker": "s"},
        "test": {"marker": "*", "markersize": 10},
    }
    for axis, metric in zip(axes[: len(metrics)], metrics, strict=True):
        for split, style in styles.items():
            points = [
                (record["step"], record[metric])
                for record in records
                if record["split"] == split and metric in record
            ]
            if points:
                axis.plot(*zip(*points, strict=True), label=split.replace("_", ", "), **style)
        finish_axis(axis, xlabel="step", ylabel=metric)
    save(figure, path)


def draw_curves(target: Path | BinaryIO, curves: Mapping[str, Curve]) -> None:
    """Draws curves over one another.

    Args:
        target: the PNG file to write.
        curves: at least one curve, by the name that stands in the legend; "" is left out of it.
            The first curve names the axes.
    """
    figure, (axis,) = new_figure(ncols=1, size=(6.0, 4.0))
    add_curves(axis, curves)
    save(figure, target)


def add_curves(axis: Any, curves: Mapping[str, Curve]) -> None:
    """Draws curves as ``draw_curves`` does, on an axis of matplotlib."""
    for name, curve in curves.items():
        axis.plot(range(len(curve.values)), curve.values, label=literal(name))
    first = next(iter(curves.values()))
    if first.log:
        axis.set_yscale("log")
    finish_axis(axis, xlabel=first.xlabel, ylabel=first.ylabel)


def finish_axis(axis: Any, **labels: str) -> None:
    """Adds labels, a grid and, where something has a name, a legend to an axis of matplotlib."""
    axis.set(**{name: literal(text, length=80) for name, text in labels.items()})
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend()


def literal(text: str, *, length: int = 40) -> str:
    r"""Returns a text that matplotlib draws as it stands.

    Text between two ``$`` would be read as a formula, and a name that begins with ``_`` would be
    left out of a legend. Long texts are cut, because they would leave no room for the plot.

    Args:
        text: such as the name of a class or of a run.
        length: the most characters that are drawn.
    """
    # Half of a surrogate pair, as in the name of a file that is not UTF-8, cannot be drawn.
    shown = text.encode("utf-8", "replace").decode("utf-8").replace("\n", " ")
    if len(shown) > length:
        shown = shown[: length - 1] + "…"
    return (" " if shown.startswith("_") else "") + shown.replace("$", r"\$")


def drawable(text: str) -> bool:
    """Returns whether matplotlib's font has every character of a text."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_charmap()
    return all(ord(character) in known for character in text)


def image_grid(
    images: UInt8[np.ndarray, "images height width 3"],
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Lays images side by side, in about as many rows as columns."""
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:count] = images
    grid = cells.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * height, columns * width, channels)


def write_picture(path: Path, picture: UInt8[np.ndarray, "height width 3"]) -> None:
    """Writes a small picture as a PNG file, four times as wide and as high."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture)
    image.resize((image.width * 4, image.height * 4), Image.Resampling.NEAREST).save(path)


def new_figure(*, ncols: int, size: tuple[float, float], nrows: int = 1) -> tuple[Any, Any]:
    """Returns a figure of matplotlib, ``size`` in inches, and its axes, row by row."""
    # The object interface needs no window system, and pyplot would keep every figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(nrows=nrows, ncols=ncols, squeeze=False).ravel()


def save(figure: Any, target: Path | BinaryIO) -> None:
    """Writes a figure of matplotlib as a PNG file.

    A character that the font lacks is drawn as a box; the page has the same names as text.
    """
    with warnings.catch_warnings():
        # One warning per character and axis would bury the end of a run's output.
        for message in (
            "Glyph .* missing from",
            "Matplotlib currently does not support",
            "constrained_layout not applied",
            "Data has no positive values",
        ):
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
        figure.savefig(target, dpi=120, format="png")
