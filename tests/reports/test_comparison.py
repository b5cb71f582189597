"""Finished runs side by side."""

import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from zoo import cli
from zoo.errors import UserError
from zoo.reports.comparison import comparison_table, read_reports
from zoo.reports.plots import image_grid, write_picture


def make_run(folder, *, loss, status="finished", **fields):
    folder.mkdir(parents=True)
    report = {
        "status": status, "platform": "cpu", "parameters": 1234, "steps": 20,
        "train_seconds": 3.2, "examples_per_second": 10.0, "metrics": {"test": {"loss": loss}},
        "best": {"step": 10, "loss": loss / 2},
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report | fields))
    (folder / "config.json").write_text("{}")
    records = [{"split": "validation", "step": step, "loss": loss / step} for step in (10, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def printed(table):
    console = Console(width=200, record=True, quiet=False, file=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_each_run_has_a_column_and_what_it_lacks_is_a_dash(tmp_path):
    one = make_run(tmp_path / "lstm", loss=1.25, gradient_by_distance=[0.5, 0.125])
    two = make_run(tmp_path / "gpt", loss=2.5)
    text = printed(comparison_table(read_reports([one, two])))
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if "│" in line}
    assert [cell.strip() for cell in rows["test loss"].split("│")[2:4]] == ["1.2500", "2.5000"]
    assert "1,234" in rows["parameters"]
    gradient = rows["gradient 1 steps back, of the largest"]
    assert [cell.strip() for cell in gradient.split("│")[2:4]] == ["2.5e-01", "-"]


def test_the_command_draws_them(tmp_path, capsys):
    runs = [make_run(tmp_path / name, loss=1.0, gradient_by_distance=[1, 0.1]) for name in "ab"]
    out = tmp_path / "new" / "both.html"
    cli.main(["report", *map(str, runs), "--out", str(out)])
    assert "curves in" in capsys.readouterr().out
    assert np.asarray(Image.open(out.with_suffix(".png"))).std() > 0


def test_folders_of_one_name_go_by_their_paths(tmp_path):
    runs = [make_run(tmp_path / name / "run", loss=1.0) for name in "ab"]
    assert list(read_reports(runs)) == [str(run) for run in runs]


def test_a_run_that_has_not_finished_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        read_reports([tmp_path])
    run = make_run(tmp_path / "half", loss=1.0, status="stopped")
    with pytest.raises(UserError, match=r"half has not finished \(status 'stopped'\)"):
        read_reports([run])


def test_a_grid_shows_every_image_in_its_place(tmp_path):
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 6, 3), np.uint8)
    grid = image_grid(images + 1)
    assert grid.shape == (8, 18, 3)
    places = grid[::4, ::6, 0]
    np.testing.assert_array_equal(places, [[1, 2, 3], [4, 5, 0]])
    write_picture(tmp_path / "grid.png", grid)
    read = np.asarray(Image.open(tmp_path / "grid.png"))
    np.testing.assert_array_equal(read[::4, ::4], grid)
