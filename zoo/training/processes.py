"""Several processes that train one run: how they find each other, agree, and end together.

Every process runs the same program on its own devices. ``start`` joins them before the first device
is touched. The first one, of index 0, holds the work directory and writes records and reports. In a
program of one process, every function here returns at once.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from zoo.errors import UserError
from zoo.process import ADDRESS, COUNT, INDEX

# Values of ``distributed.coordinator`` that are no address.
AUTO, ALONE = "auto", "none"

# How long a process waits for the others. One that has died is noticed much earlier.
_PATIENCE_MS = 20 * 60 * 1000
# How long the processes wait for each other's answer on where to stop.
_ANSWER_MS = 60 * 1000
# The time between two looks for a stop that another process asks for.
_LOOK_SECONDS = 0.5


def start(
    *,
    coordinator: str = AUTO,
    processes: int = 0,
    process: int = -1,
    heartbeat_seconds: int = 30,
    platform: str = "auto",
) -> None:
    """Joins the processes of a run; call it before the first device is touched.

    The processes find each other by themselves on TPU VMs, under SLURM and Open MPI, and in indexed
    jobs of Kubernetes. Elsewhere they are told, by the arguments or by what ``zoo launch`` sets in
    the environment. A process that is told nothing, and finds nothing, stays alone.

    Args:
        coordinator: ``host:port`` of process 0, where it listens; ``auto`` finds it; ``none`` stays
            alone.
        processes: the number of processes; 0 finds it.
        process: the index of this process; -1 finds it.
        heartbeat_seconds: a process that the others do not hear for so long is dead, and they end.
        platform: the platform that the run asks for; on ``cpu`` the processes of a TPU VM stay
            alone.

    Raises:
        UserError: something is missing or wrong, or the processes did not find each other.
    """
    if jax.distributed.is_initialized():
        return
    if coordinator == ALONE:
        return
    given = _given(coordinator, processes, process)
    if not given and not _is_cluster(platform):
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Its handler of SIGTERM would take the place of ours (``Agreement``), which knows SIGINT too.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **given,
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=heartbeat_seconds,
        )
    except (RuntimeError, ValueError) as error:
        if not given and "coordinator_address should be defined" in str(error):
            # There are devices of a kind that clusters have, but jax finds no cluster.
            return
        where = f" at {given['coordinator_address']}" if given else ""
        raise UserError(
            f"the processes of this run did not find each other{where} ({error}): start all of "
            "them with the same distributed.coordinator=HOST:PORT and distributed.processes, or "
            "give distributed.coordinator=none to train in one process"
        ) from error


def in_words() -> str:
    """Returns which of the processes this is, for a log; nothing if it is alone."""
    count = jax.process_count()
    return f"process {jax.process_index()} of {count}" if count > 1 else ""


def _given(coordinator: str, processes: int, process: int) -> dict[str, Any]:
    """Returns the arguments of ``jax.distributed.initialize`` that the user or zoo launch gave."""
    address = os.environ.get(ADDRESS, "") if coordinator == AUTO else coordinator
    count = processes or _number(COUNT, 0)
    index = _number(INDEX, -1) if process == -1 else process
    known = {
        f"distributed.coordinator (or {ADDRESS})": bool(address),
        f"distributed.processes (or {COUNT})": count > 0,
        f"distributed.process (or {INDEX})": index >= 0,
    }
    if not any(known.values()):
        return {}
    if missing := [name for name, is_known in known.items() if not is_known]:
        raise UserError(
            f"{' and '.join(missing)} is missing: give coordinator, processes and process, or none "
            "of them where they are found by themselves"
        )
    if index >= count:
        raise UserError(
            f"distributed.process={index} must be below distributed.processes={count}: the "
            "processes are numbered from 0"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"distributed.coordinator={address!r} must be HOST:PORT, auto or none")
    return {"coordinator_address": address, "num_processes": count, "process_id": index}


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    if not text:
        return default
    if not text.isdigit():
        raise UserError(f"the environment's {variable}={text!r} must be a whole number")
    return int(text)


def _is_cluster(platform: str) -> bool:
    """Returns whether jax may find other processes here; asks nothing outside this machine."""
    environment = os.environ
    if "SLURM_STEP_NODELIST" in environment and _number("SLURM_NTASKS", 1) > 1:
        return True
    if _number("OMPI_COMM_WORLD_SIZE", 1) > 1:
        return True
    # A TPU's chips are files in these folders; the hosts of a slice on GKE are in the environment.
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev").glob("vfio/[0-9]*")]
    if platform in ("auto", "tpu") and importlib.util.find_spec("libtpu") and chips:
        return True
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        if importlib.util.find_spec("kubernetes") is None:
            raise UserError(
                "this is a pod of an indexed job, and jax finds the others with the package "
                "kubernetes, which is not installed: pip install 'jax[k8s]', or give "
                "distributed.coordinator, .processes and .process; distributed.coordinator=none "
                "trains in this pod alone"
            )
        return True
    return False


def is_first() -> bool:
    """Returns whether this process writes what only one may write."""
    return jax.process_index() == 0


def of_first(
    what: str,
    make: Callable[[], Any],
    *,
    tell: Callable[[Any], Any] = lambda made: made,
    take: Callable[[Any], Any] = lambda told: told,
) -> Any:
    """Returns in every process what the first one makes.

    Args:
        what: names it, for errors.
        make: is called in the first process.
        tell: turns the result into JSON-able values for the others.
        take: turns these values into the result of the others.

    Raises:
        UserError: ``make`` raised an error in the first process, where it is raised as it is.
    """
    if jax.process_count() == 1:
        return make()
    client, key = _client(), _key("of_first")
    if not is_first():
        told = json.loads(client.blocking_key_value_get(key, _PATIENCE_MS))
        if "error" in told:
            raise UserError(f"process 0 could not give {what}: {told['error']}")
        return take(told["value"])
    try:
        made = make()
        client.key_value_set(key, json.dumps({"value": tell(made)}))
    except BaseException as error:
        client.key_value_set(key, json.dumps({"error": str(error) or type(error).__name__}))
        raise
    return made


def check_same(what: str, values: Mapping[str, Any]) -> None:
    """Raises UserError in every process unless all have the same values.

    Args:
        what: names the values, for the error.
        values: JSON-able values by name.
    """
    if jax.process_count() == 1:
        return
    client, key = _client(), _key("same")
    text = json.dumps(dict(values), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if is_first():
        client.key_value_set(f"{key}/values", text)
    client.key_value_set(f"{key}/digests/{jax.process_index()}", digest)
    client.wait_at_barrier(f"{key}/given", _PATIENCE_MS)
    digests = {
        int(name.rpartition("/")[2]): found
        for name, found in client.key_value_dir_get(f"{key}/digests/")
    }
    others = sorted(index for index, found in digests.items() if found != digests[0])
    if not others:
        return
    if digest == digests[0]:
        named = ", ".join(map(str, others[:8])) + (", …" if others[8:] else "")
        raise UserError(
            f"{what} of process {named} differs from that of process 0: start all processes with "
            "the same command. Their messages name the fields"
        )
    first = json.loads(client.blocking_key_value_get(f"{key}/values", _PATIENCE_MS))
    own = json.loads(text)
    differ = [
        f"{name} is {first.get(name)!r} there and {own.get(name)!r} here"
        for name in sorted(first.keys() | own.keys())
        if first.get(name) != own.get(name)
    ]
    raise UserError(
        f"{what} of process {jax.process_index()} differs from that of process 0:\n  "
        + "\n  ".join(differ)
        + "\nStart all processes with the same command"
    )


def meet(what: str) -> None:
    """Returns when every process is here."""
    if jax.process_count() > 1:
        _client().wait_at_barrier(f"{_key('meet')} {what}", _PATIENCE_MS)


def of_each(numbers: np.ndarray) -> np.ndarray:
    """Returns the numbers of each process, one row a process; all must call it together."""
    if jax.process_count() == 1:
        return numbers[None]
    from jax.experimental import multihost_utils

    with jax.transfer_guard("allow"):
        return np.asarray(multihost_utils.process_allgather(numbers))


def share_of_rows(rows: NamedSharding) -> tuple[int, int]:
    """Returns which part of a global batch's rows this process reads, and the number of parts.

    Processes whose devices hold the same rows, such as those that share a tensor, read the same
    part.

    Args:
        rows: the sharding of a batch.

    Raises:
        UserError: the process has no device in the mesh, or its rows do not lie together.
    """
    count = rows.mesh.devices.size
    places = rows.addressable_devices_indices_map((count,)).values()
    own = {range(count)[index[0]] for index in places if index}
    held = sorted({row for part in own for row in part})
    if not held or held != list(range(held[0], held[-1] + 1)) or held[0] % len(held):
        raise UserError(
            f"process {jax.process_index()} has {'no' if not held else 'no contiguous'} rows of a "
            "batch on this mesh: give mesh.data=-1, so that every process has an equal part"
        )
    return held[0] // len(held), count // len(held)


class Agreement:
    """Lets all processes stop at the same point, whichever of them was asked to.

    All processes call ``check`` equally often, at the same points of the run. One that is asked to
    stop tells the others. A thread in each process then publishes how many checks it has passed
    and holds back the next one, and all stop at the check after the largest of these numbers. The
    main threads need not answer, since they may be waiting for one another in a collective.
    """

    def __init__(self, client: Any, key: str, index: int) -> None:
        """Starts to listen.

        Args:
            client: jax's client of the coordinator.
            key: a key that no other agreement has, the same in every process.
            index: the index of this process.
        """
        self._client, self._key, self._index = client, key, index
        self._lock = threading.Lock()
        self._passed = 0
        self._asked: int | None = None
        self._stop: tuple[int, int] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="stop", daemon=True)
        self._thread.start()

    def ask(self, signum: int) -> None:
        """Asks all processes to stop; may be called in a signal's handler."""
        self._asked = signum

    def check(self) -> int | None:
        """Returns the signal's number if all processes stop here, else None."""
        with self._lock:
            self._passed += 1
            if self._stop is None or self._passed < self._stop[0]:
                return None
            return self._stop[1]

    def close(self) -> None:
        """Ends the thread."""
        self._ended.set()
        self._thread.join()

    def _listen(self) -> None:
        # Without the coordinator nothing can be agreed on; missing heartbeats end this process.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            told = False
            while not self._ended.wait(_LOOK_SECONDS):
                if self._asked is not None and not told:
                    key = f"{self._key}/asked/{self._index}"
                    self._client.key_value_set(key, str(self._asked))
                    told = True
                if self._client.key_value_dir_get(f"{self._key}/asked/"):
                    self._agree()
                    return

    def _agree(self) -> None:
        with self._lock:
            self._client.key_value_set(f"{self._key}/passed/{self._index}", str(self._passed))
            self._client.wait_at_barrier(f"{self._key}/all", _ANSWER_MS)
            passed = self._client.key_value_dir_get(f"{self._key}/passed/")
            # Nobody asks any more after the barrier, so all read the same.
            asked = sorted(self._client.key_value_dir_get(f"{self._key}/asked/"))
            self._stop = max(int(number) for _, number in passed) + 1, int(asked[0][1])


def agreement() -> Agreement | None:
    """Returns how the processes agree on where to stop; None in a program of one process."""
    if jax.process_count() == 1:
        return None
    return Agreement(_client(), _key("stop"), jax.process_index())


def _client() -> Any:
    # jax gives the coordinator's keys and values no public name; orbax takes them from here too.
    from jax._src import distributed

    return distributed.global_state.client


def _key(kind: str) -> str:
    """Returns a key that is new, and the same in every process, as all ask in the same order."""
    number = _client().key_value_increment(f"zoo/count/{kind}/{jax.process_index()}", 1)
    return f"zoo/{kind}/{number}"
