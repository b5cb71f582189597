"""Full disks, damaged files, and folders that are not what a run expects.

The runs are those of a line of four weights, so that a process takes little but its start.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from zoo import cli, storage
from zoo.commands import DISK_ERROR, USER_ERROR
from zoo.reports.results import read_report, write_end, write_report
from zoo.storage import DamagedFile, amount, not_written, read_object, refusal
from zoo.workdir import Workdir, WorkdirError, claim, is_running

ROOT = Path(__file__).parents[1]

# Six steps; a record after each, a checkpoint after every second. ``sabotage`` is called before the
# record of each step, with the number of steps before it.
FIT = """
    import os, resource, shutil, sys
    import flax.linen as nn
    import numpy as np
    import optax
    import zoo
    from zoo.commands import run_to_exit

    workdir = sys.argv[1]

    def sabotage(step):
        {sabotage}
        return 0.1

    def main():
        x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
        data = {{"x": x, "y": x.sum(1, keepdims=True)}}
        task = zoo.make_task(
            nn.Dense({width}),
            lambda model, batch, train: ((model(batch["x"]) - batch["y"]) ** 2).mean(axis=1),
        )
        zoo.fit(
            task, train=data, validation=data, test=data, workdir=workdir, optimizer=optax.sgd(0.1),
            learning_rate=sabotage, steps=6, batch_size=16, eval_batch_size=16, log_every=1,
            eval_every=3, save_every=2,
        )

    run_to_exit(main)
"""


def fit(workdir, sabotage="pass", *, width=1, **options):
    """Runs the fit in a process of its own; returns its exit code, and its output and errors."""
    script = textwrap.dedent(FIT).format(sabotage=sabotage, width=width)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ZOO_KERNELS": "off"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(workdir)], env=environment, text=True, check=False,
        stdout=options.get("stdout", subprocess.PIPE), stderr=subprocess.PIPE,
    )  # fmt: skip
    return done.returncode, done.stdout or "", done.stderr.splitlines()


def one_line(errors):
    """The only line of an error output."""
    assert len(errors) == 1, "\n".join(errors)
    assert errors[0].startswith("error: ")
    return errors[0]


LIMIT = "step == 3 and resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"


# 200 bytes: less than the records; 1,500: less than the index of a checkpoint; 6,000: less than its
# arrays, which another library writes in threads of its own.
@pytest.mark.parametrize(
    ("size", "what"),
    [
        (200, "metrics.jsonl"),
        pytest.param(1500, "", marks=pytest.mark.long),
        (6000, ""),
    ],
)
def test_a_limit_of_file_sizes_ends_in_one_line_and_the_run_goes_on_later(tmp_path, size, what):
    workdir = tmp_path / "run"
    code, _, errors = fit(workdir, LIMIT.format(size=size), width=2000)
    said = one_line(errors)
    assert code == DISK_ERROR
    assert f"cannot write {workdir}/{what}" in said or f"the checkpoint {workdir}" in said
    assert "File too large" in said
    assert f"at most {amount(size)} here (ulimit -f)" in said
    # Saves go on in the background: that of step 2 may still have failed.
    safe = storage.steps_saved(workdir)[-1]
    assert f"The checkpoint of step {safe} is safe" in said
    status = json.loads((workdir / "report.json").read_text())
    assert (status["status"], status["steps"]) == ("failed", safe)
    # With room again, the same command reaches the numbers of a run that always had room.
    code, output, errors = fit(workdir, width=2000)
    assert (code, errors) == (0, [])
    assert f"resuming at step {safe} of 6" in output or not safe
    if size == 1500:  # once is enough
        fit(tmp_path / "whole", width=2000)
        reached, whole = (read_report(tmp_path / name)["metrics"] for name in ("run", "whole"))
        assert reached == whole


@pytest.fixture
def small_disk(tmp_path):
    """Makes a file system of a few kilobytes; skips where that is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def make(kilobytes, options=""):
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k{options}", "none", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, check=False).returncode:
            pytest.skip("a file system cannot be mounted here")
        mounted.append(folder)
        return folder

    yield make
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


FILL = """step == 3 and os.system(
            f"dd if=/dev/zero of={workdir}/../filler bs=1k 2>/dev/null")"""


def test_a_full_disk_ends_in_one_line_with_what_is_missing(small_disk):
    disk = small_disk(2000)
    code, _, errors = fit(disk / "run", FILL)
    said = one_line(errors)
    assert code == DISK_ERROR
    assert "No space left on device" in said
    safe = storage.steps_saved(disk / "run")[-1]
    assert f"The checkpoint of step {safe} is safe" in said
    # 128 kB are what a checkpoint takes besides its arrays, and a few pages are free by now.
    assert "so at least " in said
    assert " kB are missing" in said
    assert json.loads((disk / "run" / "report.json").read_text())["status"] == "failed"
    (disk / "filler").unlink()
    code, output, errors = fit(disk / "run")
    assert (code, errors) == (0, [])
    assert f"resuming at step {safe} of 6" in output or not safe
    assert read_report(disk / "run")["status"] == "finished"


