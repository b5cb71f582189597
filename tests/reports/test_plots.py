"""Plots of names and records as they come, not as one would wish them."""

import warnings

import numpy as np
import pytest
from PIL import Image

from zoo.reports.plots import add_curves, draw_curves, literal, new_figure, plot_curves
from zoo.reports.sections import Curve

NAMES = [
    "$0_to_$5",
    r"$\frac{$",
    "$5",
    r"a\$b",
    r"\$a$b\$c$",
    "a_b^c",
    "中文",
    "_x",
    "\udce9",
    "x" * 99,
]


def drawn(text, **options):
    """The picture of a text."""
    figure, (axis,) = new_figure(ncols=1, size=(3.0, 1.0))
    axis.text(0, 0, text, **options)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba()).copy()


@pytest.mark.parametrize("name", NAMES[:6])
def test_a_name_is_drawn_as_it_stands(name):
    np.testing.assert_array_equal(drawn(literal(name)), drawn(name, parse_math=False))


def test_without_it_matplotlib_reads_a_formula():
    with pytest.raises(ValueError, match="ParseSyntaxException"):
        drawn("$0_to_$5")


def test_every_name_gets_into_the_legend_without_a_warning(tmp_path):
    curves = {name: Curve(name, name, name, (1.0, 2.0)) for name in NAMES}
    _, (axis,) = new_figure(ncols=1, size=(6.0, 4.0))
    add_curves(axis, curves)
    assert len(axis.get_legend().get_texts()) == len(NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_curves(tmp_path / "curves.png", curves)
    assert np.asarray(Image.open(tmp_path / "curves.png")).std() > 0


def test_a_logarithmic_curve_has_a_logarithmic_axis():
    for log in (False, True):
        _, (axis,) = new_figure(ncols=1, size=(6.0, 4.0))
        add_curves(axis, {"": Curve("a", "x", "y", (1.0, 0.1), log=log)})
        assert axis.get_yscale() == ("log" if log else "linear")
        assert axis.get_legend() is None


@pytest.mark.parametrize(
    "records",
    [
        [],
        [{"split": "train", "step": 1, "epoch": 1, "loss": 1.0, "learning_rate": 0.1}],
        [{"split": "test", "step": 1, "epoch": 1, "loss": 1.0, "cost in $ or $": 2.0}],
    ],
    ids=["none", "training alone", "a test alone"],
)
def test_a_run_with_few_records_has_curves(tmp_path, records):
    plot_curves(tmp_path / "curves.png", records)
    expected = 2 if any("cost in $ or $" in record for record in records) else 1
    assert Image.open(tmp_path / "curves.png").size == (600 * expected, 420)
