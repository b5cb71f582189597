"""How the kernels come to be, and that everything works without them."""

import os
import shutil
import stat
import subprocess
import sys

import pytest

from zoo.native import library

# Convolves with Winograd's algorithm where there is a kernel; prints which, and the result's sum.
CONVOLVE = """
import jax.numpy as jnp
from zoo.native import library
from zoo.layers.tuned.convolution import Window, convolve
window = Window((1, 1), (1, 1), (1, 1), 1)
y = convolve(jnp.ones((4, 8, 8, 16)), jnp.ones((3, 3, 16, 16)), window)
print(library.target("convolve_tiles", "float32"), float(y.sum()))
"""
# Nine taps of ones over 8x8 ones with zeros around them: (3 * 8 - 2)^2 for each of channels.
SUM = 4 * 16 * 16 * 22**2

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler"
)


def convolve(tmp_path, **environment):
    """Runs ``CONVOLVE`` with an own cache; returns the kernel's name, and what it logged."""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")} | environment
    environment = {key: value for key, value in environment.items() if value is not None}
    done = subprocess.run(
        [sys.executable, "-c", CONVOLVE],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    name, total = done.stdout.split()
    assert float(total) == SUM
    return name, done.stderr


def folder_with_compiler(tmp_path, script):
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    compiler = folder / "c++"
    compiler.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    compiler.chmod(0o755)
    return str(folder)


@needs_compiler
def test_compiled_once_and_kept(tmp_path):
    name, _ = convolve(tmp_path)
    assert name.startswith("zoo_kernels-winograd-")
    (file,) = (tmp_path / "cache").rglob("*.so")
    first = file.stat().st_mtime_ns
    again, said = convolve(tmp_path)
    assert (again, said, file.stat().st_mtime_ns) == (name, "", first)
    assert not list((tmp_path / "cache").rglob("*.new"))
    # Only its user reads what is loaded as a program.
    assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    # Another compiler makes another library.
    folder = folder_with_compiler(tmp_path, f'exec {shutil.which("c++")} "$@"')
    other, _ = convolve(tmp_path, PATH=f"{folder}:{os.environ['PATH']}")
    assert other not in (name, "None")


@pytest.fixture(scope="module")
def compiled_quickly(tmp_path_factory):
    """The search path of a compiler that does not optimise, a cache, and its kernel's name."""
    folder = tmp_path_factory.mktemp("quickly")
    compiler = folder_with_compiler(folder, f'exec {shutil.which("c++")} "$@" -O0')
    path = f"{compiler}:{os.environ['PATH']}"
    return path, folder / "cache", convolve(folder, PATH=path)[0]


@needs_compiler
@pytest.mark.xdist_group("damaged libraries")
@pytest.mark.parametrize("damage", ["empty", "garbage", "cut", "flipped", "no checksum"])
def test_a_damaged_library_is_compiled_anew(tmp_path, compiled_quickly, damage):
    path, cache, name = compiled_quickly
    shutil.copytree(cache, tmp_path / "cache")
    (file,) = (tmp_path / "cache").rglob("*.so")
    content = file.read_bytes()
    middle = len(content) // 2
    if damage == "no checksum":
        file.with_suffix(".sha256").unlink()
    file.write_bytes(
        {
            "empty": b"",
            "garbage": b"garbage" * 1000,
            "cut": content[:middle],
            "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "no checksum": content[:-100],
        }[damage]
    )
    again, said = convolve(tmp_path, PATH=path)
    assert (again, said) == (name, "")
    assert len(file.read_bytes()) == len(content)


EMPTY = "echo 'int x;' | cc -shared -fPIC -x c - -o $last.so"


@pytest.mark.parametrize(
    ("writes", "words"),
    [
        ("seq 100000", "invalid ELF header"),
        ("true", "file too short"),
        # A library that loads, without the functions; then one that is cut, which ends a process.
        (f"{EMPTY}; cat $last.so", "undefined symbol"),
        (f"{EMPTY}; head -c 5000 $last.so", "XLA's"),
    ],
)
def test_a_compiler_that_writes_garbage_is_done_without(tmp_path, writes, words):
    """The fake compiler finds its output file after the option ``-o``, the last argument."""
    script = f'for last; do :; done; PATH={os.environ["PATH"]}; ({writes}) > "$last"'
    name, said = convolve(tmp_path, PATH=folder_with_compiler(tmp_path, script))
    assert name == "None"
    assert "XLA's operations are used" in said
    assert words in said
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_compiler_that_fails_is_named_and_done_without(tmp_path):
    folder = folder_with_compiler(tmp_path, "echo 'out of order' >&2; exit 1")
    name, said = convolve(tmp_path, PATH=folder)
    assert name == "None"
    assert "from winograd.cc, XLA's operations are used: out of order" in said


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    name, said = convolve(tmp_path)
    assert name == "None"
    assert "XLA's operations are used" in said


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"PATH": ""}, "no kernels of our own (no C++ compiler: c++, g++, clang++)"),
        ({library.SWITCH: "off"}, "no kernels of our own (ZOO_KERNELS=off)"),
        ({library.SWITCH: None}, "no kernels of our own (ZOO_KERNELS=off)"),
    ],
)
def test_without_kernels_xlas_operations_are_used(tmp_path, monkeypatch, environment, words):
    assert convolve(tmp_path, **environment) == ("None", "")
    assert not (tmp_path / "cache").exists()
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    assert library.describe() == words


@needs_compiler
def test_a_processor_with_other_instructions_has_kernels_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "_compile", lambda *_: "")
    files = set()
    for features in ("avx2 fma", "avx2 avx512f fma"):
        monkeypatch.setattr(library.process, "processor_features", lambda known=features: known)
        files.add(library._compiled.__wrapped__("winograd", "float32"))
    assert len(files) == 2


@needs_compiler
def test_processes_that_begin_together_all_have_kernels(tmp_path):
    running = [
        subprocess.Popen(
            [sys.executable, "-c", CONVOLVE],
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    names = {one.communicate()[0].split()[0] for one in running}
    assert len(names) == 1
    assert names.pop().startswith("zoo_kernels-winograd-")
