"""Real runs of the families, stopped and damaged in every way: the same command, the same bits."""

import functools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import power_cuts
from families import TINY

from chaos.damage import damaged
from chaos.kinds import Kind

ROOT = Path(__file__).parents[2]
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


def command(workdir, family):
    """What trains a family, small, without the name of the interpreter."""
    return [
        "train.py", f"--config=configs/{family}.py", *TINY[family], *OPTIONS,
        f"--config.train.batch_size={BATCH_SIZES[family]}", f"--workdir={workdir}",
    ]  # fmt: skip


def environment(compiled):
    """What the process of a user would have, with a folder of compiled programs.

    What the uninterrupted run compiled is most of a start's time, and of no interest here.
    """
    given = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    path = [str(ROOT / "tests" / "without_torch"), given.get("PYTHONPATH", "")]
    return given | {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def start(workdir, family="cnn", compiled=None):
    """Starts a run in a process of its own, or goes on with it."""
    return subprocess.Popen(
        [sys.executable, *command(workdir, family)],
        cwd=ROOT, env=environment(compiled or workdir.parent.parent / "compiled"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(workdir, family="cnn", compiled=None):
    """Runs to the end; returns what was printed."""
    process = start(workdir, family, compiled)
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
    kept = ("mu", "trace")  # of Adam, of SGD with momentum
    assert any(name in path for path in a["arrays"] for name in kept), "no optimizer state"
    for name, array in a["arrays"].items():
        np.testing.assert_array_equal(array, b["arrays"][name], err_msg=name)
    assert a["metrics"] == b["metrics"]
    assert a["report"] == b["report"]
    assert a["best"] == b["best"]


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


class Whole:
    """The uninterrupted runs, each made when it is first needed, with the calls that it made."""

    def __init__(self, scratch: Path, families: Sequence[str]) -> None:
        self.scratch, self.families = scratch, families
        self.compiled = scratch / "compiled"
        self.results = functools.cache(self._results)
        self.calls = functools.cache(self._calls)

    def root(self, family: str) -> Path:
        """The folder around the run's own."""
        return self.scratch / "whole" / family

    def _results(self, family: str) -> dict[str, Any]:
        self.calls(family)
        return results(self.root(family) / "run")

    def _calls(self, family: str) -> list[power_cuts.Call]:
        root, scratch = self.root(family), self.scratch / "recording" / family
        for folder in (root, scratch):
            folder.mkdir(parents=True)
        arguments = command(root / "run", family)
        return power_cuts.record(arguments, root, scratch, environment(self.compiled), ROOT)

    def goes_on(self, workdir: Path, family: str) -> str:
        """Runs the same command to the end, and compares bits, records and report.

        Returns:
            What was printed.

        Raises:
            AssertionError: the command failed, or something differs.
        """
        output = finish(workdir, family, self.compiled)
        assert "Traceback" not in output, output
        assert_same(results(workdir), self.results(family))
        return output


def killed(whole: Whole, chance: random.Random, folder: Path) -> str:
    """SIGKILL, once or a few times, at random or inside a save."""
    family, workdir = chance.choice(whole.families), folder / "run"
    whole.results(family)
    times = chance.randrange(1, 4)
    for _ in range(times):
        saved = max(finished_steps(workdir), default=0)
        process = start(workdir, family, whole.compiled)
        if chance.random() < 0.5:
            kill_inside_a_save(process, workdir)
        else:
            kill_at_random(process, workdir, chance)
        process.communicate()
        assert max(finished_steps(workdir), default=0) >= saved
    whole.goes_on(workdir, family)
    return f"same bits ({family})"


def stopped(whole: Whole, chance: random.Random, folder: Path) -> str:
    """SIGTERM or SIGINT at a random moment, sometimes twice."""
    family, workdir = chance.choice(whole.families), folder / "run"
    whole.results(family)
    signum = chance.choice((signal.SIGTERM, signal.SIGINT))
    process = start(workdir, family, whole.compiled)
    _wait_for(process, workdir, chance)
    time.sleep(chance.uniform(0, 0.5))
    for _ in range(chance.choice((1, 1, 2))):
        process.send_signal(signum)
        time.sleep(chance.uniform(0, 0.3))
    output = process.communicate()[0]
    assert process.returncode in (0, 128 + signum, -signum), output
    assert "Traceback" not in output, output
    whole.goes_on(workdir, family)
    return f"same bits ({family})"


def power_cut(whole: Whole, chance: random.Random, folder: Path) -> str:
    """The power is cut at a random call of a whole run; what was not synced is lost, or a part."""
    family = chance.choice(whole.families)
    calls = whole.calls(family)
    disk, at = power_cuts.Disk(whole.root(family)), chance.randrange(len(calls))
    for call in calls[:at]:
        disk.apply(call)
    disk.cut(folder / "disk", chance.choice(("lost", chance)))
    whole.goes_on(folder / "disk" / "run", family)
    return f"same bits ({family})"


def disk_full(whole: Whole, chance: random.Random, folder: Path) -> str:
    """From a random moment on no file may grow beyond a random size."""
    family, workdir = chance.choice(whole.families), folder / "run"
    whole.results(family)
    process = start(workdir, family, whole.compiled)
    _wait_for(process, workdir, chance)
    size = chance.choice((0, 100, 1000, 5000, 20_000, 100_000))
    if process.poll() is None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    output = process.communicate()[0]
    assert "Traceback" not in output, output
    assert process.returncode in (0, 74), output
    if process.returncode == 74:
        assert "error: " in output
        report = workdir / "report.json"
        assert not report.exists() or json.loads(report.read_text())["status"] != "running"
    whole.goes_on(workdir, family)
    return f"{'refused, then ' if process.returncode else ''}same bits"


def bits_flipped(whole: Whole, chance: random.Random, folder: Path) -> str:
    """Files of the newest checkpoint are damaged, cut or deleted after the run was stopped."""
    family, workdir = chance.choice(whole.families), folder / "run"
    _stopped_run(whole, chance, workdir, family)
    newest = workdir / "checkpoints" / str(max(finished_steps(workdir)))
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    for path in chance.sample(files, chance.choice((1, 1, 2))):
        if chance.random() < 0.2:
            path.unlink()
        else:
            path.write_bytes(damaged(path.read_bytes(), chance))
    output = whole.goes_on(workdir, family)
    return "fell back, same bits" if "damaged" in output else "whole, same bits"


def run_files_damaged(whole: Whole, chance: random.Random, folder: Path) -> str:
    """A file beside the checkpoints is damaged: it is named, or the run goes on."""
    family, workdir = chance.choice(whole.families), folder / "run"
    _stopped_run(whole, chance, workdir, family)
    files = sorted(path for path in workdir.iterdir() if path.is_file())
    path = chance.choice(files)
    path.write_bytes(damaged(path.read_bytes(), chance))
    process = start(workdir, family, whole.compiled)
    output = process.communicate()[0]
    assert "Traceback" not in output, output
    if process.returncode:
        assert process.returncode == 2, output
        assert path.name in output, output
        return "refused by name"
    arrays = results(workdir)["arrays"]
    for name, array in whole.results(family)["arrays"].items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)
    return "same bits"


def _stopped_run(whole: Whole, chance: random.Random, workdir: Path, family: str) -> None:
    """Leaves a run that was killed after at least two checkpoints."""
    whole.results(family)
    process = start(workdir, family, whole.compiled)
    after = chance.choice((10, 20, 40))
    while process.poll() is None and max(finished_steps(workdir), default=0) < after:
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert finished_steps(workdir)


def _wait_for(process: subprocess.Popen, workdir: Path, chance: random.Random) -> None:
    """Waits until a random step was saved, or for a while after the start."""
    if chance.random() < 0.3:
        time.sleep(chance.uniform(1, 6))
        return
    target = chance.randrange(1, STEPS)
    while process.poll() is None and max(finished_steps(workdir), default=0) < target - 5:
        time.sleep(0.002)


def kinds(scratch: Path, families: Sequence[str]) -> list[Kind]:
    """Returns the kinds of stopped and damaged runs.

    Args:
        scratch: a folder for what all cases share.
        families: the configs that are run.
    """
    whole = Whole(scratch, families)
    same = "the same command ends with the same bits, records and report"
    named = "one line and exit code 74; then " + same

    def kind(name: str, injected: str, promised: str, case: Any, cases: int) -> Kind:
        return Kind(name, injected, promised, functools.partial(case, whole), cases, seconds=600)

    return [
        kind("kills", "SIGKILL, one to three times, half inside a save", same, killed, 200),
        kind("signals", "SIGTERM and SIGINT, sometimes twice", same, stopped, 200),
        kind("power", "power cuts of recorded runs", same, power_cut, 200),
        kind("disk", "no room from a random moment on", named, disk_full, 200),
        kind("bits", "newest checkpoint damaged, cut or in part deleted", same, bits_flipped, 200),
        kind(
            "files", "a file of the run damaged",
            "refused with its name, or the same parameters", run_files_damaged, 200,
        ),
    ]  # fmt: skip
