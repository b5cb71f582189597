"""Every family through the very same step, loop, checkpoints and reports."""

import contextlib
import json
import logging
import signal
import wave

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import EACH, TINY, in_one_worker

import zoo
from zoo import building, cli, commands, inference
from zoo.config import check
from zoo.errors import Stopped, UserError
from zoo.reports.console import ConsoleWriter
from zoo.tasks import (
    WINGS,
    diffusion,
    forecasting,
    language_modelling,
    sequence_to_sequence,
    text_classification,
    transcription,
    translation,
)
from zoo.training.step import make_train_step

every_family = pytest.mark.parametrize("family", EACH)


def config(family, *overrides):
    tiny = [
        *TINY[family], "--config.train.steps=6", "--config.train.batch_size=8",
        "--config.train.eval_batch_size=256", "--config.train.log_every=2",
        "--config.train.eval_every=3", "--config.checkpoint.every=2", "--config.mesh.data=1",
        # A run that becomes longer has the same learning rates.
        "--config.optimizer.schedule=constant", "--config.optimizer.warmup_steps=0",
    ]  # fmt: skip
    return commands.override(commands.load_config(f"configs/{family}.py"), [*tiny, *overrides])


@contextlib.contextmanager
def compilations():
    """Collects what jax says of its compilations."""
    log, said = logging.getLogger("jax"), []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    log.addHandler(handler)
    with jax.log_compiles():
        yield said
    log.removeHandler(handler)


@pytest.fixture(scope="module", params=EACH)
def finished(request, tmp_path_factory):
    workdir = tmp_path_factory.mktemp(request.param)
    with compilations() as compiled:
        report = zoo.run(config(request.param), workdir)
    return request.param, workdir, report, compiled


def test_each_family_is_compiled_once_and_reports(finished):
    family, workdir, report, compiled = finished
    steps = [m for m in compiled if m.startswith("Finished XLA compilation of jit(step)")]
    assert len(steps) == 1, family
    assert json.loads((workdir / "report.json").read_text()) == report
    assert (report["status"], report["steps"]) == ("finished", 6)
    for split in ("train", "test"):
        assert np.isfinite(report["metrics"][split]["loss"])
    assert (workdir / "curves.png").exists()
    assert (workdir / "vocabulary.json").exists()
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    evaluated = [record for record in records if record["split"] == "validation"]
    for name, value in report["metrics"]["validation"].items():
        assert evaluated[-1][name] == value


