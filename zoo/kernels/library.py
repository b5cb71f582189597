"""Compiles the kernels where they run, with the compiler there, and makes them known to XLA.

Compiled once for a processor, as XLA's programs are, and kept in the same folder. Where there is no
compiler, or ``ZOO_KERNELS=off`` is in the environment, XLA's own operations are used.
"""

import ctypes
import functools
import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import filelock

from zoo import process

SWITCH = "ZOO_KERNELS"
KERNELS = (
    "convolve_tiles", "kernel_gradient_tiles", "convolve_windows", "kernel_gradient_windows",
    "multiply_rows", "recur_forward", "recur_backward",
)  # fmt: skip
# Their names in C++ and in XLA's interface.
NUMBERS = {"float32": ("float", "F32"), "float64": ("double", "F64")}
_SOURCES = Path(__file__).parent
_COMPILERS = ("c++", "g++", "clang++")
# For this processor alone. A product and a sum may become one instruction.
_OPTIONS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared", "-w")
_SECONDS = 120
# Of two threads, one compiles and the other waits.
_LOCK = threading.RLock()


def compile_ahead() -> None:
    """Begins to compile the kernels of float32, if that was not done yet, and does not wait."""
    if not _is_off():
        threading.Thread(target=_library, args=("float32",)).start()


def describe() -> str:
    """Returns which kernels there are, in a few words for a log; compiles nothing."""
    if _is_off():
        return f"no kernels of our own ({SWITCH}=off)"
    compiler = _compiler()
    if compiler is None:
        return f"no kernels of our own (no C++ compiler: {', '.join(_COMPILERS)})"
    return f"own kernels compiled by {Path(compiler).name}"


def prefix(dtype: str) -> str | None:
    """Returns what the kernels' names in XLA begin with, compiled and registered.

    Args:
        dtype: of the numbers, ``float32`` or ``float64``.

    Returns:
        The beginning of the names, or None: there are no kernels, and the log says why if their
        compilation failed.
    """
    if _is_off():
        return None
    with _LOCK:
        return _registered(dtype)


@functools.cache
def _registered(dtype: str) -> str | None:
    file = _library(dtype)
    if file is None:
        return None
    import jax

    # A program that was compiled and kept names the kernels that it was made with.
    names, handlers = f"zoo_{file.stem}_", ctypes.CDLL(str(file))
    for name in KERNELS:
        handler = jax.ffi.pycapsule(getattr(handlers, name))
        jax.ffi.register_ffi_target(names + name, handler, platform="cpu")
    return names


def _library(dtype: str) -> Path | None:
    with _LOCK:
        return _compiled(dtype)


@functools.cache
def _compiled(dtype: str) -> Path | None:
    compiler = _compiler()
    if compiler is None:
        return None
    sources = sorted(_SOURCES.glob("*.cc"))
    content = b"".join(file.read_bytes() for file in [*sources, *sorted(_SOURCES.glob("*.h"))])
    made_for = (_OPTIONS, dtype, process.processor_features(), content)
    version = hashlib.sha256(repr(made_for).encode()).hexdigest()[:16]
    file = process.compilation_cache_folder() / f"kernels-{version}.so"
    failure = "" if file.exists() else _compile(compiler, dtype, sources, file)
    if failure:
        logging.getLogger(__name__).warning(
            "no kernels of our own, XLA's operations are used: %s", failure
        )
        return None
    return file


def _is_off() -> bool:
    return os.environ.get(SWITCH) == "off"


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, _COMPILERS)), None)


def _compile(compiler: str, dtype: str, sources: list[Path], file: Path) -> str:
    """Compiles the sources, side by side, into a library; returns what went wrong, or nothing."""
    number, xlas = NUMBERS[dtype]
    jaxlib = importlib.util.find_spec("jaxlib")
    folders = jaxlib.submodule_search_locations if jaxlib else None
    if not folders:
        return "jaxlib is not installed"
    headers = Path(folders[0]) / "include"
    options = (*_OPTIONS, f"-I{headers}", f"-DZOO_NUMBER={number}", f"-DZOO_TYPE={xlas}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with (
            filelock.FileLock(file.with_suffix(".lock")),
            tempfile.TemporaryDirectory() as folder,
        ):
            if file.exists():  # another process was faster
                return ""
            objects = [Path(folder) / f"{source.stem}.o" for source in sources]
            commands = [
                [compiler, *options, "-c", str(source), "-o", str(made)]
                for source, made in zip(sources, objects, strict=True)
            ]
            made = Path(folder) / file.name
            failure = _run(commands) or _run(
                [[compiler, *options, *map(str, objects), "-o", str(made)]]
            )
            if not failure:
                # Other processes see all of it or nothing.
                copy = shutil.copyfile(made, file.with_suffix(".new"))
                copy.replace(file)
            return failure
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def _run(commands: list[list[str]]) -> str:
    """Runs commands side by side; returns the errors of those that failed."""
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [one.communicate(timeout=_SECONDS)[1] for one in running]
    return "\n".join(e for one, e in zip(running, errors, strict=True) if one.returncode)
