"""Runs of several real processes on this machine, started with ``zoo launch``."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from families import TINY

import zoo
from zoo import commands, config

ROOT = Path(__file__).parent.parent
STEPS = 12
OPTIONS = [
    *TINY["cnn"], f"--config.train.steps={STEPS}", "--config.train.batch_size=64",
    "--config.train.eval_batch_size=256", "--config.train.log_every=3",
    "--config.train.eval_every=6", "--config.checkpoint.every=4",
]  # fmt: skip
TRAIN = ["train.py", "--config=configs/cnn.py", *OPTIONS]
# Signals and kills need time to arrive between two steps.
LONG_STEPS = 200
LONG = [f"--config.train.steps={LONG_STEPS}", "--config.train.eval_every=100"]
TIMES = (
    "seconds", "examples_per_second", "data_wait", "slowest_process", "train_seconds",
    "compile_seconds",
)  # fmt: skip


def launch(folder, count, *command):
    """Starts ``zoo launch``; each process has one device."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "zoo.cli", "launch", "-n", str(count), "--", *command],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ended(process):
    output = process.communicate(timeout=500)[0]
    return process.returncode, output


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def untimed(record):
    return {name: v for name, v in record.items() if not name.startswith(TIMES)}


def arrays(workdir, step):
    folder = (workdir / "checkpoints" / str(step) / "arrays").absolute()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        shapes = reader.metadata(folder).item_metadata.tree
        whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        saved = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=whole))
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(saved)}


def assert_same_run(one, other, step):
    ours, theirs = arrays(one, step), arrays(other, step)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 10
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)
    assert [untimed(r) for r in records(one)] == [untimed(r) for r in records(other)]


def children(process):
    """The processes that zoo launch has started, in their order."""
    tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in tasks.split()]


def wait_for(process, words):
    seen = []
    for line in process.stdout:
        seen.append(line)
        if words in line:
            return "".join(seen)
    raise AssertionError("".join(seen))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("many")


@pytest.fixture(scope="module")
def two(folder):
    """A run of two processes, and what it printed."""
    code, output = ended(launch(folder, 2, *TRAIN, f"--workdir={folder / 'two'}"))
    assert code == 0, output
    return folder / "two", output


@pytest.fixture(scope="module")
def long(folder):
    """A longer run of two processes that nothing interrupted."""
    code, output = ended(launch(folder, 2, *TRAIN, *LONG, f"--workdir={folder / 'long'}"))
    assert code == 0, output
    return folder / "long"


@pytest.mark.xdist_group("many")
def test_two_processes_train_like_two_devices_of_one(two, tmp_path):
    workdir, output = two
    given = commands.load_config(str(ROOT / "configs/cnn.py"))
    one = commands.override(given, [*OPTIONS, "--config.mesh.data=2"])
    report = zoo.run(config.check(one), tmp_path / "one")
    ours, theirs = records(workdir), records(tmp_path / "one")
    assert [(r["split"], r["step"]) for r in ours] == [(r["split"], r["step"]) for r in theirs]
    assert {r["split"] for r in ours} >= {"train", "validation", "test"}
    for our, their in zip(ours, theirs, strict=True):
        assert our["loss"] == pytest.approx(their["loss"], rel=1e-5)
    ran = json.loads((workdir / "report.json").read_text())
    assert ran["confusion_matrix"] == report["confusion_matrix"]
    assert (workdir / "report.html").is_file()
    # One process speaks, and each has its line's number.
    assert output.count("work directory") == 1
    assert "[0] platform cpu | 2 x cpu" in output
    train = [record for record in ours if record["split"] == "train"]
    for record in train:
        assert record["slowest_process"] in (0, 1)
        assert record["examples_per_second_per_device"] * 2 == pytest.approx(
            record["examples_per_second"]
        )


@pytest.mark.xdist_group("many")
def test_a_process_with_another_config_is_refused(folder, tmp_path):
    program = (
        "import os, runpy, sys; index = os.environ['ZOO_PROCESS']; "
        "sys.argv = ['train.py', *sys.argv[1:], '--config.seed=' + index]; "
        "runpy.run_path('train.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", program, *TRAIN[1:], f"--workdir={tmp_path / 'run'}"]
    code, output = ended(launch(folder, 2, *command))
    assert code == 2, output
    assert "[1]   seed is 0 there and 1 here" in output
    assert "[0] error: the run of process 1 differs from that of process 0" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.xdist_group("many")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_saves_all_at_the_same_step(long, folder, tmp_path, signum):
    workdir = tmp_path / "run"
    process = launch(folder, 2, *TRAIN, *LONG, f"--workdir={workdir}")
    wait_for(process, "step 6/")
    os.kill(children(process)[1], signum)
    code, output = ended(process)
    assert code == 128 + signum, output
    for index in (0, 1):
        assert f"[{index}] stopped by {signum.name}; the state is saved" in output
    report = json.loads((workdir / "report.json").read_text())
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert (report["status"], report["steps"]) == ("stopped", saved)
    assert saved < LONG_STEPS
    code, output = ended(launch(folder, 2, *TRAIN, *LONG, f"--workdir={workdir}"))
    assert code == 0, output
    assert_same_run(workdir, long, LONG_STEPS)


