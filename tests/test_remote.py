"""Runs on an object store, emulated by a local folder and by fsspec's memory."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from families import TINY

import zoo
from zoo import commands, files, inference, remote
from zoo.errors import NotWritten, UserError
from zoo.remote import Lease, Spool, Store

ROOT = Path(__file__).parents[1]
QUICK = Lease(renewed_every=0.1, lasts=0.6)
OPTIONS = [
    *TINY["cnn"], "--config.train.steps=8", "--config.train.batch_size=8",
    "--config.checkpoint.every=2", "--config.train.eval_every=4", "--config.mesh.data=1",
    "--config.train.eval_batch_size=512", "--config.optimizer.schedule=constant",
]  # fmt: skip


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine is a folder for spools and copies; the returned function goes to a new one."""
    numbers = iter(range(9))

    def new():
        monkeypatch.setenv("ZOO_SPOOL", str(tmp_path / f"machine-{next(numbers)}"))

    new()
    return new


@pytest.fixture
def url(tmp_path):
    return f"file://{tmp_path}/bucket/run"


def save(spool, step, part="checkpoints", content="weights"):
    """Writes a checkpoint as the run does: sealed, and then named."""
    unsealed = spool.path / part / f"{step}.tmp"
    unsealed.mkdir(parents=True)
    (unsealed / "arrays").write_text(f"{content} {step}")
    files.seal(unsealed)
    files.rename(unsealed, spool.path / part / str(step))


def in_store(url):
    return set(Store(url).names())


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_another_machine_goes_on_with_what_was_copied(kind, url, machine, tmp_path):
    if kind == "memory":
        url = f"memory://{tmp_path.name}/run"
    spool = Spool(url, print)
    (spool.path / "metrics.jsonl").write_text("{}\n")
    save(spool, 1)
    save(spool, 1, "best")
    spool.push()
    assert {"checkpoints/1/arrays", "checkpoints/1/checksums.json", "metrics.jsonl"} <= in_store(
        url
    )
    spool.close()
    assert ".lock" not in in_store(url)
    machine()
    other = Spool(url, print)
    assert other.path != spool.path
    assert (other.path / "checkpoints" / "1" / "arrays").read_text() == "weights 1"
    assert files.damage(other.path / "best" / "1") is None
    assert (other.path / "metrics.jsonl").read_text() == "{}\n"
    other.close()


def test_a_checkpoint_without_its_checksums_does_not_count(url, machine):
    spool = Spool(url, print)
    for step in (1, 2):
        save(spool, step)
    spool.push()
    spool.close()
    store = Store(url)
    store.remove("checkpoints/2/checksums.json")
    machine()
    other = Spool(url, print)
    assert [path.name for path in (other.path / "checkpoints").iterdir()] == ["1"]
    other.close()


def test_the_checksums_are_copied_last_and_removed_first(url, monkeypatch):
    done = []
    send, remove = Store.send, Store.remove
    monkeypatch.setattr(
        Store, "send", lambda s, path, name: (done.append(name), send(s, path, name))
    )
    monkeypatch.setattr(Store, "remove", lambda s, name: (done.append(f"-{name}"), remove(s, name)))
    spool = Spool(url, print)
    save(spool, 1)
    spool.push()
    save(spool, 2)
    shutil.rmtree(spool.path / "checkpoints" / "1")
    spool.push()
    spool.close()
    steps = [name for name in done if "checkpoints/" in name]
    assert steps == [
        "checkpoints/1/arrays", "checkpoints/1/checksums.json",
        "checkpoints/2/arrays", "checkpoints/2/checksums.json",
        "-checkpoints/1/checksums.json", "-checkpoints/1/arrays",
    ]  # fmt: skip


def test_a_damaged_checkpoint_of_the_store_is_not_taken(url, machine):
    spool = Spool(url, print)
    for step in (1, 2):
        save(spool, step)
    spool.push()
    spool.close()
    Store(url).write("checkpoints/2/arrays", b"wEights 2")
    machine()
    other = Spool(url, print)
    assert [path.name for path in (other.path / "checkpoints").iterdir()] == ["1"]
    other.close()


def test_what_a_killed_process_had_not_copied_is_gone_on_with_here(url):
    spool = Spool(url, print)
    save(spool, 1)
    spool.push()
    save(spool, 2)
    spool._unlock()  # as if killed: nothing more is copied
    again = Spool(url, print)
    assert sorted(path.name for path in (again.path / "checkpoints").iterdir()) == ["1", "2"]
    again.push()
    assert "checkpoints/2/checksums.json" in in_store(url)
    again.close()


def test_another_run_at_the_address_leaves_the_local_checkpoints(url, capsys):
    spool = Spool(url, print)
    save(spool, 5)
    spool.close()
    fsspec.filesystem("file").rm(url.removeprefix("file://"), recursive=True)
    again = Spool(url, print)
    assert not (again.path / "checkpoints").exists()
    kept = again.path.with_name(f"{again.path.name}.old-1")
    assert (kept / "checkpoints" / "5" / "arrays").read_text() == "weights 5"
    assert str(kept) in capsys.readouterr().out
    again.close()


def test_a_restart_moves_the_run_aside(url):
    spool = Spool(url, print)
    save(spool, 5)
    spool.close()
    again = Spool(url, print, restart=True)
    assert not (again.path / "checkpoints").exists()
    assert "checkpoints/5/arrays" in in_store(f"{url}.old-1")
    assert in_store(url) == {".lock", ".run"}
    again.close()


