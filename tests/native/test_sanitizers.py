"""The kernels compiled with warnings as errors, and run under the compilers' sanitizers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jaxlib
import pytest

from zoo.native import library

ROOT = Path(__file__).parents[2]
SOURCE = Path(library.__file__).parent
HEADERS = Path(jaxlib.__file__).parent / "include"
UNIT = ("-mavx512f", "-mavx512bw", "-mavx512bf16", "-mamx-bf16", "-mamx-tile")

needs_gcc = pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++")

# Compiles the kernels with other options, and runs tests with them.
RUN = """
import sys
from zoo.native import library
library._OPTIONS = tuple(o for o in library._OPTIONS if o != "-O3") + ("-O1", "-g", *{options})
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *{tests}]))
"""
TESTS = [
    "tests/native/test_sizes.py",
    "tests/layers/tuned/test_convolution.py::test_lower_precisions_keep_their_type",
    "tests/layers/tuned/test_recurrence.py::test_many_inputs_and_steps",
    "tests/layers/tuned/test_linear.py::test_the_kernels_sum_over_many_rows",
    "tests/layers/tuned/test_linear.py::test_the_kernels_product_of_few_rows",
    "tests/layers/tuned/test_fusion.py",
]


@needs_gcc
@pytest.mark.parametrize("source", library.SOURCES)
def test_compiled_without_a_warning(source):
    options = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-isystem{HEADERS}"]
    if source == library._MATRICES:
        options += UNIT
    command = [
        "g++",
        *options,
        "-DZOO_NUMBER=float",
        "-DZOO_TYPE=F32",
        str(SOURCE / f"{source}.cc"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized command-line option" in done.stderr:
        pytest.skip("the compiler knows no matrix unit")
    assert done.returncode == 0, done.stderr


@pytest.mark.long
@needs_gcc
@pytest.mark.parametrize("sanitizer", ["address", "undefined"])
def test_sanitizers_find_nothing(tmp_path, sanitizer):
    """Reads and writes outside arrays, of XLA too, memory used after its end, overflow, shifts."""
    # The sanitizer looks for C++'s throw when it is loaded, so C++'s library comes with it.
    runtime = "libasan.so" if sanitizer == "address" else "libubsan.so"
    libraries = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in (runtime, "libstdc++.so")
    ]
    options = [f"-fsanitize={sanitizer}", f"-fno-sanitize-recover={sanitizer}"]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        # Python and jaxlib keep memory to their end; a call for too much memory returns null.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(options=options, tests=TESTS)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
    assert " passed" in done.stdout
