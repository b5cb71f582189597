"""Compiles the C++ kernels with the machine's own compiler and registers them with XLA.

Nothing is compiled unless it was asked for: ``zoo.run``, ``zoo.fit``, the commands and
``zoo.use_kernels`` ask, and so does ``ZOO_KERNELS=on`` in the environment. The kernels are compiled
once for each processor and compiler, and kept in the same folder as XLA's compiled programs.
Without a compiler, or with ``ZOO_KERNELS=off``, XLA's own operations are used. With
``ZOO_KERNELS=no-matrix-unit``, the matrix unit of the processor is not used.

A library that is damaged can end the process when it is loaded. So one is loaded only if its
checksum, which was written beside it once another process had loaded it, is right.
"""

import ctypes
import functools
import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import filelock

from zoo import files, process

SWITCH = "ZOO_KERNELS"
_MATRICES = "matrices"
# The kernels in each source file.
SOURCES = {
    "winograd": ("convolve_tiles", "input_gradient_tiles", "kernel_gradient_tiles"),
    "windows": ("convolve_windows", "kernel_gradient_windows"),
    "pointwise": ("convolve_pixels",),
    "products": ("multiply_rows",),
    "contraction": ("contract_rows",),
    _MATRICES: ("multiply_matrices", "convolve_by_unit", "kernel_gradient_by_unit"),
    "recurrence": ("recur_forward", "recur_backward"),
}
# The names of each type of number in C++ and in XLA's interface.
NUMBERS = {"float32": ("float", "F32"), "float64": ("double", "F64")}
# Features that a processor needs for the source "matrices", which uses Intel's AMX in float32 only.
_MATRIX_UNIT = {"amx_bf16", "avx512f", "avx512bw", "avx512_bf16"}
_FOLDER = Path(__file__).parent
# The sources that most families of models need.
_COMPILED_AHEAD = ("winograd", "windows", "products")
_COMPILERS = ("c++", "g++", "clang++")
# Compile for this processor only. A product and a sum may become one instruction.
_OPTIONS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared")
_SECONDS = 120
# Loads a library and finds its functions, in a process of its own.
_TRY = """
import ctypes, sys
try:
    library = ctypes.CDLL(sys.argv[1])
    for name in sys.argv[2:]:
        getattr(library, name)
except (OSError, AttributeError) as error:
    raise SystemExit(f"what was compiled cannot be loaded: {error}")
"""
# While one thread compiles a source, others wait for it.
_LOCKS = {source: threading.RLock() for source in SOURCES}


def ask() -> None:
    """Asks for the kernels in this process, unless the environment already decides."""
    os.environ.setdefault(SWITCH, "on")


def compile_ahead() -> None:
    """Starts to compile the sources that most models need in float32, unless they are compiled.

    Returns at once. ``target`` waits for a source that is not ready.
    """
    if not _is_off():
        for source in _COMPILED_AHEAD:
            threading.Thread(target=_library, args=(source, "float32")).start()


def describe() -> str:
    """Describes the available kernels in a few words for a log; compiles nothing."""
    if _is_off():
        return f"no kernels of our own ({SWITCH}={os.environ.get(SWITCH, 'off')})"
    compiler = _compiler()
    if compiler is None:
        return f"no kernels of our own (no C++ compiler: {', '.join(_COMPILERS)})"
    unit = ", also for the matrix unit" if _can_run(_MATRICES, "float32") else ""
    return f"own kernels compiled by {Path(compiler).name}{unit}"


def can_compile() -> bool:
    """Returns whether kernels can be used: they were asked for and there is a compiler."""
    return not _is_off() and _compiler() is not None


def target(kernel: str, dtype: str) -> str | None:
    """Compiles and registers a kernel, and returns its name in XLA.

    Args:
        kernel: one of the kernels in ``SOURCES``.
        dtype: type of the numbers, ``float32`` or ``float64``.

    Returns:
        The name, or None if the kernel is not available here. If its compilation failed, the log
        says why.
    """
    if _is_off():
        return None
    source = next(source for source, kernels in SOURCES.items() if kernel in kernels)
    if not _can_run(source, dtype):
        return None
    with _LOCKS[source]:
        prefix = _registered(source, dtype)
    return prefix and prefix + kernel


