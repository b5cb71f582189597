"""A real process, killed at random moments and inside saves: the same command gives the same bits.

``pytest tests/test_kill.py -s`` prints how often it was killed where.
"""

import json
import random
import signal
import time

import pytest
from chaos.runs import (
    assert_same,
    finish,
    finished_steps,
    kill_at_random,
    kill_inside_a_save,
    results,
    start,
    unfinished_saves,
)
from families import TINY


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of the uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    finish(workdir)
    return results(workdir)


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
