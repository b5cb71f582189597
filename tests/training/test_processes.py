"""Two real processes of jax, each with its own rows of the global batch."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from zoo.errors import UserError
from zoo.training import processes

ROOT = Path(__file__).parent.parent.parent

# Two devices in each of two processes. A batch has eight rows, the first four of process 0; the
# third row of the first batch is padding, so that only one process has any.
EVALUATE = """
import json, sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
process = int(sys.argv[2])
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=process)
import jax.numpy as jnp
import numpy as np
from zoo.training.evaluation import compile_evaluation, evaluate_split
from zoo.training.layout import Layout, make_mesh
from zoo.training.processes import share_of_rows

def global_batch(k):
    x = 8.0 * k + np.arange(8, dtype=np.float32)
    mask = np.ones(8, np.float32)
    mask[2] = k > 0
    return {"x": x, "mask": mask}

def evaluate(params, model_state, batch, key):
    return {"loss": ((params["w"] * batch["x"] * batch["mask"]).sum(), batch["mask"].sum())}

def predict(params, model_state, batch, key):
    return {"scaled": params["w"] * batch["x"]}

layout = Layout(make_mesh())
arguments = {"params": {"w": np.float32(3)}, "model_state": {}, "key": jax.random.key(0)}
compiled, _ = compile_evaluation(
    evaluate, predict, arguments, global_batch(0), layout, references=("x",), precision="float32"
)
own = slice(4 * process, 4 * process + 4)
# The two devices that share a tensor are of different processes, so both read all rows.
crossed = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2).T, ("data", "tensor"))
shares = [
    share_of_rows(layout.rows),
    share_of_rows(jax.sharding.NamedSharding(crossed, jax.sharding.PartitionSpec("data"))),
]
batches = ({name: rows[own] for name, rows in global_batch(k).items()} for k in range(2))
means, outputs, references = evaluate_split(compiled, arguments, batches, layout)
print(json.dumps({
    "processes": jax.process_count(), "devices": len(jax.devices()), "means": means,
    "shares": shares, "scaled": outputs["scaled"].tolist(), "x": references["x"].tolist(),
}))
"""


# Four devices hold a quarter of the array each; the newest checkpoint is damaged between two uses.
SAVE = """
import json, os, sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
process = int(sys.argv[2])
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=process)
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from pathlib import Path
from zoo.training.checkpoints import Checkpoints

rows = NamedSharding(jax.make_mesh((4,), ("data",)), PartitionSpec("data"))
like = {"x": jax.ShapeDtypeStruct((8,), np.float32, sharding=rows)}

def arrays(step):
    x = step + np.arange(8, dtype=np.float32)
    return {"x": jax.make_array_from_callback((8,), rows, lambda index: x[index])}

workdir, said = Path(sys.argv[3]), []
checkpoints = Checkpoints(workdir, keep=2)
for step in (5, 6, 7):
    checkpoints.save(step, arrays(step), {"step": step})
checkpoints.close()
if process == 0:
    os.truncate(workdir / "checkpoints" / "7" / "arrays" / "manifest.ocdbt", 10)
multihost_utils.sync_global_devices("damaged")
checkpoints = Checkpoints(workdir, say=said.append)
restored, progress = checkpoints.restore(like)
checkpoints.close()
own = [shard.data.tolist() for shard in restored["x"].addressable_shards]
folders = sorted(path.name for path in (workdir / "checkpoints").iterdir())
print(json.dumps({"own": own, "progress": progress, "said": len(said), "folders": folders}))
"""


def run_both(program, *arguments):
    """Runs a program as process 0 and 1 of 2; returns the last line of each as JSON."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program, address, str(process), *arguments],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for process in range(2)
    ]  # fmt: skip
    try:
        done = [process.communicate(timeout=120) for process in both]
    finally:
        # One that waits for the other, which has failed, would wait for minutes.
        for process in both:
            process.kill()
    for process, (_, errors) in zip(both, done, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(output.splitlines()[-1]) for output, _ in done]


