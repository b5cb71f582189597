"""``zoo.fit``: one's own model, loss and data through the loop of ``train.py``."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import peers
import pytest

import zoo
from zoo.errors import Stopped, UserError
from zoo.training import loop

# Its one run is made once if one worker has it all.
pytestmark = pytest.mark.xdist_group("fit")

GENERATOR = np.random.default_rng(0)
CODES = GENERATOR.normal(size=(160, 2)).astype(np.float32)
IMAGES = (CODES @ GENERATOR.normal(size=(2, 12)).astype(np.float32)).reshape(160, 3, 4)
SPLITS = {"train": {"image": IMAGES[:130]}, "validation": {"image": IMAGES[130:]}}


class Autoencoder(nn.Module):
    """Two numbers for each image, and back; dropout, and statistics that it keeps."""

    @nn.compact
    def __call__(self, image, *, train=False):
        x = image.reshape(len(image), -1)
        seen = self.variable("counts", "batches", lambda: jnp.zeros(()))
        if train and not self.is_initializing():
            seen.value += 1
        code = nn.Dropout(0.01, deterministic=not train)(nn.Dense(2)(x))
        return nn.Dense(x.shape[-1])(code).reshape(image.shape)


def loss(model, batch, *, train):
    error = (model(batch["image"], train=train) - batch["image"]) ** 2
    return error.mean(axis=(1, 2)), {"largest": error.max(axis=(1, 2))}


def fit(workdir, *, steps=60, splits=None, **options):
    return zoo.fit(
        zoo.make_task(Autoencoder(), loss),
        **(SPLITS if splits is None else splits),
        workdir=workdir,
        optimizer=optax.adam(0.02),
        steps=steps,
        **{"batch_size": 32, "eval_batch_size": 32, "save_every": 10, "devices": 1, **options},
    )


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("fit")
    return workdir, fit(workdir)


def test_it_learns_and_leaves_what_a_run_leaves(fitted):
    workdir, made = fitted
    variance = ((IMAGES[130:] - IMAGES[130:].mean()) ** 2).mean()
    assert made.report["metrics"]["validation"]["loss"] < 0.5 * variance
    assert json.loads((workdir / "report.json").read_text()) == made.report
    for name in (
        "report.html",
        "curves.png",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "best",
    ):
        assert (workdir / name).exists(), name
    assert made.variables["counts"]["batches"] == 60
    # The mean over the validation split, its padded last batch left out.
    out = Autoencoder().apply(made.variables, IMAGES[130:])
    expected = float(((out - IMAGES[130:]) ** 2).mean())
    assert made.report["metrics"]["validation"]["loss"] == pytest.approx(expected, rel=1e-5)


def test_it_goes_on_to_the_same_bits_and_may_become_longer(fitted, tmp_path):
    fit(tmp_path, steps=23)
    again = fit(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.variables, fitted[1].variables)
    assert fit(tmp_path).report == again.report


def test_a_signal_saves_and_the_same_call_goes_on(fitted, tmp_path, monkeypatch):
    stopped = []
    check = loop.StopSignal.check

    def stops(self):
        stopped.append(None)
        if len(stopped) == 17:
            raise Stopped(15)
        check(self)

    monkeypatch.setattr(loop.StopSignal, "check", stops)
    with pytest.raises(Stopped):
        fit(tmp_path)
    monkeypatch.undo()
    assert json.loads((tmp_path / "report.json").read_text())["status"] == "stopped"
    jax.tree.map(np.testing.assert_array_equal, fit(tmp_path).variables, fitted[1].variables)


class ByIndex:
    """What a ``torch.utils.data.Dataset`` is, without torch."""

    def __len__(self):
        return 130

    def __getitem__(self, index):
        return {"image": IMAGES[index].tolist()}


def torch_source():
    torch = peers.torch()

    class Own(torch.utils.data.Dataset):
        def __len__(self):
            return 130

        def __getitem__(self, index):
            return {"image": torch.from_numpy(IMAGES[index])}

    return Own()


def grain_source():
    import grain

    return grain.MapDataset.source([{"image": image} for image in IMAGES[:130]])


@pytest.mark.parametrize(
    "make",
    [lambda: [{"image": image} for image in IMAGES[:130]], ByIndex, torch_source, grain_source],
)
def test_every_kind_of_source_gives_the_same_run(fitted, tmp_path, make):
    made = fit(tmp_path, steps=20, splits=SPLITS | {"train": make()})
    reference = fit(tmp_path / "arrays", steps=20)
    for a, b in zip(
        jax.tree.leaves(made.variables), jax.tree.leaves(reference.variables), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_transform_is_a_function_of_seed_and_example(tmp_path):
    def noisy(example, generator):
        return {"image": example["image"] + generator.normal(size=(3, 4))}

    one, two = (fit(tmp_path / n, steps=8, train_transform=noisy).variables for n in "ab")
    jax.tree.map(np.testing.assert_array_equal, one, two)
    other = fit(tmp_path / "c", steps=8, train_transform=noisy, seed=1).variables
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))


@pytest.mark.parametrize(
    ("splits", "options", "words"),
    [
        ({"train": []}, {}, "train has no examples"),
        ({"train": {"a": np.zeros(3), "b": np.zeros(4)}}, {}, r"\{'a': 3, 'b': 4\} rows"),
        ({"train": [(1, 2)]}, {}, r"train\[0\] is of type tuple: give a dictionary"),
        ({"train": iter([])}, {}, "train is of type list_iterator: give"),
        ({"train": [{"text": "a"}]}, {}, r"train\[0\]\['text'\] is <U1"),
        ({"train": {"mask": np.zeros(3)}}, {}, "rename it"),
        (SPLITS, {"batch_size": 0}, "batch_size=0 must be at least 1"),
        (SPLITS, {"accumulate": 3}, "batch_size=32 is not a multiple of accumulate=3"),
        (SPLITS, {"steps": 0}, "steps=0 must be at least 1"),
        (SPLITS, {"precision": "float16"}, "precision='float16' must be one of"),
        (SPLITS, {"best_metric": "accuracy"}, "best_metric='accuracy'"),
        (SPLITS, {"devices": 100}, "there are only"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, splits, options, words):
    with pytest.raises(UserError, match=words):
        fit(tmp_path / "run", splits=splits, **options)


def test_another_run_in_the_folder_is_refused(fitted):
    workdir, _ = fitted
    with pytest.raises(UserError, match="batch_size is 32 there and 16 here"):
        fit(workdir, batch_size=16)
    with pytest.raises(UserError, match="60 steps, more than the 40 here"):
        fit(workdir, steps=40)
    with pytest.raises(UserError, match=r"zoo\.fit"):
        zoo.load(workdir)


def test_a_loss_of_another_shape_is_refused(tmp_path):
    task = zoo.make_task(Autoencoder(), lambda model, batch, train: model(batch["image"]).mean())
    with pytest.raises(UserError, match="one number for each of the"):
        zoo.fit(task, **SPLITS, workdir=tmp_path, optimizer=optax.sgd(0.1), steps=1)


def test_a_task_of_the_zoo_can_be_fitted(tmp_path):
    from zoo.tasks import Classification

    labels = (CODES[:, 0] > 0).astype(np.int32)
    images = np.repeat(IMAGES[..., None], 3, axis=-1)
    data = {"image": np.repeat(np.repeat(images, 3, axis=1), 3, axis=2), "label": labels}
    task = Classification(zoo.create_model("cnn", num_classes=2, features=(4, 4, 4)))
    made = zoo.fit(
        dataclasses.replace(task, class_names=("left", "right")),
        train=data, test=data, workdir=tmp_path, optimizer=optax.adam(0.01), steps=15,
        batch_size=32, devices=1,
    )  # fmt: skip
    assert made.report["metrics"]["test"]["accuracy"] > 0.6
    assert np.sum(made.report["confusion_matrix"]) == 160


def broken(*arguments, **options):
    raise ZeroDivisionError("float division by zero <here>")


@pytest.mark.parametrize("part", ["curves.png", "scores", "Parameters"])
def test_what_cannot_be_made_is_named_and_the_run_is_finished(tmp_path, monkeypatch, capsys, part):
    place = {
        "curves.png": "zoo.runner.plot_curves",
        "scores": "zoo.tasks.own.OwnTask.score",
        "Parameters": "zoo.reports.page._parameters",
    }[part]
    short = {"steps": 4, "splits": SPLITS | {"test": SPLITS["validation"]}}
    with monkeypatch.context() as patched:
        patched.setattr(place, broken)
        report = fit(tmp_path, **short).report
        why = "ZeroDivisionError: float division by zero <here>"
        assert (
            f"warning: {part if part != 'scores' else 'the scores'} could not be made ({why})"
            in (capsys.readouterr().out)
        )
        assert (report["status"], report["failures"]) == ("finished", {part: why})
        assert set(report["metrics"]) == {"train", "validation", "test"}
        assert json.loads((tmp_path / "report.json").read_text()) == report
        page = (tmp_path / "report.html").read_text()
        assert part in page
        assert "float division by zero &lt;here&gt;" in page
        # A second call fails in the same way, and in no other.
        second = fit(tmp_path, **short).report
        assert (second["failures"], second["metrics"]) == ({part: why}, report["metrics"])
    # When the cause is gone, the same call draws again, from the same numbers.
    again = fit(tmp_path, **short).report
    assert again["metrics"] == report["metrics"]
    assert "failures" not in again
    assert "division" not in (tmp_path / "report.html").read_text()
    assert (tmp_path / "curves.png").exists()


def test_the_numbers_are_written_before_anything_is_drawn(tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("zoo.runner.plot_curves", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path, steps=4)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["status"], report["failures"].keys()) == ("finished", {"report.html"})
    assert not (tmp_path / "report.html").exists()
    again = fit(tmp_path, steps=4).report
    assert again == {name: value for name, value in report.items() if name != "failures"}
    assert (tmp_path / "report.html").exists()


def test_a_run_that_ends_with_an_error_does_not_go_on_running(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("zoo.training.loop._evaluate", broken)
        with pytest.raises(ZeroDivisionError):
            fit(tmp_path, steps=20, save_every=2, eval_every=6)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["status"], report["steps"]) == ("failed", 4)
    assert "division by zero" in report["reason"]
    assert fit(tmp_path, steps=20, save_every=2, eval_every=6).report["status"] == "finished"


@pytest.mark.parametrize(
    ("damage", "foreign"),
    [
        (b'{"split": "train", "st', 0),
        (b"\0" * 40, 1),
        (b"\x93\xfa\nhello\n", 2),
        (b'{"split": "test", "step": "x"}\n', 1),
    ],
)
def test_damage_to_the_records_is_said_and_nothing_is_thrown_away(
    tmp_path, capsys, damage, foreign
):
    fit(tmp_path, steps=5, log_every=1, eval_every=2)
    file, aside = tmp_path / "metrics.jsonl", tmp_path / "metrics.jsonl.damaged"
    whole = file.read_bytes()
    records = [json.loads(line) for line in whole.splitlines()]
    file.write_bytes(whole + damage)
    capsys.readouterr()
    fit(tmp_path, steps=10, log_every=1, eval_every=2)
    said = capsys.readouterr().out
    now = [json.loads(line) for line in file.read_text().splitlines()]
    assert now[: len(records)] == records
    assert [r["step"] for r in now if r["split"] == "train"] == list(range(1, 11))
    assert aside.exists() == (foreign > 0)
    if foreign:
        lines = len(records) + foreign
        assert f"is damaged: {foreign} of {lines} lines are no records" in said
        assert f"the file is kept as {aside.name}, and its {len(records)} records stay" in said
        assert aside.read_bytes() == whole + damage
    else:
        assert "the last line, which a crash has cut off, is left out" in said


@pytest.mark.parametrize("how", ["empty", "absent", "a folder"])
def test_records_that_are_gone_are_missed(tmp_path, capsys, how):
    fit(tmp_path, steps=5, eval_every=2)
    file = tmp_path / "metrics.jsonl"
    file.unlink()
    if how == "empty":
        file.touch()
    if how == "a folder":
        file.mkdir()
    fit(tmp_path, steps=8, eval_every=2)
    assert f"{file} does not have any of the records before step 5" in capsys.readouterr().out