@pytest.mark.parametrize(("metric", "best"), [("loss", min), ("absolute_error", min)])
def test_the_best_state_is_the_one_with_the_best_value(tmp_path, metric, best):
    changes = [f"--config.checkpoint.metric={metric}", "--config.train.eval_every=1"]
    report = zoo.run(config("forecast", *changes), tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    values = {r["step"]: r[metric] for r in records if r["split"] == "validation"}
    assert len(set(values.values())) == len(values) == 6
    assert report["best"] == {
        "step": best(values, key=values.get), metric: best(values.values()),
    }  # fmt: skip
    assert zoo.load(tmp_path, checkpoint="best").step == report["best"]["step"]


def test_each_metric_says_which_value_is_the_best():
    directions = {wing.name: dict(wing.metrics) for wing in WINGS}
    for metrics in directions.values():
        for name, best in metrics.items():
            assert best == ("highest" if name == "accuracy" else "lowest"), name


def test_a_run_is_loaded_without_its_data_and_evaluates_to_its_own_numbers(finished):
    family, workdir, report, _ = finished
    loaded = zoo.load(workdir)
    assert loaded.step == 6
    assert all(loaded.vocabularies.values())
    again = inference.evaluate(workdir, config(family), split="test")
    for name, value in report["metrics"]["test"].items():
        assert again["metrics"][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_a_stopped_run_goes_on_to_the_same_bits(finished, tmp_path, monkeypatch):
    family, workdir, _, _ = finished
    with monkeypatch.context() as patch:
        patch.setattr(
            ConsoleWriter, "step", lambda _, step: step == 4 and signal.raise_signal(signal.SIGTERM)
        )
        with pytest.raises(Stopped):
            zoo.run(config(family), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["steps"] == 4
    zoo.run(config(family), tmp_path)
    one, two = (zoo.load(folder).variables for folder in (workdir, tmp_path))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


@every_family
def test_padded_rows_count_nothing(family):
    parts = building.build(*building.with_data(check(config(family))))
    with building.train_batches(parts) as batches:
        batch = next(batches)
    variables = jax.jit(lambda: building.init_state(parts))()
    task = parts.task
    sums = jax.jit(task.evaluate)
    half = batch | {"mask": np.array([1, 1, 1, 1, 0, 0, 0, 0], np.float32)}
    other = {
        name: np.concatenate([rows[:4], rows[:4]]) if name != "mask" else rows
        for name, rows in half.items()
    }
    key = jax.random.key(0)
    for name, (total, weight) in sums(variables.params, variables.model_state, half, key).items():
        same = sums(variables.params, variables.model_state, other, key)[name]
        assert weight == same[1]
        np.testing.assert_allclose(total, same[0], rtol=1e-5, err_msg=name)


def test_all_families_train_through_the_same_function(monkeypatch):
    made = []

    def spy(*arguments, **options):
        made.append(make_train_step)
        return make_train_step(*arguments, **options)

    monkeypatch.setattr(building, "make_train_step", spy)
    for family in TINY:
        parts = building.build(*building.with_data(check(config(family))))
        shapes = building.train_shapes(parts)
        state = jax.eval_shape(lambda parts=parts: building.init_state(parts))
        after, metrics = jax.eval_shape(parts.train_step, state, shapes)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert "loss" in metrics
    assert len(made) == len(TINY)
    assert set(made) == {make_train_step}


def test_a_carried_state_is_that_of_the_whole_text():
    parts = building.build(
        *building.with_data(
            check(config("lstm", "--config.data.context=8", "--config.model.dropout_rate=0.0"))
        )
    )
    state = jax.jit(lambda: building.init_state(parts))()
    rows = []
    with building.train_batches(parts) as batches:
        rows = [next(batches) for _ in range(3)]
    model_state = state.model_state
    for batch in rows:
        _, (_, model_state, _) = parts.task.loss(
            state.params, model_state, batch, jax.random.key(0)
        )
    whole = jnp.concatenate([batch["tokens"] for batch in rows], axis=1)
    _, expected = parts.task.model.apply({"params": state.params}, whole)
    for a, b in zip(jax.tree.leaves(model_state["carry"]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    # A lane that begins anew forgets.
    again = rows[0] | {"start": np.ones(8, np.float32)}
    _, (_, fresh, _) = parts.task.loss(state.params, model_state, again, jax.random.key(0))
    _, (_, first, _) = parts.task.loss(state.params, state.model_state, rows[0], jax.random.key(0))
    for a, b in zip(jax.tree.leaves(fresh), jax.tree.leaves(first), strict=True):
        np.testing.assert_array_equal(a, b)


def test_commands_ask_runs_and_refuse_others(finished, tmp_path):
    family, workdir, _, _ = finished
    loaded = zoo.load(workdir)
    sound, series = tmp_path / "a.wav", tmp_path / "co2.csv"
    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(np.zeros(9000, "<i2").tobytes())
    days = np.datetime64("2020-01-01") + 7 * np.arange(160)
    series.write_text("date,co2\n" + "".join(f"{day},{i % 52}\n" for i, day in enumerate(days)))
    text = ("lstm", "gpt", "word_lm")
    asked = {
        "lstm": lambda: list(language_modelling.generate(loaded, "ROMEO", max_new_tokens=3)),
        "gpt": lambda: list(
            language_modelling.generate(loaded, "ROMEO", max_new_tokens=3, num_beams=2)
        ),
        "word_lm": lambda: language_modelling.next_words(loaded, "Die Katze", most=3),
        "transformer": lambda: [
            " ".join(t) for t in sequence_to_sequence.predict(loaded, ["word", "it"])
        ],
        "translate": lambda: translation.translate(loaded, ["Wo ist er?", "日本"]),
        "diffusion": lambda: diffusion.draw(loaded, "a red one in the top left", num=2, steps=2),
        "speech": lambda: transcription.transcribe(loaded, [sound, sound]),
        "classify_text": lambda: text_classification.predict(loaded, ["call now", ""]),
        "forecast": lambda: forecasting.forecast(loaded, str(series)).quantiles,
    }
    for name, ask in asked.items():
        if name == family:
            first = ask()
            with compilations() as compiled:
                second = ask()
            assert not [m for m in compiled if "Finished XLA compilation" in m], "asked once before"
            np.testing.assert_array_equal(first, second)
            assert len(first) == (3 if name in text else 52 if name == "forecast" else 2)
        elif not {name, family} <= set(text):
            with pytest.raises(UserError, match=r"needs a run with task\.name"):
                ask()


@pytest.mark.parametrize("finished", [in_one_worker("word_lm")], indirect=True)
def test_words_are_continued_and_unknown_ones_are_said(finished, capsys):
    _, workdir, _, _ = finished
    cli.main(["predict", f"--workdir={workdir}", "Tom Xyzzy", "--json"])
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["input"] == "Tom Xyzzy"
    assert len(found["output"]) == 10
    assert list(found["output"].values()) == sorted(found["output"].values(), reverse=True)
    assert "read as unknown: Xyzzy" in said.err
    cli.main(["generate", f"--workdir={workdir}", "--prompt=Tom", "--max-new-tokens=4"])
    said = capsys.readouterr()
    assert said.out.startswith("Tom")
    assert len(said.out.split()) <= 5
    assert "unknown" not in said.err


@pytest.mark.parametrize("finished", [in_one_worker("forecast")], indirect=True)
def test_a_forecast_is_a_table_and_a_plot(finished, tmp_path, capsys):
    _, workdir, _, _ = finished
    series, plot = tmp_path / "co2.csv", tmp_path / "ahead.png"
    days = np.datetime64("2020-01-01") + 7 * np.arange(200)
    rows = [f"{day},{'' if i == 50 else i % 52}\n" for i, day in enumerate(days)]
    series.write_text("date,co2\n" + "".join(rows))
    cli.main(["predict", f"--workdir={workdir}", str(series), f"--plot={plot}"])
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "date,quantile_0.05,quantile_0.5,quantile_0.95"
    assert len(lines) == 53
    assert lines[1].startswith(str(days[-1] + 7))
    low, middle, high = map(float, lines[1].split(",")[1:])
    assert low < middle < high
    assert plot.exists()
    assert "1 missing values are filled in" in said.err
    series.write_text("date,co2\n" + "".join(rows[-100:]))
    with pytest.raises(UserError, match="has 100 values; this run reads data.context=156"):
        forecasting.forecast(zoo.load(workdir), str(series))


def test_reports_have_examples_of_texts_and_bands(finished):
    family, workdir, report, _ = finished
    page = (workdir / "report.html").read_text()
    if family in ("lstm", "gpt", "word_lm"):
        assert set(report["examples"][0]) == {"given", "continued"}
        assert "<h2>Examples" in page
    if family == "translate":
        assert set(report["examples"][0]) == {"source", "translation", "reference"}
        assert len(report["examples"]) == len(report["attention"]) == 20
        assert "Attention: which source words" in page
    if family == "speech":
        assert set(report["examples"][0]) == {"said", "heard"}
    if family == "classify_text":
        assert all(mistake["text"] for mistake in report["mistakes"])
    if family == "forecast":
        assert (workdir / "bands.png").exists()
        assert "Forecasts, the first" in page
