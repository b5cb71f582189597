"""The report page and figures of a forecaster's run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.datasets import Dataset
from zoo.data.vocabulary import Vocabulary
from zoo.reports.plots import draw_each, finish_axis, new_figure, save
from zoo.reports.sections import Figure, Section

Report = Mapping[str, Any]


def sections(report: Report, folder: Path) -> list[Section]:
    """Returns forecasts and their bands."""
    title = "Forecasts, the first and the last of the test split among them"
    return [Figure(title, "bands.png")] if report.get("bands") else []


def draw(
    report: Report, folder: Path, vocabularies: Mapping[str, Vocabulary], dataset: Dataset
) -> None:
    """Draws some forecasts of the test split as ``bands.png``."""
    if bands := report.get("bands"):
        draw_each(folder, {"bands.png": lambda path: draw_bands(path, bands)})


def draw_bands(path: Path, bands: Sequence[Mapping[str, Any]]) -> None:
    """Draws forecasts one above the other: the past, the band of quantiles, and the true values.

    Args:
        path: the PNG file to write.
        bands: ``series`` and ``quantiles`` of each forecast; the middle quantile is the forecast.
            If they are known, also ``target``, the true values, and ``naive``, the values of the
            season before.
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
        finish_axis(axis, xlabel="steps after the last known value")
    save(figure, path)