def test_every_process_gets_all_rows_but_the_padded_one():
    real = [float(row) for row in range(16) if row != 2]
    for process, found in enumerate(run_both(EVALUATE)):
        assert found["shares"] == [[process, 2], [0, 1]]
        assert (found["processes"], found["devices"]) == (2, 4)
        assert found["x"] == real
        assert found["scaled"] == [3 * row for row in real]
        assert found["means"]["loss"] == pytest.approx(3 * sum(real) / len(real), rel=1e-6)


def test_processes_save_together_and_fall_back_together(tmp_path):
    for process, found in enumerate(run_both(SAVE, str(tmp_path))):
        first = 6 + 4 * process
        assert found["own"] == [[first, first + 1], [first + 2, first + 3]]
        assert found["progress"] == {"step": 6}
        assert found["said"] == 2
        assert found["folders"] == ["6", "damaged"]


class Coordinator:
    """The part of jax's client that an agreement uses, for the threads of one process."""

    def __init__(self, count):
        self.values, self.all = {}, threading.Barrier(count)

    def key_value_set(self, key, value):
        assert self.values.setdefault(key, value) is value, "jax refuses to overwrite"

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in list(self.values.items()) if key.startswith(folder)]

    def wait_at_barrier(self, name, milliseconds):
        self.all.wait(milliseconds / 1000)


@pytest.mark.parametrize("asked", [[0], [2], [0, 1, 2]])
def test_all_stop_at_the_same_check_whoever_is_asked(asked):
    count, stopped = 3, {}
    coordinator = Coordinator(count)
    done = [threading.Semaphore(0) for _ in range(count)]

    def run(index):
        agreement = processes.Agreement(coordinator, "stop", index)
        for step in range(1_000_000):
            if signum := agreement.check():
                stopped[index] = step, signum
                break
            if step == 20 and index in asked:
                agreement.ask(15 - index)
            # A step ends when all have begun it, as with a collective; the next may be begun.
            for other in range(count):
                if other != index:
                    done[other].release()
            for _ in range(count - 1):
                done[index].acquire(timeout=60)
        agreement.close()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(stopped) == count
    assert len(set(stopped.values())) == 1
    assert stopped[0][1] == 15 - asked[0]
    assert stopped[0][0] > 20


@pytest.fixture
def nothing_known(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("ZOO_PROC", "ZOO_COORD", "SLURM", "OMPI", "KUBERNETES", "JOB_COMP")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"coordinator": "a:1"}, "distributed.processes .* and distributed.process .* is missing"),
        ({"processes": 2, "process": 0}, "distributed.coordinator .* is missing"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "process=2 must be below"),
        ({"coordinator": "a", "processes": 2, "process": 0}, "'a' must be HOST:PORT"),
    ],
)
def test_what_cannot_join_is_refused(nothing_known, arguments, words):
    with pytest.raises(UserError, match=words):
        processes.start(**arguments)


def test_the_environment_of_the_launcher_and_of_a_cluster(nothing_known, monkeypatch):
    joined = []
    monkeypatch.setattr("jax.distributed.initialize", lambda **arguments: joined.append(arguments))
    beats = {"heartbeat_timeout_seconds": 30, "shutdown_timeout_seconds": 30}
    processes.start()
    assert not joined, "a process that nobody told anything stays alone"
    for name, value in (("COORDINATOR", "h:5"), ("PROCESSES", "4"), ("PROCESS", "3")):
        monkeypatch.setenv(f"ZOO_{name}", value)
    processes.start()
    told = {"coordinator_address": "h:5", "num_processes": 4, "process_id": 3}
    assert joined == [told | beats]
    processes.start(coordinator="none")
    assert len(joined) == 1
    for name in ("COORDINATOR", "PROCESSES", "PROCESS"):
        monkeypatch.delenv(f"ZOO_{name}")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-2]")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    processes.start(heartbeat_seconds=5)
    assert joined[1] == {"heartbeat_timeout_seconds": 5, "shutdown_timeout_seconds": 5}
    monkeypatch.delenv("SLURM_NTASKS")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jax\[k8s\]'"):
        processes.start()
