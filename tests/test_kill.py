"""A real process, killed at random moments and inside saves: the same command gives the same bits.

``pytest tests/test_kill.py -s`` prints how often it was killed where.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from families import TINY

ROOT = Path(__file__).parent.parent
STEPS = 60
OPTIONS = [
    f"--config.train.steps={STEPS}", "--config.train.ema_decay=0.9",
    "--config.train.eval_batch_size=256", "--config.train.log_every=3",
    "--config.train.eval_every=7", "--config.checkpoint.every=5",
]  # fmt: skip
# Enough rows that the 60 steps of the fastest take a while.
BATCH_SIZES = {
    "cnn": 128, "lstm": 32, "gpt": 8, "transformer": 32, "diffusion": 16,
    "word_lm": 32, "speech": 16, "forecast": 32, "classify_text": 32, "resnet": 64, "vit": 64,
}  # fmt: skip
TIMES = {
    "seconds", "examples_per_second", "data_wait_seconds", "data_wait_share",
    "train_seconds", "compile_seconds", "examples_per_second_per_device",
    "tokens_per_second_per_device", "slowest_process", "slowest_process_seconds",
}  # fmt: skip


def start(workdir, family="cnn"):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    # What the uninterrupted run compiled: most of a start's time, and of no interest here.
    environment |= {
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return subprocess.Popen(
        [
            sys.executable, "train.py", f"--config=configs/{family}.py", *TINY[family], *OPTIONS,
            f"--config.train.batch_size={BATCH_SIZES[family]}", f"--workdir={workdir}",
        ],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(workdir, family="cnn"):
    process = start(workdir, family)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


def unfinished_saves(workdir):
    """Folders that orbax has not yet given their final names."""
    return [*workdir.glob("checkpoints/*tmp*"), *workdir.glob("best/*tmp*")]


def finished_steps(workdir):
    return [int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdigit()]


def untimed(value):
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if k not in TIMES}
    return value


def results(workdir):
    """All that a run leaves, without the times."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    folder = (workdir / "checkpoints" / str(STEPS) / "arrays").absolute()
    arrays = ocp.PyTreeCheckpointer().restore(folder)
    return {
        "arrays": {
            jax.tree_util.keystr(path): np.asarray(_bits(leaf))
            for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
        },
        "metrics": [untimed(json.loads(line)) for line in lines],
        "report": untimed(json.loads((workdir / "report.json").read_text())),
        "best": [p.name for p in (workdir / "best").iterdir()],
    }


def _bits(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def assert_same(a, b):
    assert a["arrays"].keys() == b["arrays"].keys()
    assert any("mu" in name for name in a["arrays"]), "the optimizer's state is among the arrays"
    for name, array in a["arrays"].items():
        np.testing.assert_array_equal(array, b["arrays"][name], err_msg=name)
    assert a["metrics"] == b["metrics"]
    assert a["report"] == b["report"]
    assert a["best"] == b["best"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of the uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    finish(workdir)
    return results(workdir)


def kill_inside_a_save(process, workdir):
    while process.poll() is None:
        if unfinished_saves(workdir):
            process.kill()
            break
    process.wait()
    return bool(unfinished_saves(workdir))


def kill_at_random(process, workdir, generator):
    """Some kills come while the program starts, most while it trains."""
    if generator.random() < 0.2:
        time.sleep(generator.uniform(0, 5))
    else:
        before = len(finished_steps(workdir)) and max(finished_steps(workdir))
        target = before + generator.uniform(0, 15)
        while process.poll() is None and max(finished_steps(workdir), default=0) + 5 <= target:
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.3))
    process.kill()
    process.wait()
    return bool(unfinished_saves(workdir))


def kill_often(folder, family, whole, *, seed, times):
    """Kills runs at random moments, every second time inside a save; returns kills and those."""
    generator = random.Random(seed)
    kills, inside, runs = 0, 0, 0
    while kills < times:
        workdir = folder / str(runs)
        runs += 1
        for _ in range(5):
            saved = finished_steps(workdir)
            process = start(workdir, family)
            if kills % 2:
                in_save = kill_inside_a_save(process, workdir)
            else:
                in_save = kill_at_random(process, workdir, generator)
            if process.returncode != -signal.SIGKILL:
                break
            kills, inside = kills + 1, inside + in_save
            # Nothing that was once saved is lost.
            assert max(finished_steps(workdir), default=0) >= max(saved, default=0)
        output = finish(workdir, family)
        assert_same(results(workdir), whole)
        assert "Test loss" in output or "has finished" in output
    print(
        f"\n{family}, seed {seed}: {kills} kills, {inside} of them inside a save, {runs} runs, "
        "all identical"
    )
    return kills, inside


@pytest.mark.xdist_group("cnn killed")
@pytest.mark.parametrize(
    ("seed", "times"),
    [(0, 6), *(pytest.param(seed, 10, marks=pytest.mark.long) for seed in (0, 1))],
)
def test_killed_often_and_still_the_same_bits(tmp_path, whole, seed, times):
    _, inside = kill_often(tmp_path, "cnn", whole, seed=seed, times=times)
    assert inside >= 2


@pytest.mark.parametrize(
    "family",
    [
        # Half a minute each, through the same loop and checkpoints. An LSTM's state goes on from
        # batch to batch, so it stays here.
        name if name == "lstm" else pytest.param(name, marks=pytest.mark.long)
        for name in TINY
        if name != "cnn"
    ],
)
def test_every_family_killed_five_times_and_still_the_same_bits(tmp_path, family):
    finish(tmp_path / "whole" / "run", family)
    kills, _ = kill_often(
        tmp_path / "killed", family, results(tmp_path / "whole" / "run"), seed=0, times=5
    )
    assert kills >= 5


@pytest.mark.xdist_group("cnn killed")
@pytest.mark.parametrize(
    ("signum", "after"),
    [
        (signal.SIGTERM, "Parameters"),  # while compiling
        (signal.SIGINT, "step 9/"),  # while training
        (signal.SIGTERM, "validation at step 14"),
    ],
)
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, whole, signum, after):
    process = start(tmp_path)
    for line in process.stdout:
        if after in line:
            process.send_signal(signum)
            break
    output = process.communicate()[0]
    assert process.returncode == 128 + signum, output
    assert not unfinished_saves(tmp_path)
    stopped = json.loads((tmp_path / "report.json").read_text())
    assert stopped["status"] == "stopped"
    assert stopped["steps"] == max(finished_steps(tmp_path))
    assert f"resuming at step {stopped['steps']} of" in finish(tmp_path) or not stopped["steps"]
    assert_same(results(tmp_path), whole)


def test_a_second_process_on_the_folder_is_refused(tmp_path):
    first = start(tmp_path)
    while not (tmp_path / "config.json").exists():
        time.sleep(0.01)
    second = start(tmp_path)
    assert f"in use by process {first.pid}" in second.communicate()[0]
    assert second.returncode == 2
    first.kill()
    first.communicate()
