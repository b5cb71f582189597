"""Settings of the whole process, for before JAX starts. Imports no jax."""

import ctypes
import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path

import filelock

# glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
# mallopt(3): trimming is off. A bound could be 2 GiB at most, and a large step frees more at once.
_NEVER = -1


def tune_allocator() -> str:
    """Lets the process keep the memory that it frees, for its own next use.

    A training step frees hundreds of megabytes and asks for the same again. By default glibc gives
    large blocks back to the system, which hands them out again page by page, each cleared: on a CPU
    up to a third of a step. Where there is no glibc nothing is changed.

    Returns:
        What was done, in a few words for a log.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return "allocator as it is (no glibc)"
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_ARENA_MAX, 1))
    if not all(mallopt(name, value) for name, value in settings):
        return "allocator as it is (mallopt refused)"
    return "allocator keeps memory"


def compilation_cache_folder() -> Path:
    """Returns where compiled programs are kept: in the user's cache folder.

    What is compiled on a CPU is for that processor, and only the same compiler reads it: both are
    in the folder's name.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    processor = "-".join(re.findall(r"[a-z0-9]+", processor_model().lower()))
    return root / "jax-model-zoo" / f"jaxlib-{importlib.metadata.version('jaxlib')}-{processor}"


def remove_unfinished(folder: Path) -> None:
    """Removes compiled programs whose writing was cut off by the end of a process.

    jax writes the time of use after the program itself. One without a time would be read in vain,
    with a warning, by every later run.

    Raises:
        OSError: the folder cannot be written, or another process does not let go of it.
    """
    # The lock that jax holds while it writes, and as long as jax itself waits for it.
    with filelock.FileLock(folder / ".lockfile", timeout=10):
        for program in folder.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
                program.unlink()


def processor_model() -> str:
    """Returns the processor's name, such as ``AMD EPYC``; else its architecture."""
    return _processor("model name") or platform.processor() or platform.machine()


def processor_features() -> str:
    """Returns the names of the processor's sets of instructions, where the system tells them.

    Virtual machines on different processors may call them the same.
    """
    return _processor("flags") or _processor("Features")


def _processor(field: str) -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith(field):
                return line.partition(":")[2].strip()
    return ""
