"""Damaged checkpoints: found, named, kept aside, and never read as if they were whole."""

import os
import random
import shutil
import tarfile
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training.test_loop import Memory, assert_same_bits, parts, train

from zoo.errors import DamageWarning, UserError
from zoo.training import loop
from zoo.training.checkpoints import Checkpoints, load_state, save_state
from zoo.training.layout import Layout, make_mesh

OLD_RUNS = Path(__file__).parents[1] / "runs_of_0_1_0.tar.gz"


def resume(folder, said):
    layout, state, step, shapes = parts()
    checkpoints = Checkpoints(folder, say=said.append)
    try:
        return loop.begin_or_resume(state, step, shapes, checkpoints, layout)
    finally:
        checkpoints.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints of the steps 10 and 12, and the arrays of both."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    twelve = train(folder, Memory(), steps=12)
    only_ten = folder.with_name("ten")
    shutil.copytree(folder, only_ten)
    shutil.rmtree(only_ten / "checkpoints" / "12")
    ten = resume(only_ten, [])
    assert ten.step == 10
    return folder, {10: ten.arrays, 12: twelve.arrays}


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "run")


def flip(path, generator):
    content = bytearray(path.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)


def ways(path, generator):
    """Ways to damage a file."""
    yield lambda: flip(path, generator)
    yield lambda: os.truncate(path, generator.randrange(path.stat().st_size))
    yield lambda: path.write_bytes(b"")
    yield path.unlink


def test_whatever_happens_to_a_file_no_wrong_number_is_read(saved, tmp_path):
    folder, arrays = saved
    newest = folder / "checkpoints" / "12"
    names = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]
    assert len(names) > 10
    generator = random.Random(0)
    fell_back = 0
    for name in names:
        for way in range(4):
            run = tmp_path / "run"
            shutil.copytree(folder, run)
            list(ways(run / "checkpoints" / "12" / name, generator))[way]()
            said = []
            training = resume(run, said)
            assert_same_bits(training.arrays, arrays[training.step])
            if training.step == 10:
                fell_back += 1
                kept = run / "checkpoints" / "damaged" / "12"
                assert name.as_posix() in said[0] or "checksums.json" in said[0]
                assert said[0].endswith(f"It is kept as {kept}")
                assert said[1].startswith("the run goes on from step 10: 2 steps are lost")
                assert kept.is_dir()
            else:
                assert not said
            shutil.rmtree(run)
    # A flip may leave the checksums the same JSON; all else is found.
    assert fell_back >= 4 * len(names) - 1


def test_a_run_that_fell_back_ends_with_the_same_bits(saved, run):
    (run / "checkpoints" / "12" / "arrays" / "_METADATA").write_bytes(b"")
    with pytest.warns(DamageWarning, match="_METADATA is empty"):
        training = train(run, Memory(), steps=12)
    assert_same_bits(training.arrays, saved[1][12])
    # It happens again: neither is overwritten.
    (run / "checkpoints" / "12" / "progress" / "metadata").unlink()
    resume(run, [])
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"10", "damaged"}
    assert {path.name for path in (run / "checkpoints" / "damaged").iterdir()} == {"12", "12-2"}


def read(folder, which="latest"):
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        return checkpoints.read_state(which, Layout(make_mesh(1)))
    finally:
        checkpoints.close()


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_who_only_reads_is_warned_and_moves_nothing(saved, run):
    (run / "checkpoints" / "12" / "arrays" / "manifest.ocdbt").unlink()
    before = names_in(run)
    with pytest.warns(DamageWarning) as warned:
        state, step = read(run)
    assert step == 10
    np.testing.assert_array_equal(state["params"]["w"], saved[1][10]["state"].params["w"])
    assert "12 is damaged: arrays/manifest.ocdbt is missing" in str(warned[0].message)
    assert "step 10 is read instead, 2 steps earlier" in str(warned[1].message)
    assert names_in(run) == before


def test_without_a_whole_checkpoint_an_error_says_what_to_do(run):
    for path in (run / "checkpoints").iterdir():
        (path / "checksums.json").write_bytes(b"")
    before = names_in(run)
    with pytest.raises(UserError, match=r"no checkpoint .* is whole(.|\n)*--restart"):
        resume(run, [])
    with pytest.raises(UserError, match=r"10 is damaged(.|\n)*checkpoint='best'"):
        read(run)
    # The run must not begin anew in silence when it is started once more.
    assert names_in(run) == before


def test_a_damaged_best_state_is_an_error_for_those_who_ask_for_it(run):
    (best,) = (run / "best").iterdir()
    (best / "arrays" / "_sharding").write_bytes(b"x")
    with pytest.raises(UserError, match="Read the latest with checkpoint='latest'"):
        read(run, "best")
    assert read(run)[1] == 12
    said = []
    resume(run, said)
    assert len(said) == 1
    assert "arrays/_sharding is 1 bytes long" in said[0]
    assert "the next evaluation that is better saves a new one" in said[0]
    assert names_in(run / "best")[:2] == ["damaged", f"damaged/{best.name}"]


def test_an_unfinished_folder_is_no_checkpoint(run):
    shutil.copytree(run / "checkpoints" / "12", run / "checkpoints" / "15.tmp")
    shutil.copytree(run / "checkpoints" / "12", run / "checkpoints" / "15.orbax-checkpoint-tmp")
    assert Checkpoints(run, read_only=True).latest_step() == 12
    assert resume(run, []).step == 12
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"10", "12"}


def test_checkpoints_from_before_the_checksums_are_read_or_fall_back(tmp_path):
    with tarfile.open(OLD_RUNS) as archive:
        archive.extractall(tmp_path, filter="data")
    old = tmp_path / "cnn" / "checkpoints"
    shutil.copytree(old / "4", old / "2")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DamageWarning)
        whole, step = read(tmp_path / "cnn")
    assert step == 4
    fell_back = 0
    for path in [path for path in (old / "4").rglob("*") if path.is_file()]:
        content = path.read_bytes()
        for damaged in (b"", None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DamageWarning)
                state, step = read(tmp_path / "cnn")
            fell_back += step == 2
            jax.tree.map(np.testing.assert_array_equal, state, whole)
        path.write_bytes(content)
    # Emptied arrays and descriptions are found without checksums; the marks of success say nothing.
    assert fell_back > 10


def test_a_saved_state_that_is_damaged_is_refused(tmp_path):
    state = {"w": jnp.arange(1000.0), "n": jnp.zeros((), jnp.int32)}
    save_state(tmp_path / "state", state)
    assert_same_bits(load_state(tmp_path / "state", state), state)
    generator = random.Random(1)
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "state", whole)
    for path in [path for path in (tmp_path / "state").rglob("*") if path.is_file()]:
        flip(path, generator)
        with pytest.raises(UserError, match="is damaged"):
            load_state(tmp_path / "state", state)
        shutil.copy(whole / path.relative_to(tmp_path / "state"), path)
    assert_same_bits(load_state(tmp_path / "state", state), state)


def test_a_save_that_fails_is_an_error_and_the_older_checkpoint_stays(run, monkeypatch):
    from zoo import files

    checkpoints = Checkpoints(run)

    def full(folder, names=None):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "seal", full)
    checkpoints.save(20, {"w": jnp.zeros(3)}, {})
    with pytest.raises(OSError, match="No space left"):
        checkpoints.wait()
    assert checkpoints.latest_step() != 20
    checkpoints.close()
    assert Checkpoints(run, read_only=True).latest_step() == 12
    assert {"10", "12"} <= {path.name for path in (run / "checkpoints").iterdir()}
