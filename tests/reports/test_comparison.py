"""Finished runs side by side."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from zoo import cli
from zoo.errors import UserError
from zoo.reports import comparison
from zoo.reports.comparison import comparison_table, plot_comparison, read_reports
from zoo.reports.page import shows
from zoo.reports.plots import image_grid, write_picture
from zoo.reports.sections import Curve, Run
from zoo.tasks import language_modelling
from zoo.workdir import is_running


def make_run(folder, *, loss, status="finished", **fields):
    folder.mkdir(parents=True)
    report = {
        "status": status, "platform": "cpu", "parameters": 1234, "steps": 20,
        "train_seconds": 3.2, "examples_per_second": 10.0, "metrics": {"test": {"loss": loss}},
        "best": {"step": 10, "loss": loss / 2},
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report | fields))
    (folder / "config.json").write_text(json.dumps({"task": {"name": "language_modelling"}}))
    records = [{"split": "validation", "step": step, "loss": loss / step} for step in (10, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def as_runs(*folders):
    """The runs in folders, with what a language model shows."""
    reports = read_reports(folders, is_running)
    return [
        Run(name, folder, report, tuple(language_modelling.WING.sections(report, folder)))
        for (name, report), folder in zip(reports.items(), folders, strict=True)
    ]


def printed(table):
    console = Console(width=200, record=True, quiet=False, file=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_each_run_has_a_column_and_what_it_lacks_is_a_dash(tmp_path):
    one = make_run(tmp_path / "lstm", loss=1.25, gradient_by_distance=[0.5, 0.125])
    two = make_run(tmp_path / "gpt", loss=2.5)
    text = printed(comparison_table(as_runs(one, two)))
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if "│" in line}
    assert [cell.strip() for cell in rows["test loss"].split("│")[2:4]] == ["1.2500", "2.5000"]
    assert "1,234" in rows["parameters"]
    gradient = rows["gradient 1 steps back, relative to the largest"]
    assert [cell.strip() for cell in gradient.split("│")[2:4]] == ["2.5e-01", "-"]


def test_the_command_draws_them(tmp_path, capsys):
    runs = [make_run(tmp_path / name, loss=1.0, gradient_by_distance=[1, 0.1]) for name in "ab"]
    out = tmp_path / "new" / "both.html"
    cli.main(["report", *map(str, runs), "--out", str(out)])
    assert "curves in" in capsys.readouterr().out
    assert np.asarray(Image.open(out.with_suffix(".png"))).std() > 0


def test_folders_of_one_name_go_by_their_paths(tmp_path):
    runs = [make_run(tmp_path / name / "run", loss=1.0) for name in "ab"]
    assert list(read_reports(runs, is_running)) == [str(run) for run in runs]


def test_a_run_that_has_not_finished_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        read_reports([tmp_path], is_running)
    run = make_run(tmp_path / "half", loss=1.0, status="stopped")
    with pytest.raises(UserError, match=r"half has not finished \(status 'stopped'\)"):
        read_reports([run], is_running)


def test_a_run_given_twice_is_one_line_of_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a", loss=1.0)
    for again in ("a", "./a", str(tmp_path / "a"), "b/../a"):
        (tmp_path / "b").mkdir(exist_ok=True)
        with pytest.raises(SystemExit) as ended:
            cli.main(["report", "a", again])
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert said == f"error: {Path(again)} is given twice: give each run once\n"


def test_the_folder_where_one_stands_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(make_run(tmp_path / "lstm", loss=1.0))
    assert list(read_reports([Path(".")], is_running)) == ["lstm"]


def test_curves_of_one_title_are_laid_over_one_another(tmp_path, monkeypatch):
    first, second, third = (make_run(tmp_path / name, loss=1.0) for name in ("a", "b", "_c"))

    def run(folder, *curves):
        return Run(folder.name, folder, {}, curves)

    runs = [
        run(first, Curve("gain", "steps", "dB", (1.0, 2.0)), Curve("other", "x", "y", (5.0,))),
        run(second, Curve("gain", "steps", "dB", (3.0, 4.0, 5.0))),
        run(third),
    ]
    figures = []
    monkeypatch.setattr(comparison, "save", lambda figure, path: figures.append(figure))
    plot_comparison(tmp_path / "new" / "curves.png", runs, print)
    loss, gain, other = figures[0].axes
    drawn = {line.get_label().strip(): line.get_ydata() for line in loss.lines}
    assert {name: list(values) for name, values in drawn.items()} == {
        name: [0.1, 0.05] for name in ("a", "b", "_c")
    }
    assert [text.get_text().strip() for text in loss.get_legend().get_texts()] == ["a", "b", "_c"]
    assert [list(line.get_ydata()) for line in gain.lines] == [[1.0, 2.0], [3.0, 4.0, 5.0]]
    assert (gain.get_xlabel(), gain.get_ylabel()) == ("steps", "dB")
    assert [list(line.get_ydata()) for line in other.lines] == [[5.0]]


def test_a_page_of_other_runs_is_not_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        make_run(tmp_path / name, loss=1.0)
    first, second, third = (Path(f"runs/report{number}.html") for number in ("", "-2", "-3"))
    cli.main(["report", "a", "b"])
    assert f"page in {first}, curves in runs/report.png" in capsys.readouterr().out
    of_ab = first.read_bytes()
    cli.main(["report", "a", "c"])
    said = capsys.readouterr().out
    assert f"{first} is a page of other runs: trying {second}" in said
    assert f"page in {second}, curves in runs/report-2.png" in said
    assert first.read_bytes() == of_ab
    # The same runs, in whatever order, have their page written anew.
    cli.main(["report", "b", "./a"])
    assert f"page in {first}, which is replaced, curves" in capsys.readouterr().out
    assert shows(first, as_runs(Path("a"), Path("b")))
    cli.main(["report", "c", "a"])
    assert f"page in {second}, which is replaced, curves" in capsys.readouterr().out
    # A file that zoo did not write is left alone as well.
    second.write_text("mine")
    cli.main(["report", "a", "c"])
    assert f"page in {third}, curves in runs/report-3.png" in capsys.readouterr().out
    assert second.read_text() == "mine"


def test_a_page_that_was_asked_for_by_name_is_replaced_and_said(tmp_path, capsys):
    out = tmp_path / "mine.html"
    out.write_text("old")
    cli.main(["report", str(make_run(tmp_path / "a", loss=1.0)), "--out", str(out)])
    assert f"page in {out}, which is replaced, curves" in capsys.readouterr().out
    assert "1.0000" in out.read_text()


def test_a_grid_shows_every_image_in_its_place(tmp_path):
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 6, 3), np.uint8)
    grid = image_grid(images + 1)
    assert grid.shape == (8, 18, 3)
    places = grid[::4, ::6, 0]
    np.testing.assert_array_equal(places, [[1, 2, 3], [4, 5, 0]])
    write_picture(tmp_path / "grid.png", grid)
    read = np.asarray(Image.open(tmp_path / "grid.png"))
    np.testing.assert_array_equal(read[::4, ::4], grid)