def test_no_room_for_another_file_is_said_to_be_so(small_disk):
    disk = small_disk(4000, ",nr_inodes=30")
    code, _, errors = fit(disk / "run")
    assert code == DISK_ERROR
    assert "no free inodes" in one_line(errors)


def test_an_output_that_cannot_be_written_ends_the_run_with_its_exit_code(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        code, _, errors = fit(tmp_path / "run", stdout=full)
    assert code == DISK_ERROR
    assert "cannot write the output of the program: No space left" in one_line(errors)


@pytest.mark.parametrize(
    "how", ["shutil.rmtree(workdir, True)", "os.rename(workdir, workdir + '.x')"]
)
def test_a_folder_that_goes_away_during_the_run_is_named(tmp_path, how):
    code, _, errors = fit(tmp_path / "run", f"step == 3 and {how}")
    assert code == USER_ERROR
    # A save in the background may meet the absence of its own folder first.
    assert f"the work directory {tmp_path / 'run'} " in one_line(errors)


def test_what_the_system_refuses_is_found_however_deep(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")
    as_cause, as_context = ValueError("a"), KeyError("b")
    as_cause.__cause__, as_context.__context__ = full, full
    group = ExceptionGroup("several", [ValueError("c"), as_context])
    for error in (full, as_cause, as_context, group):
        assert refusal(error) is full
    # The words of TensorStore, from a run with a limit of the file size.
    found = refusal(
        ValueError(
            'OUT_OF_RANGE: Error writing local file "/runs/a/checkpoints/4.orbax-checkpoint-tmp/x"'
            ": Failed to write 10462 bytes to file 11: File too large [os_error_code='27']"
        )
    )
    assert (found.errno, found.strerror) == (errno.EFBIG, os.strerror(errno.EFBIG))
    assert "the checkpoint /runs/a/checkpoints/4:" in str(not_written(Path("/runs/a"), found, 0))
    loop = ValueError("a")
    loop.__cause__ = RuntimeError("b")
    loop.__cause__.__cause__ = loop
    for other in (FileNotFoundError(errno.ENOENT, "absent"), ValueError("os_error_code='2'"), loop):
        assert refusal(other) is None


def test_amounts_are_read_easily():
    shown = {0: "0 bytes", 999: "999 bytes", 1000: "1 kB", 1.5e9: "1.5 GB", 999_600: "1 MB"}
    assert {count: amount(count) for count in shown} == shown


def test_the_end_of_a_run_is_written_in_place_of_running(tmp_path, monkeypatch):
    ended = {"status": "failed", "reason": "why", "steps": 2}
    write_report(tmp_path, {"status": "running", "parameters": 3, "steps": 0})
    assert write_end(tmp_path, ended) == ""
    assert json.loads((tmp_path / "report.json").read_text()) == {**ended, "parameters": 3}
    # Any other status is that of an end already.
    assert write_end(tmp_path, {"status": "stopped"}) == ""
    assert json.loads((tmp_path / "report.json").read_text())["status"] == "failed"

    # Where nothing can be written, nothing is left that says "running".
    write_report(tmp_path, {"status": "running"})

    def full(path, text):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("zoo.reports.results.write_atomically", full)
    assert "was removed" in write_end(tmp_path, ended)
    assert list(tmp_path.iterdir()) == []


DAMAGE = {
    "empty": b"", "nul": b"\0" * 40, "no UTF-8": b"\xff\xfe{}", "garbage": b"}{", "a list": b"[]",
    "null": b"null", "cut": b'{"a": ', "deep": b"[" * 100_000, "digits": b"1" * 5000,
}  # fmt: skip


def damage(path, how):
    """Puts damage in the place of a file."""
    path.unlink(missing_ok=True)
    if how == "a folder":
        path.mkdir()
    elif how == "a pipe":
        os.mkfifo(path)
    elif how == "a loop":
        path.symlink_to(path.name)
    elif how != "absent":
        path.write_bytes(DAMAGE[how])


@pytest.mark.parametrize("how", [*DAMAGE, "a folder", "a pipe", "a loop", "absent"])
def test_a_damaged_file_is_named_with_what_can_be_done(tmp_path, how):
    damage(tmp_path / "file.json", how)
    with pytest.raises(DamagedFile, match=r"file\.json (is damaged|cannot be read).*\. Mend it$"):
        read_object(tmp_path / "file.json", "Mend it")


@pytest.mark.parametrize("how", [*DAMAGE, "a folder", "a pipe", "a loop"])
@pytest.mark.parametrize("name", ["config.json", "report.json"])
def test_the_commands_name_a_damaged_file(tmp_path, capsys, name, how):
    report = {
        "status": "finished", "platform": "cpu", "parameters": 1, "steps": 2, "train_seconds": 3.0,
        "examples_per_second": 4.0, "metrics": {},
    }  # fmt: skip
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "config.json").write_text(json.dumps({"task": {"name": "classification"}}))
    damage(tmp_path / name, how)
    commands = [["report", str(tmp_path)]]
    if name == "config.json":
        given = f"--workdir={tmp_path}"
        commands += [["evaluate", given], ["export", given], ["predict", given, "x.png"]]
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            cli.main(command)
        assert ended.value.code == USER_ERROR
        assert str(tmp_path / name) in one_line(capsys.readouterr().err.splitlines())


@pytest.mark.parametrize(
    "change",
    [
        {"status": 3}, {"parameters": "many"}, {"steps": None}, {"metrics": []},
        {"metrics": {"test": {"loss": "low"}}}, {"platform": 1}, {"best": [1]}, {"failures": "x"},
    ],
)  # fmt: skip
def test_a_report_without_what_every_report_has_is_damaged(tmp_path, change):
    report = {
        "status": "finished", "platform": "cpu", "parameters": 1, "steps": 2, "train_seconds": 3.0,
        "examples_per_second": 4.0, "metrics": {"test": {"loss": 1.0}},
    }  # fmt: skip
    write_report(tmp_path, report)
    assert read_report(tmp_path) == report
    write_report(tmp_path, report | change)
    with pytest.raises(DamagedFile, match=r"report\.json is damaged"):
        read_report(tmp_path)


def test_what_is_moved_aside_never_replaces_anything(tmp_path):
    for number in range(3):
        (tmp_path / "a").write_text(str(number))
        storage.move_aside(tmp_path / "a")
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {"a.damaged": "0", "a.damaged-2": "1", "a.damaged-3": "2"}


def odd_paths(folder):
    """Paths that no run can use."""
    (folder / "file").write_text("years of work")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to("one")
    names = (
        "file",
        "file/below",
        "file/below/it",
        "dangling",
        "dangling/below",
        "one",
        "one/below",
    )
    return [*(folder / name for name in names), folder / ("x" * 300), folder / "a\0b"]


@pytest.mark.parametrize("restart", [False, True])
def test_a_path_that_cannot_be_a_work_directory_is_one_line(tmp_path, restart):
    for path in odd_paths(tmp_path):
        with pytest.raises(WorkdirError) as refused:
            claim(lambda saved: [], default=path, explicit=path, restart=restart, say=print)
        said = str(refused.value)
        assert said.startswith("the work directory ")
        assert said.endswith(": give another --workdir")
        assert "\n" not in said
        assert "\0" not in said
    assert (tmp_path / "file").read_text() == "years of work"


def test_a_read_only_disk_is_one_line(small_disk):
    disk = small_disk(10, ",ro")
    for path in (disk, disk / "below"):
        with pytest.raises(WorkdirError, match="Read-only file system"):
            Workdir(path)


def test_the_commands_answer_odd_paths_in_one_line(tmp_path, capsys):
    for path in odd_paths(tmp_path):
        for command in (["report", str(path)], ["evaluate", "--workdir", str(path)]):
            with pytest.raises(SystemExit) as ended:
                cli.main(command)
            assert ended.value.code == USER_ERROR
            assert "holds no run" in one_line(capsys.readouterr().err.splitlines())


@pytest.mark.parametrize("how", [*DAMAGE, "absent"])
def test_a_damaged_lock_file_locks_nothing(tmp_path, how):
    damage(tmp_path / ".lock", how)
    assert not is_running(tmp_path)
    folder = Workdir(tmp_path)
    assert is_running(tmp_path)
    folder.check_there()
    folder.close()
    assert not is_running(tmp_path)


@pytest.mark.parametrize("how", ["a folder", "a pipe", "a loop"])
def test_a_lock_that_is_no_file_is_named(tmp_path, how):
    damage(tmp_path / ".lock", how)
    with pytest.raises(WorkdirError, match=r"\.lock is no file"):
        Workdir(tmp_path)


def test_a_run_that_was_killed_is_called_interrupted(tmp_path, capsys):
    write_report(tmp_path, {"status": "running"})
    with pytest.raises(SystemExit):
        cli.main(["report", str(tmp_path)])
    assert "status 'interrupted'): start it again" in capsys.readouterr().err
    folder = Workdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["report", str(tmp_path)])
    assert "status 'running'): wait for it" in capsys.readouterr().err
    folder.close()
