"""The power is cut while a run saves: what is then on the disk always resumes with the same bits.

A real process trains and saves; what it does to its files is written down, and repeated up to many
points. See ``tests/power_cuts.py``. This file is also the program of that process.
"""

import os
import random
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import power_cuts
import pytest
from training import test_loop

from zoo.files import make_folder
from zoo.reports.records import RecordFile, cut_records, read_records
from zoo.training import loop
from zoo.training.checkpoints import Checkpoints

STEPS = 60
CUTS = 60


def on_host(arrays):
    """The arrays of a training by their paths."""
    return {
        jax.tree_util.keystr(path): np.asarray(
            jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    }


def program(root, scratch):
    """Trains in ``root/run``; notes in ``root/saved`` what is saved for certain."""

    class Noting(Checkpoints):
        last = None

        def save(self, step, arrays, progress):
            with jax.transfer_guard("allow"):
                np.savez(scratch / f"{step}.npz", **on_host(arrays))
            super().save(step, arrays, progress)
            # It has waited for the save before.
            self.note()
            self.last = step

        def close(self):
            super().close()
            self.note()

        def note(self):
            if self.last is not None:
                with open(root / "saved", "a") as file:
                    file.write(f"{self.last}\n")

    class Writer:
        def __init__(self, path):
            cut_records(path, 0, 0, 0, print)
            self._records = RecordFile(path)

        def step(self, step):
            pass

        def write(self, record):
            self._records.write(record)

        def flush(self):
            self._records.flush()

        def close(self):
            self._records.close()

    make_folder(root / "run")
    test_loop.Checkpoints = Noting
    writer = Writer(root / "run" / "metrics.jsonl")
    test_loop.train(root / "run", writer, steps=STEPS)
    writer.close()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The calls of the program, the folder that it left, and the arrays that it saved."""
    if not sys.platform.startswith("linux") or not (shutil.which("cc") or shutil.which("gcc")):
        if os.environ.get("CI"):
            pytest.fail("no C compiler: the power cuts are not tested")
        pytest.skip("recording the calls needs Linux and a C compiler")
    scratch = tmp_path_factory.mktemp("scratch")
    root = tmp_path_factory.mktemp("root")
    calls = power_cuts.record([__file__, str(root), str(scratch)], root, scratch)
    arrays = {int(path.stem): dict(np.load(path)) for path in scratch.glob("*.npz")}
    return calls, root, arrays


def content(folder):
    return {
        path.relative_to(folder): path.is_dir() or path.read_bytes() for path in folder.rglob("*")
    }


def test_every_change_was_recorded(recorded, tmp_path):
    calls, root, arrays = recorded
    disk = power_cuts.Disk(root)
    for call in calls:
        disk.apply(call)
    disk.cut(tmp_path / "end", "seen")
    assert content(tmp_path / "end") == content(root)
    assert set(arrays) == {*range(0, STEPS, 5), STEPS}
    # All that the run left is on the disk. What it removed may be there too.
    disk.cut(tmp_path / "kept", "lost")
    kept = content(tmp_path / "kept" / "run")
    left = content(root / "run")
    assert {path: kept.get(path) for path in left} == left
    assert all("tmp-removed" in str(path) for path in kept.keys() - left.keys())


def resumed(folder, say):
    layout, state, step, shapes = test_loop.parts()
    checkpoints = Checkpoints(folder, say=say)
    try:
        training = loop.begin_or_resume(state, step, shapes, checkpoints, layout)
        return training, checkpoints.latest_step(), checkpoints.best_step()
    finally:
        checkpoints.close()


def test_a_run_whose_power_is_cut_goes_on_from_what_was_saved(recorded, tmp_path):
    calls, root, arrays = recorded
    whole = test_loop.untimed(read_records(root / "run" / "metrics.jsonl", print))
    generator = random.Random(0)
    # Half of the cuts come where the order matters most: just before and after a rename.
    renames = [
        at + shift for at, call in enumerate(calls) if call.name == "rename" for shift in (0, 1)
    ]
    cuts = {*generator.sample(range(len(calls)), CUTS // 2), *generator.sample(renames, CUTS // 2)}
    assert len(cuts) >= 50
    disk, saved, found = power_cuts.Disk(root), None, []
    for at, call in enumerate(calls):
        disk.apply(call)
        if call.name == "write" and call.path.endswith("/saved"):
            saved = int(call.data)
        if at not in cuts:
            continue
        # In turns: all is lost that was not synced, or some of it.
        folder, said = tmp_path / str(at), []
        disk.cut(folder, "lost" if at % 2 else generator)
        if not (folder / "run").is_dir():
            assert saved is None
            continue
        training, step, best = resumed(folder / "run", said.append)
        assert said == [], "a power cut alone damages nothing"
        assert saved is None or step >= saved
        found.append(step)
        if step is None:
            continue
        for name, array in on_host(training.arrays).items():
            np.testing.assert_array_equal(array, arrays[step][name], err_msg=name)
        progress = training.progress
        # The best state of which the checkpoint knows is there, or one that comes later.
        assert not progress.best_step or best >= progress.best_step
        # The records up to there are the same, and those after are written again.
        path = folder / "run" / "metrics.jsonl"
        cut_records(path, step, progress.evaluated_step, step // 5, print)
        last = {"train": step, "train_epoch": step, "validation": progress.evaluated_step}
        before = [record for record in whole if record["step"] <= last[record["split"]]]
        assert test_loop.untimed(read_records(path, print)) == before
        shutil.rmtree(folder)
    assert len(set(found)) > 8, "the cuts meet many saves"


if __name__ == "__main__":
    program(*map(Path, sys.argv[1:]))