@functools.cache
def _registered(source: str, dtype: str) -> str | None:
    file = _library(source, dtype)
    if file is None:
        return None
    import jax

    # Compiled programs in the cache refer to their kernels by name, so the name has the version.
    prefix, handlers = f"zoo_{file.stem}_", ctypes.CDLL(str(file))
    if source == _MATRICES and handlers.prepare():
        _warn(source, "the system does not let this process use the processor's matrix unit")
        return None
    for name in SOURCES[source]:
        handler = jax.ffi.pycapsule(getattr(handlers, name))
        jax.ffi.register_ffi_target(prefix + name, handler, platform="cpu")
    return prefix


def _library(source: str, dtype: str) -> Path | None:
    with _LOCKS[source]:
        return _compiled(source, dtype)


@functools.cache
def _compiled(source: str, dtype: str) -> Path | None:
    compiler = _compiler()
    if compiler is None:
        return None
    file = _FOLDER / f"{source}.cc"
    contents = [part.read_bytes() for part in (file, *sorted(_FOLDER.glob("*.h")))]
    made_for = (_OPTIONS, _identity(compiler), dtype, process.processor_features(), contents)
    version = hashlib.sha256(repr(made_for).encode()).hexdigest()[:16]
    library = process.compilation_cache_folder() / f"kernels-{source}-{version}.so"
    failure = "" if _is_whole(library) else _compile(compiler, dtype, file, library)
    if failure:
        _warn(source, failure)
        return None
    return library


def _warn(source: str, reason: str) -> None:
    logging.getLogger(__name__).warning(
        "no kernels of our own from %s.cc, XLA's operations are used: %s", source, reason
    )


def _can_run(source: str, dtype: str) -> bool:
    return source != _MATRICES or (
        dtype == "float32"
        and os.environ.get(SWITCH) != "no-matrix-unit"
        and set(process.processor_features().split()) >= _MATRIX_UNIT
    )


def _is_off() -> bool:
    return os.environ.get(SWITCH, "off") == "off"


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, _COMPILERS)), None)


def _identity(compiler: str) -> tuple[str, int, int]:
    """Tells compilers apart without running them: an update changes the file's size or its time."""
    file = Path(compiler).resolve()
    status = file.stat()
    return str(file), status.st_size, status.st_mtime_ns


def _checksum_file(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _is_whole(library: Path) -> bool:
    """Returns whether a kept library is the one that was written."""
    try:
        expected = _checksum_file(library).read_text(encoding="ascii")
        return hashlib.sha256(library.read_bytes()).hexdigest() == expected
    except (OSError, UnicodeDecodeError):
        return False


def _compile(compiler: str, dtype: str, source: Path, library: Path) -> str:
    """Compiles a source into a library; returns what went wrong, or an empty string."""
    number, xlas = NUMBERS[dtype]
    jaxlib = importlib.util.find_spec("jaxlib")
    folders = jaxlib.submodule_search_locations if jaxlib else None
    if not folders:
        return "jaxlib is not installed"
    headers = Path(folders[0]) / "include"
    options = (*_OPTIONS, f"-isystem{headers}", f"-DZOO_NUMBER={number}", f"-DZOO_TYPE={xlas}")
    try:
        process.make_private(library.parent)
        with (
            filelock.FileLock(library.with_suffix(".lock"), mode=0o600),
            tempfile.TemporaryDirectory() as folder,
        ):
            if _is_whole(library):  # another process was faster
                return ""
            made = Path(folder) / library.name
            failure = _fails([compiler, *options, str(source), "-o", str(made)])
            functions = SOURCES[source.stem]
            failure = failure or _fails([sys.executable, "-c", _TRY, str(made), *functions])
            if failure:
                return failure
            content = made.read_bytes()
            # Other processes see the complete file or none, and its checksum only after it.
            new = library.with_suffix(".new")
            new.write_bytes(content)
            new.chmod(0o600)
            files.sync(new)
            files.rename(new, library)
            files.write_atomically(_checksum_file(library), hashlib.sha256(content).hexdigest())
            return ""
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def _fails(command: list[str]) -> str:
    """Runs a command; returns what it said if it failed, or an empty string."""
    done = subprocess.run(
        command, stderr=subprocess.PIPE, text=True, errors="replace", timeout=_SECONDS, check=False
    )
    if done.returncode == 0:
        return ""
    return done.stderr.strip() or f"{Path(command[0]).name} ended with {done.returncode}"
