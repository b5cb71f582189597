"""Compiles the C++ kernels with the machine's own compiler and registers them with XLA.

The kernels are compiled once for each processor and kept in the same folder as XLA's compiled
programs. Without a compiler, or with ``ZOO_KERNELS=off`` in the environment, XLA's own operations
are used. With ``ZOO_KERNELS=no-matrix-unit``, the matrix unit of the processor is not used.
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
_OPTIONS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared", "-w")
_SECONDS = 120
# While one thread compiles a source, others wait for it.
_LOCKS = {source: threading.RLock() for source in SOURCES}


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
        return f"no kernels of our own ({SWITCH}=off)"
    compiler = _compiler()
    if compiler is None:
        return f"no kernels of our own (no C++ compiler: {', '.join(_COMPILERS)})"
    unit = ", also for the matrix unit" if _can_run(_MATRICES, "float32") else ""
    return f"own kernels compiled by {Path(compiler).name}{unit}"


def can_compile() -> bool:
    """Returns whether kernels can be used: they are not switched off and there is a compiler."""
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
    made_for = (_OPTIONS, dtype, process.processor_features(), contents)
    version = hashlib.sha256(repr(made_for).encode()).hexdigest()[:16]
    library = process.compilation_cache_folder() / f"kernels-{source}-{version}.so"
    failure = "" if library.exists() else _compile(compiler, dtype, file, library)
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
    return os.environ.get(SWITCH) == "off"


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, _COMPILERS)), None)


def _compile(compiler: str, dtype: str, source: Path, library: Path) -> str:
    """Compiles a source into a library; returns what went wrong, or an empty string."""
    number, xlas = NUMBERS[dtype]
    jaxlib = importlib.util.find_spec("jaxlib")
    folders = jaxlib.submodule_search_locations if jaxlib else None
    if not folders:
        return "jaxlib is not installed"
    headers = Path(folders[0]) / "include"
    options = (*_OPTIONS, f"-I{headers}", f"-DZOO_NUMBER={number}", f"-DZOO_TYPE={xlas}")
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with (
            filelock.FileLock(library.with_suffix(".lock")),
            tempfile.TemporaryDirectory() as folder,
        ):
            if library.exists():  # another process was faster
                return ""
            made = Path(folder) / library.name
            command = [compiler, *options, str(source), "-o", str(made)]
            done = subprocess.run(
                command, stderr=subprocess.PIPE, text=True, timeout=_SECONDS, check=False
            )
            if done.returncode:
                return done.stderr
            # Other processes see the complete file or none.
            copy = shutil.copyfile(made, library.with_suffix(".new"))
            copy.replace(library)
            return ""
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
