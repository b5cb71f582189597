"""This project's own kernels for a CPU, in C++: compiled where they run, by the compiler there.

Compiled once for a processor, like XLA's programs, and kept in the same folder. Where there is no
compiler, or ``ZOO_KERNELS=off`` is in the environment, XLA's own operations are used.
"""

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax

from zoo import process

SWITCH = "ZOO_KERNELS"
KERNELS = ("convolve", "kernel_gradient")
_SOURCES = Path(__file__).parent
_COMPILERS = ("c++", "g++", "clang++")
# Compiled for this processor alone; contraction makes a product and a sum one instruction.
_OPTIONS = (
    "-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared", "-w"
)  # fmt: skip
_SECONDS = 120


def is_used() -> bool:
    """Returns whether programs that are compiled for this machine's CPU may call the kernels.

    Not beside a GPU or TPU: what little is left to the CPU there is not worth a compilation.
    """
    return jax.default_backend() == "cpu" and library()[0] is not None


@functools.cache
def library() -> tuple[str | None, str]:
    """Compiles the kernels if that was not done yet, and makes them known to XLA.

    Returns:
        What the kernels' names in XLA begin with, or None: there are no kernels; and which, in a
        few words for a log.
    """
    if os.environ.get(SWITCH) == "off":
        return None, f"no kernels of our own ({SWITCH}=off)"
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        return None, f"no kernels of our own (no C++ compiler: {', '.join(_COMPILERS)})"
    sources = sorted(_SOURCES.glob("*.cc"))
    content = b"".join(file.read_bytes() for file in [*sources, *sorted(_SOURCES.glob("*.h"))])
    version = hashlib.sha256(repr((_OPTIONS, content)).encode()).hexdigest()[:16]
    file = process.compilation_cache_folder() / f"kernels-{version}.so"
    if not file.exists():
        failure = _compile(compiler, sources, file)
        if failure:
            logging.getLogger(__name__).warning("the kernels were not compiled: %s", failure)
            return None, "no kernels of our own (they were not compiled)"
    # A compiled program that was kept names the kernels that it was made with.
    prefix, handlers = f"zoo_{version}_", ctypes.CDLL(str(file))
    for name in KERNELS:
        handler = jax.ffi.pycapsule(getattr(handlers, name))
        jax.ffi.register_ffi_target(prefix + name, handler, platform="cpu")
    return prefix, f"own kernels by {Path(compiler).name}"


def _compile(compiler: str, sources: list[Path], file: Path) -> str:
    """Compiles; returns what went wrong, or nothing."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            made = Path(folder) / file.name
            arguments = [
                *_OPTIONS,
                f"-I{jax.ffi.include_dir()}",
                *map(str, sources),
                "-o",
                str(made),
            ]
            done = subprocess.run(
                [compiler, *arguments],
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=False,
            )
            if done.returncode:
                return done.stderr
            # Other processes see all of it or nothing.
            made.replace(file)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ""
