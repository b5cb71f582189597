"""Whole runs of a tiny network on the shipped digits: what a person sees, keeps and can do next."""

import json
import logging
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import zoo
from zoo import building, cli, commands, inference
from zoo.errors import UserError

# Its one run is made once if one worker has it all.
pytestmark = pytest.mark.xdist_group("run")

ROOT = Path(__file__).parents[1]
TFDS = Path(os.environ.get("ZOO_DATA_DIR", ROOT.parent / "shared" / "data" / "tfds"))
TINY = [
    "--config.model.features=(4, 8, 8)", "--config.model.hidden_features=16",
    "--config.data.image_size=16", "--config.train.batch_size=256", "--config.train.epochs=2",
    "--config.train.log_every=8", "--config.optimizer.learning_rate=0.01",
    "--config.train.eval_batch_size=512", "--config.mesh.data=1",
]  # fmt: skip


def config(*overrides):
    return commands.override(commands.load_config("configs/cnn.py"), [*TINY, *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, its report and what it logged of compilations."""
    workdir = tmp_path_factory.mktemp("run")
    log = logging.getLogger("jax")
    compiled = []
    handler = logging.Handler()
    handler.emit = lambda record: compiled.append(record.getMessage())
    log.addHandler(handler)
    with jax.log_compiles():
        report = zoo.run(config(), workdir)
    log.removeHandler(handler)
    return workdir, report, compiled


def test_the_report_says_what_the_issue_promises(finished):
    workdir, report, _ = finished
    assert json.loads((workdir / "report.json").read_text()) == report
    assert (report["status"], report["platform"]) == ("finished", "cpu")
    assert (report["steps"], report["epochs"]) == (40, 2)
    # Closed form: three convolutions of 3x3, then 4*4*8 inputs to 16, then 10.
    assert report["parameters"] == 4 * 28 + 8 * 37 + 8 * 73 + 129 * 16 + 17 * 10
    assert report["train_seconds"] > 0
    assert report["compile_seconds"] > 0
    for split in ("train", "test"):
        assert set(report["metrics"][split]) >= {"loss", "accuracy"}
    assert np.sum(report["confusion_matrix"]) == 1000
    accuracy = np.trace(report["confusion_matrix"]) / 1000
    assert report["metrics"]["test"]["accuracy"] == pytest.approx(accuracy)
    assert accuracy > 0.3, "two epochs teach more than chance"


def test_records_have_their_fields_and_epoch_means(finished):
    workdir, report, _ = finished
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    train = [record for record in records if record["split"] == "train"]
    assert [record["step"] for record in train] == [8, 16, 24, 32, 40]
    assert set(train[0]) >= {
        "split", "step", "epoch", "loss", "accuracy", "learning_rate", "gradient_norm",
        "examples_per_second", "data_wait_seconds",
    }  # fmt: skip
    epochs = [record for record in records if record["split"] == "train_epoch"]
    assert [record["step"] for record in epochs] == [20, 40]
    assert report["metrics"]["train"]["loss"] == epochs[-1]["loss"]
    assert [r["step"] for r in records if r["split"] == "validation"] == [20, 40]


def test_the_step_is_compiled_once_though_the_last_batch_is_partial(finished):
    compiled = finished[2]

    def count(name):
        return sum(m.startswith(f"Finished XLA compilation of jit({name})") for m in compiled)

    assert count("step") == 1
    assert count("evaluation") == 2  # the means of all splits, and the outputs for the scores


def test_plots_and_events_can_be_opened(finished):
    workdir = finished[0]
    for name in ("curves.png", "confusion_matrix.png"):
        with Image.open(workdir / name) as image:
            assert min(image.size) > 200
    from tensorboardX.proto.event_pb2 import Event

    tags = set()
    for file in (workdir / "tensorboard").iterdir():
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            tags |= {value.tag for value in event.summary.value}
            at += 16 + length
    assert {"train/loss", "train/learning_rate", "validation/accuracy", "test/accuracy"} <= tags


def test_the_same_command_on_a_finished_run_gives_its_report(finished, capsys):
    workdir, report, _ = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    assert zoo.run(config(), workdir) == report
    assert "has finished 40 steps" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_evaluation_of_the_checkpoint_gives_the_runs_own_numbers(finished, capsys):
    workdir, report, _ = finished
    cli.main(["evaluate", f"--workdir={workdir}", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["metrics"] == report["metrics"]["test"]
    assert result["confusion_matrix"] == report["confusion_matrix"]
    best = inference.evaluate(workdir, config(), split="validation", checkpoint="best")
    assert best["step"] == report["best"]["step"]
    assert best["metrics"]["accuracy"] == pytest.approx(report["best"]["accuracy"])


@pytest.mark.skipif(not (TFDS / "mnist").is_dir(), reason=f"no MNIST in {TFDS}: set ZOO_DATA_DIR")
def test_evaluation_on_other_data_by_override(finished):
    workdir = finished[0]
    other = config("--config.data.name=mnist", f"--config.data.data_dir={TFDS}")
    result = inference.evaluate(workdir, other)
    assert np.sum(result["confusion_matrix"]) == 10_000
    assert result["metrics"]["accuracy"] > 0.3


def test_two_devices_train_like_one(tmp_path):
    # A few small steps: rounding, which differs, grows with each.
    short = ["--config.train.steps=6", "--config.optimizer.learning_rate=0.001"]
    one, two = (
        zoo.run(config(*short, f"--config.mesh.data={devices}"), tmp_path / str(devices))
        for devices in (1, 2)
    )
    for split in ("train", "validation", "test"):
        assert two["metrics"][split]["loss"] == pytest.approx(
            one["metrics"][split]["loss"], rel=1e-5
        )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--config.data.name=mnist", "--config.data.data_dir=/nowhere"], "/nowhere"),
        (["--config.model.num_classes=3"], "model.num_classes=3 is fewer than the 10"),
        (["--config.mesh.data=100"], "mesh.data=100"),
        (["--config.mesh.data=3"], "train.batch_size=256 cannot be divided over 3"),
        (["--config.platform=tpu"], "platform='tpu'"),
        (["--config.data.image_size=3"], "max_pool"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_trained(tmp_path, overrides, words):
    with pytest.raises(UserError, match=words):
        zoo.run(config(*overrides), tmp_path / "run")
    assert {file.name for file in tmp_path.glob("run/*")} <= {".lock"}, "the folder stays free"


def test_the_number_of_classes_comes_from_the_data():
    filled, dataset = building.with_data(config("--config.model.num_classes=0"))
    assert filled.model.num_classes == dataset.model_fields["num_classes"] == 10


def command(tmp_path, *options):
    return [sys.executable, "train.py", "--config", "configs/cnn.py", *TINY, *options]


@pytest.mark.parametrize("name", ["mnist_subset", "mnist"])
def test_training_needs_no_tensorflow(tmp_path, name):
    """With a TensorFlow that cannot be imported in front of any real one."""
    if name == "mnist" and not (TFDS / "mnist").is_dir():
        pytest.skip(f"no MNIST in {TFDS}: set ZOO_DATA_DIR")
    fake = tmp_path / "path" / "tensorflow"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("raise ImportError('TensorFlow was imported')")
    environment = dict(os.environ, PYTHONPATH=f"{fake.parent}:{ROOT}")
    options = ["--config.train.steps=2", f"--config.data.name={name}", f"--workdir={tmp_path}/run"]
    done = subprocess.run(
        command(tmp_path, *options, f"--config.data.data_dir={TFDS if name == 'mnist' else ''}"),
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("platform cpu | ")
    assert "precision float32" in lines[0]
    assert any(line.startswith("compiled in ") for line in lines)


def test_a_closed_pipe_ends_quietly():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "zoo.cli", "list", "--names"],
        cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_an_absent_platform_fails_hard(tmp_path):
    done = subprocess.run(
        command(tmp_path, "--config.platform=gpu", f"--workdir={tmp_path}/run"),
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == commands.USER_ERROR
    assert done.stderr.splitlines()[-1].startswith("error: platform='gpu' is not available here")


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    text = (ROOT / "README.md").read_text()
    blocks = [block.partition("```")[0] for block in text.split("```python\n")[1:]]
    assert blocks
    monkeypatch.chdir(tmp_path)
    ends = []
    for block in blocks:
        names = {}
        exec(compile(block, "README.md", "exec"), names)
        ends.append(names)
    # Its autoencoder was trained, resumed, and reported.
    assert "resuming at step 100 of 200" in capsys.readouterr().out
    report = ends[-1]["fitted"].report
    assert report["metrics"]["validation"]["loss"] < 1
    assert ends[-1]["reconstructed"].shape == (1000, 64)
    assert (tmp_path / "runs" / "autoencoder" / "report.html").exists()


def test_the_readmes_commands_name_real_files_and_flags():
    text = (ROOT / "README.md").read_text()
    help_text = subprocess.run(
        [sys.executable, "train.py", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    for flag in ("config", "workdir", "restart", "extend"):
        assert f"--{flag}" in text
        assert f"{flag}:" in help_text
    for line in text.splitlines():
        if line.strip().startswith("python train.py"):
            words = line.partition("#")[0].split()
            made = commands.load_config(words[words.index("--config") + 1])
            commands.override(made, commands.split_overrides(words)[1])
