"""Settings of the whole process, made before JAX starts. Imports no jax."""

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path

import filelock

# The environment of a process that ``zoo launch`` starts: host:port of process 0, the number of
# processes, and the index of this one.
ADDRESS, COUNT, INDEX = "ZOO_COORDINATOR", "ZOO_PROCESSES", "ZOO_PROCESS"
# glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
# mallopt(3): turns trimming off. A threshold is at most 2 GiB, and a large step frees more at once.
_NEVER = -1


def tune_allocator() -> str:
    """Makes the process keep the memory that it frees, so that it can use it again.

    A training step frees hundreds of megabytes and then allocates as much again. By default glibc
    returns large blocks to the system, which hands them out again page by page and clears each
    page. On a CPU this takes up to a third of a step. Without glibc nothing is changed.

    Returns:
        A few words for a log that say what was done.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return "allocator as it is (no glibc)"
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_ARENA_MAX, 1))
    if not all(mallopt(name, value) for name, value in settings):
        return "allocator as it is (mallopt refused)"
    return "allocator keeps memory"


def quiet_libtpu() -> None:
    """Keeps ``libtpu`` from complaining that a machine without a TPU has none; imports no jax.

    Where it is installed, JAX tries it at every start. It then asks for the kind of TPU and the
    names of its hosts, which these variables answer. Nothing is changed on a machine with a TPU.
    """
    # jax sets this when it is imported and finds no TPU.
    if os.environ.get("TPU_SKIP_MDS_QUERY") != "1":
        return
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    # Several processes may compile at a time, since none has a TPU.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def cache_folder() -> Path:
    """Returns the folder of what can be made again, inside the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "jax-model-zoo"


def compilation_cache_folder() -> Path:
    """Returns the folder for compiled programs, inside the user's cache folder.

    A program that is compiled on a CPU is specific to the processor, and only the same compiler can
    read it. The name of the folder therefore includes both.
    """
    processor = "-".join(re.findall(r"[a-z0-9]+", processor_model().lower()))
    return cache_folder() / f"jaxlib-{importlib.metadata.version('jaxlib')}-{processor}"


def remove_unfinished(folder: Path) -> None:
    """Removes compiled programs that were not written completely because a process ended.

    jax writes the time of use after the program itself. Every later run would try to read a program
    without a time, fail, and warn.

    Raises:
        OSError: the folder cannot be written to, or another process does not release its lock.
    """
    # This is the lock that jax holds while it writes. The timeout is that of jax itself.
    with filelock.FileLock(folder / ".lockfile", timeout=10):
        for program in folder.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
                program.unlink()


def make_private(folder: Path) -> None:
    """Makes a folder that only its user can enter; programs are loaded from it.

    Raises:
        OSError: the folder cannot be made, or belongs to another user.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)


def processor_model() -> str:
    """Returns the name of the processor, such as ``AMD EPYC``, or else its architecture."""
    return _processor("model name") or platform.processor() or platform.machine()


def processor_features() -> str:
    """Returns the names of the processor's instruction sets, if the system reports them.

    Virtual machines on different processors may report the same names.
    """
    return _processor("flags") or _processor("Features")


def memory_bytes() -> int:
    """Returns the bytes of memory that this process can still have.

    That is what the system has free or can free at once, or the limit of the process's control
    group (version 2 or 1) if that is less. The result is ``sys.maxsize`` where the system reports
    neither, as on macOS.
    """
    limits = [sys.maxsize]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="utf-8"), re.M)
        limits += [int(found[1]) * 1024] if found else []
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # absent, or "max"
            limits.append(int((Path("/sys/fs/cgroup") / file).read_text(encoding="utf-8")))
    return min(limits)


def _processor(field: str) -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith(field):
                return line.partition(":")[2].strip()
    return ""