@pytest.mark.long
@pytest.mark.xdist_group("many")
@pytest.mark.parametrize(("signum", "which"), [("SIGKILL", 1), ("SIGKILL", 0), ("SIGSTOP", 1)])
def test_one_process_dies_and_the_others_end(long, folder, tmp_path, signum, which):
    """They end by themselves: nobody sends them a signal, and none of them hangs."""
    workdir = tmp_path / "run"
    options = [*TRAIN, *LONG, "--config.distributed.heartbeat_seconds=10", f"--workdir={workdir}"]
    process = launch(folder, 2, *options)
    wait_for(process, "step 9/")
    pids = children(process)
    os.kill(pids[which], getattr(signal, signum))
    code, output = ended(process)
    assert code not in (0, 2), output
    if signum == "SIGKILL":
        assert f"process {which} was ended by SIGKILL" in output
        assert code != 0
    else:
        assert f"process {which} does not run" in output
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    saved = max(
        int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()
    )
    # That of step 8 may not have been finished.
    assert 4 <= saved < LONG_STEPS
    code, output = ended(launch(folder, 2, *options))
    assert code == 0, output
    assert_same_run(workdir, long, LONG_STEPS)


@pytest.mark.long
@pytest.mark.xdist_group("many")
def test_four_processes_give_the_losses_of_two(two, folder, tmp_path):
    workdir = tmp_path / "four"
    code, output = ended(launch(folder, 4, *TRAIN, f"--workdir={workdir}"))
    assert code == 0, output
    for our, their in zip(records(workdir), records(two[0]), strict=True):
        assert our["loss"] == pytest.approx(their["loss"], rel=1e-5)


# What follows starts processes that need no jax.


def launch_words(*command, count=2):
    return launch(Path("/nowhere"), count, sys.executable, "-c", *command)


def test_the_process_that_died_is_named_and_the_others_are_ended():
    program = (
        "import os, sys, time; print('here', flush=True)\n"
        "if os.environ['ZOO_PROCESS'] == '1': sys.exit(7)\ntime.sleep(1000)"
    )
    code, output = ended(launch_words(program, count=3))
    assert code == 7
    assert "zoo launch: process 1 ended with exit code 7" in output
    assert [f"[{index}] here" in output for index in range(3)] == [True] * 3


def test_the_processes_get_the_command_and_where_they_are():
    program = (
        "import os, sys; e = os.environ; "
        "print(e['ZOO_PROCESS'], e['ZOO_PROCESSES'], e['ZOO_COORDINATOR'], sys.argv[1:])"
    )
    code, output = ended(launch_words(program, "--config.seed=3", "-n", "5"))
    assert code == 0
    lines = sorted(line.split(" ", 4) for line in output.splitlines())
    assert [line[:3] for line in lines] == [["[0]", "0", "2"], ["[1]", "1", "2"]]
    assert lines[0][3] == lines[1][3]
    assert {line[4] for line in lines} == {"['--config.seed=3', '-n', '5']"}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_reaches_each_process_once(signum):
    program = (
        "import signal, sys, time\n"
        "def got(number, frame): print('got', number, flush=True); time.sleep(0.5); sys.exit(3)\n"
        f"signal.signal({int(signum)}, got); print('ready', flush=True); time.sleep(1000)"
    )
    process = launch_words(program)
    seen = wait_for(process, "ready") + wait_for(process, "ready")
    process.send_signal(signum)
    code, output = ended(process)
    assert code == 3
    assert sorted((seen + output).split("\n"))[1:] == sorted(
        ["[0] ready", "[1] ready", f"[0] got {int(signum)}", f"[1] got {int(signum)}"]
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-n", "2"], "needs a command after --"),
        (["-n", "0", "--", "train.py"], "-n 0 must be at least 1"),
        (["-n", "1", "--", "/no/such/program"], "/no/such/program cannot be started"),
    ],
)
def test_a_launch_that_cannot_be(words, said, capsys):
    from zoo import cli

    with pytest.raises(SystemExit) as ends:
        cli.main(["launch", *words])
    assert ends.value.code == 2
    assert said in capsys.readouterr().err
