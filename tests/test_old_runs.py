"""Runs that version 0.1.0 left (commit ffb5b53), before models and tasks were records of their own.

``runs_of_0_1_0.tar.gz`` has tiny runs of ``configs/cnn.py`` and ``configs/lstm.py``, stopped after
four steps, without their pictures.
"""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

import zoo
from zoo import building, cli, inference
from zoo.config import check
from zoo.errors import UserError
from zoo.tasks import language_modelling

ARCHIVE = Path(__file__).with_name("runs_of_0_1_0.tar.gz")


@pytest.fixture(params=["cnn", "lstm"])
def old(request, tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / request.param


def test_it_is_loaded_evaluated_and_reported(old, capsys):
    report = json.loads((old / "report.json").read_text())
    assert zoo.load(old).step == report["steps"] == 4
    found = inference.evaluate(old, building.read_config(old))
    for name, value in report["metrics"]["test"].items():
        assert found["metrics"][name] == pytest.approx(value, rel=1e-4), name
    cli.main(["report", str(old), f"--out={old}/page.html"])
    assert "test loss" in capsys.readouterr().out


def test_it_is_not_evaluated_on_texts_of_other_symbols(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    old = tmp_path / "lstm"
    config = building.read_config(old).copy_and_resolve_references()
    (tmp_path / "play.txt").write_text("ABC abc, äöü!\n" * 3000)
    with config.unlocked():
        config.data.name, config.data.path = "text", str(tmp_path / "play.txt")
    with pytest.raises(UserError, match="the 13 characters of .* are not the 65 of the run"):
        inference.evaluate(old, config)


def test_it_is_exported_and_taken_up_again(old, tmp_path):
    loaded = zoo.load(old)
    inference.export(old, tmp_path / "weights")
    again = zoo.from_pretrained(loaded.config.model.name, tmp_path / "weights")
    assert again.module == loaded.module
    jax.tree.map(np.testing.assert_array_equal, again.variables, loaded.variables)


def test_it_goes_on(old):
    config = building.read_config(old).copy_and_resolve_references()
    config.train.steps = 6
    report = zoo.run(check(config), old)
    assert (report["steps"], report["status"]) == (6, "finished")
    steps = [json.loads(line)["step"] for line in (old / "metrics.jsonl").read_text().splitlines()]
    assert steps.count(2) == 1, "what was recorded before stays"
    assert np.isfinite(report["metrics"]["test"]["loss"])


def test_it_is_asked(old, capsys):
    if old.name == "lstm":
        text = "".join(language_modelling.generate(zoo.load(old), "ROMEO", max_new_tokens=5))
        assert len(text) == 5
    else:
        cli.main(["predict", f"--workdir={old}", "--json", "examples/digit.png"])
        assert len(json.loads(capsys.readouterr().out)["output"]) == 5
