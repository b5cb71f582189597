"""Pictures of a run, as PNG files."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8


def plot_curves(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Draws each metric that is evaluated as a run goes on against the step, one line a split.

    Args:
        path: the PNG file to write.
        records: the records of ``metrics.jsonl``.
    """
    not_drawn = {"split", "step", "epoch", "seconds"}
    evaluated = [record for record in records if record["split"] in ("validation", "test")]
    names = set().union(*evaluated) - not_drawn
    # What is measured once, at the end, makes no curve; unless the run was so short that all is.
    counts = Counter(name for record in records for name in record)
    metrics = sorted(
        {name for name in names if counts[name] > 1} or names,
        key=lambda name: (name != "loss", name),
    )
    figure, axes = new_figure(ncols=len(metrics), size=(5.0 * len(metrics), 3.5))
    styles: dict[str, dict[str, Any]] = {
        "train": {"alpha": 0.5},
        "train_epoch": {"marker": "o"},
        "validation": {"marker": "s"},
        "test": {"marker": "*", "markersize": 10},
    }
    for axis, metric in zip(axes, metrics, strict=True):
        for split, style in styles.items():
            points = [
                (record["step"], record[metric])
                for record in records
                if record["split"] == split and metric in record
            ]
            if points:
                axis.plot(*zip(*points, strict=True), label=split.replace("_", ", "), **style)
        axis.set(xlabel="step", ylabel=metric)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    figure.savefig(path, dpi=120)


def plot_confusion_matrix(
    path: Path, matrix: Sequence[Sequence[int]], class_names: Sequence[str]
) -> None:
    """Draws a confusion matrix: rows are the true classes, columns the predicted ones."""
    counts = np.asarray(matrix)
    side = 3.0 + 0.4 * len(class_names)
    figure, (axis,) = new_figure(ncols=1, size=(side, side))
    axis.imshow(np.log1p(counts), cmap="Blues")
    ticks = range(len(class_names))
    axis.set_xticks(ticks, class_names, rotation=90 if max(map(len, class_names)) > 2 else 0)
    axis.set_yticks(ticks, class_names)
    axis.set(xlabel="predicted", ylabel="true")
    dark = np.log1p(counts.max()) / 2
    for row, column in np.ndindex(*counts.shape):
        count = counts[row, column]
        color = "white" if np.log1p(count) > dark else "black"
        axis.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    figure.savefig(path, dpi=120)


def image_grid(
    images: UInt8[np.ndarray, "images height width 3"],
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Lays images side by side, in rows of about as many as there are rows."""
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:count] = images
    grid = cells.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * height, columns * width, channels)


def write_picture(path: Path, picture: UInt8[np.ndarray, "height width 3"]) -> None:
    """Writes a picture of few pixels, four screen pixels for one, as a PNG file."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture)
    image.resize((image.width * 4, image.height * 4), Image.Resampling.NEAREST).save(path)


def write_mistakes(
    folder: Path, images: Sequence[UInt8[np.ndarray, "height width channels"]]
) -> None:
    """Writes images to ``mistakes/0.png`` and so on, in place of older ones."""
    from PIL import Image

    (folder / "mistakes").mkdir(exist_ok=True)
    for old in (folder / "mistakes").glob("*.png"):
        old.unlink()
    for number, image in enumerate(images):
        # Scenes come as numbers between -1 and 1.
        pixels = image if image.dtype == np.uint8 else ((image + 1) * 127.5).astype(np.uint8)
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        picture.thumbnail((256, 256))
        picture.save(folder / "mistakes" / f"{number}.png")


def plot_scores(
    folder: Path, report: Mapping[str, Any], symbols: Mapping[str, Sequence[str]]
) -> None:
    """Draws what a report has to draw, each into a file of its own in ``folder``.

    Args:
        folder: where the PNG files go.
        report: the content of ``report.json``.
        symbols: of the data, by vocabulary.
    """
    if "confusion_matrix" in report:
        plot_confusion_matrix(
            folder / "confusion_matrix.png", report["confusion_matrix"], symbols["classes"]
        )
    if "bands" in report:
        plot_bands(folder / "bands.png", report["bands"])
    if "gradient_by_distance" in report:
        figure, (axis,) = new_figure(ncols=1, size=(6.0, 4.0))
        draw_gradients(axis, {"": report["gradient_by_distance"]})
        figure.savefig(folder / "gradient_by_distance.png", dpi=120)


def plot_bands(path: Path, bands: Sequence[Mapping[str, Any]]) -> None:
    """Draws forecasts one above the other: what has been, what came, and the band of quantiles.

    Args:
        path: the PNG file to write.
        bands: ``series`` and ``quantiles``, the middle one the forecast; where they are known also
            ``target``, what came, and ``naive``, what the season before had.
    """
    figure, rows = new_figure(ncols=1, size=(9.0, 3.0 * len(bands)), nrows=len(bands))
    for axis, band in zip(rows, bands, strict=True):
        quantiles = np.asarray(band["quantiles"])
        before = range(-len(band["series"]) + 1, 1)
        after = range(1, len(quantiles) + 1)
        axis.plot(before, band["series"], color="black", label="before")
        axis.fill_between(after, quantiles[:, 0], quantiles[:, -1], alpha=0.3, label="band")
        axis.plot(after, quantiles[:, quantiles.shape[1] // 2], label="forecast")
        if "target" in band:
            axis.plot(after, band["target"], color="black", linestyle=":", label="what came")
        if "naive" in band:
            axis.plot(after, band["naive"], color="gray", linewidth=0.8, label="season before")
        axis.set(xlabel="steps from the last value that is known")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)


def draw_gradients(axis: Any, curves: Mapping[str, Sequence[float]]) -> None:
    """Draws how the gradient falls with the distance in time, one line a run.

    Args:
        axis: of matplotlib.
        curves: mean norms by distance, by the name of the run.
    """
    for name, norms in curves.items():
        axis.semilogy(range(len(norms)), norms, label=name)
    axis.set(xlabel="characters back", ylabel="gradient of the last loss")
    axis.grid(alpha=0.3)
    if any(curves):
        axis.legend()


def new_figure(*, ncols: int, size: tuple[float, float], nrows: int = 1) -> tuple[Any, Any]:
    """Returns a figure of matplotlib, ``size`` in inches, and its axes, row by row."""
    # The object interface: no window system, and no figures kept by pyplot.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(nrows=nrows, ncols=ncols, squeeze=False).ravel()