def hold(url, **holder):
    Store(url).write(
        ".lock", json.dumps({"token": "other", "host": "far", "pid": 7} | holder).encode()
    )


def test_a_run_that_lives_elsewhere_is_refused(url):
    spool = Spool(url, print, lease=QUICK)
    # As this process lives, it is asked whether it renews the lock, as if it were elsewhere.
    spool._me["host"] = "far"
    time.sleep(0.3)
    with pytest.raises(UserError, match=f"in use by process {os.getpid()} on far"):
        Spool(url, print, lease=QUICK)
    spool.close()


def test_the_lock_of_a_machine_that_is_gone_is_taken_over(url, capsys):
    hold(url)
    begin = time.monotonic()
    Spool(url, print, lease=QUICK).close()
    assert time.monotonic() - begin >= QUICK.lasts
    assert (
        "taking over the lock of process 7 on far, which was not renewed" in capsys.readouterr().out
    )


def test_the_lock_of_a_dead_process_of_this_machine_is_taken_over_at_once(url, capsys):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    hold(url, host=socket.gethostname(), pid=ended.pid)
    Spool(url, print, lease=Lease(60, 600)).close()
    assert "which ended without releasing it" in capsys.readouterr().out


def test_who_was_taken_over_copies_nothing_more(url):
    spool = Spool(url, print, lease=QUICK)
    hold(url)
    for _ in range(100):
        if spool._lost:
            break
        time.sleep(0.05)
    save(spool, 1)
    with pytest.raises(UserError, match="was taken over by process 7 on far"):
        spool.push()
    spool.close()
    assert in_store(url) == {".lock", ".run"}


def test_a_store_that_fails_is_tried_again_and_said(url, monkeypatch, capsys):
    spool = Spool(url, print)
    save(spool, 1)
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    left, send = [3], Store.send

    def failing(store, path, name):
        if left[0]:
            left[0] -= 1
            raise OSError("503")
        send(store, path, name)

    monkeypatch.setattr(Store, "send", failing)
    spool.push()
    assert "checkpoints/1/checksums.json" in in_store(url)
    save(spool, 2)
    left[0] = 1000
    spool.push()
    assert f"{spool.path} has everything" in capsys.readouterr().out
    with pytest.raises(NotWritten, match="Everything is safe in"):
        spool.close()
    left[0] = 0
    again = Spool(url, print)
    again.close()
    assert "checkpoints/2/checksums.json" in in_store(url)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("gx://bucket/run", "there is no store gx://"),
        ("gs://bucket/run", r"pip install 'jax-model-zoo\[gcs\]'"),
    ],
)
def test_an_unknown_store_is_refused(address, said):
    if address.startswith("gs") and "gcsfs" in sys.modules:
        pytest.skip("gcsfs is installed")
    with pytest.raises(UserError, match=said):
        Spool(address, print)


def test_data_are_read_from_a_store(tmp_path, machine):
    folder = tmp_path / "bucket"
    shutil.copytree(ROOT / "examples" / "digits", folder / "digits")
    shutil.copy(ROOT / "examples" / "co2.csv", folder)
    copied = remote.local_copy(f"file://{folder}/co2.csv")
    assert copied.read_bytes() == (folder / "co2.csv").read_bytes()
    assert copied.name == "co2.csv"
    config = commands.override(
        commands.load_config("configs/cnn.py"),
        ["--config.data.name=image_folder", f"--config.data.path=file://{folder}/digits"],
    )
    filled, dataset = zoo.building.with_data(zoo.config.check(config))
    assert dataset.vocabularies["classes"].symbols == ("eight", "three")
    assert filled.data.path.startswith("file://")
    with pytest.raises(UserError, match="there is nothing there"):
        remote.local_copy(f"file://{folder}/absent")


def small():
    return commands.override(commands.load_config("configs/cnn.py"), OPTIONS)


# Ends itself by SIGKILL when the checkpoint of step 4 is in the store.
KILLED = """
import os, signal, sys
import zoo
from zoo import commands, remote

push = remote.Spool.push

def killed(self):
    push(self)
    if "checkpoints/4/checksums.json" in self._store.names():
        os.kill(os.getpid(), signal.SIGKILL)

remote.Spool.push = killed
zoo.run(commands.override(commands.load_config("configs/cnn.py"), sys.argv[2:]), sys.argv[1])
"""


@pytest.mark.xdist_group("remote")
def test_a_killed_run_goes_on_elsewhere_to_the_same_bits(url, machine, tmp_path):
    alone = zoo.run(small(), tmp_path / "alone")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    }
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, url, *OPTIONS], cwd=ROOT, env=environment, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    assert ".lock" in in_store(url)
    # The machine and its disk are lost.
    machine()
    assert zoo.run(small(), url)["steps"] == 8
    assert ".lock" not in in_store(url)
    one, two = (zoo.load(folder).variables for folder in (tmp_path / "alone", url))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)
    records = [
        [json.loads(line)["step"] for line in text.splitlines()]
        for text in ((tmp_path / "alone" / "metrics.jsonl").read_text(),
                     Store(url).read("metrics.jsonl").decode())
    ]  # fmt: skip
    assert records[0] == records[1]
    assert {"report.json", "report.html", "curves.png"} <= in_store(url)
    again = inference.evaluate(url, small(), split="test")
    assert again["metrics"]["loss"] == pytest.approx(alone["metrics"]["test"]["loss"], rel=1e-5)
    with pytest.raises(UserError, match="give --out"):
        inference.export(url)
