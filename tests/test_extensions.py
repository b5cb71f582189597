"""A family and a task of one's own: trained, resumed, asked and reported without an edit in zoo."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import zoo
from zoo import cli, inference
from zoo.config import ConfigError, base, check
from zoo.errors import UserError
from zoo.tasks import WINGS
from zoo.weights.files import read_weights

EXTENSIONS = ("made_up.extension",)


def config(model="slope", **changes):
    made = base(model=model, task="regression", extensions=EXTENSIONS)
    made.train.steps, made.train.batch_size, made.train.eval_batch_size = 40, 16, 16
    made.optimizer.learning_rate = 0.1
    made.checkpoint.every, made.mesh.data = 5, 1
    for path, value in changes.items():
        section, _, name = path.partition("__")
        made[section][name] = value
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("made_up")
    return workdir, zoo.run(config(), workdir)


def test_it_is_trained_and_reported(finished):
    workdir, report = finished
    assert report["metrics"]["validation"]["misfit"] < 0.1
    assert set(report["metrics"]["test"]) == {"loss", "misfit", "worst"}
    assert np.asarray(zoo.load(workdir).params["slope"])[0] == pytest.approx(2, abs=0.1)
    page = (workdir / "report.html").read_text()
    assert "First points" in page
    assert (workdir / "points.png").exists()


def test_it_goes_on_to_the_same_bits(finished, tmp_path):
    workdir, _ = finished
    zoo.run(config(train__steps=17), tmp_path)
    zoo.run(config(), tmp_path)
    one, two = (zoo.load(folder).variables for folder in (workdir, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_it_is_asked_in_its_own_words(finished, capsys):
    workdir, _ = finished
    cli.main(["lay", f"--workdir={workdir}", "--json", "1 -1"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["input"] == "1 -1"
    np.testing.assert_allclose(answer["output"], [2, -2], atol=0.2)
    np.testing.assert_array_equal(zoo.load(workdir).preprocess("1 -1"), [1, -1])
    with pytest.raises(SystemExit):
        cli.main(["predict", f"--workdir={workdir}", "1"])
    assert "use `zoo lay --workdir=" in capsys.readouterr().err


def test_it_is_evaluated_compared_and_exported(finished, tmp_path, capsys):
    workdir, report = finished
    again = inference.evaluate(workdir, config(), split="test")
    assert again["metrics"] == pytest.approx(report["metrics"]["test"])
    cli.main(["report", str(workdir), f"--out={tmp_path}/page.html"])
    assert "test misfit" in capsys.readouterr().out
    arrays = read_weights(inference.export(workdir, tmp_path / "out"))
    np.testing.assert_array_equal(arrays["weight"], zoo.load(workdir).params["slope"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__first": 11.0}, r"model\.first=11\.0 must be between -10 and 10"),
        ({"task__scale": 0.0}, r"task\.scale=0\.0 must be above 0"),
        ({"data__points": 0}, r"data\.points=0 must be at least 1"),
        ({"data__name": "line"}, r"data\.name='line' is unknown\. Did you mean 'lines'"),
        ({"checkpoint__metric": "misfits"}, r"Did you mean 'misfit'"),
    ],
)
def test_its_fields_have_their_rules(changes, words):
    with pytest.raises(ConfigError, match=words):
        check(config(**changes))


def test_a_size_is_a_default_that_differs():
    assert (config("steep").model.first, config("slope").model.first) == (3.0, 0.5)


def test_kinds_and_names_are_checked():
    with pytest.raises(ConfigError, match="'classification' does not train model.name='slope'"):
        check(base("slope", "classification", extensions=EXTENSIONS))
    with pytest.raises(ConfigError, match="there is no module 'made_down'"):
        base("slope", "regression", extensions=("made_down.extension",))
    with pytest.raises(ConfigError, match="has no FAMILIES and no WINGS"):
        base("slope", "regression", extensions=("made_up.data",))
    with pytest.raises(UserError, match="two families have a model 'slope'"):
        base("slope", "regression", extensions=(*EXTENSIONS, *EXTENSIONS))
    with pytest.raises(ConfigError, match=r"model\.name='slope' is unknown"):
        base("slope", "regression")


def test_nothing_but_the_wings_knows_a_task():
    root = Path(zoo.__file__).parent
    names = "|".join(re.escape(wing.name) for wing in WINGS)
    quoted = re.compile(rf"""["'](?:{names})["']|\btasks\.(?:{names})\b""")
    general = [
        *root.glob("*.py"), *root.glob("cli/*.py"), *root.glob("reports/*.py"),
        *root.glob("training/*.py"), *root.glob("data/*.py"), *root.glob("families/*.py"),
    ]  # fmt: skip
    assert len(general) > 50
    for file in general:
        code = re.sub(r'"""(?:.|\n)*?"""', "", file.read_text())
        assert not quoted.search(code), (file, quoted.search(code))
