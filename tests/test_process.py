"""Settings of the process; each test that makes them has a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoo import process

FAULTS = """
import resource, sys
from zoo import process
if sys.argv[1] == "tuned":
    assert process.tune_allocator() == "allocator keeps memory"
def use():
    block = bytearray(int(sys.argv[2]) << 20)
    for place in range(0, len(block), 4096):
        block[place] = 1
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(kind, mebibytes):
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, kind, str(mebibytes)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own settings")
@pytest.mark.parametrize("mebibytes", [64, 2500])
def test_memory_that_is_freed_is_not_paid_for_again(mebibytes):
    pages = 5 * (mebibytes << 20) // 4096
    assert faults("plain", mebibytes) > 0.9 * pages
    assert faults("tuned", mebibytes) < 0.1 * pages


@pytest.mark.parametrize(("system", "libc"), [("darwin", ""), ("linux", "musl")])
def test_without_glibc_nothing_is_changed(monkeypatch, system, libc):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("platform.libc_ver", lambda: (libc, ""))
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("no library is called"))
    assert process.tune_allocator() == "allocator as it is (no glibc)"


def test_compiled_programs_are_kept_apart_by_processor_and_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = set()
    for model in ("AMD EPYC", "Intel(R) Xeon(R) CPU @ 2.20GHz"):
        for version in ("0.10.2", "0.10.3"):
            monkeypatch.setattr(process, "processor_model", lambda model=model: model)
            monkeypatch.setattr("importlib.metadata.version", lambda name, v=version: v)
            folders.add(process.compilation_cache_folder())
    assert len(folders) == 4
    assert tmp_path / "jax-model-zoo/jaxlib-0.10.2-amd-epyc" in folders
    assert all(folder.parent == tmp_path / "jax-model-zoo" for folder in folders)


STARTED = """
import jax
from zoo import building
from zoo.config import base
config = base(model="cnn", task="classification")
config.platform = "cpu"
config.process_settings = {on}
print(building.start_jax(config))
print(jax.config.values["jax_compilation_cache_dir"])
print(jax.config.values["jax_compilation_cache_max_size"])
jax.jit(lambda x: x @ x + jax.numpy.linalg.inv(x))(jax.numpy.eye(64)).block_until_ready()
"""


def started(tmp_path, *, on, **environment):
    # A program that is compiled as quickly as in the tests is not worth keeping.
    inherited = {
        n: v for n, v in os.environ.items() if not n.startswith("JAX_") and n != "XLA_FLAGS"
    }
    done = subprocess.run(
        [sys.executable, "-c", STARTED.format(on=on)], capture_output=True, text=True, check=True,
        env=inherited | {"XDG_CACHE_HOME": str(tmp_path)} | environment,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_a_run_keeps_compiled_programs_within_bounds(tmp_path):
    said, folder, size = started(tmp_path, on=True)
    assert said.endswith(f"compiled programs kept in {folder}")
    assert folder.startswith(str(tmp_path / "jax-model-zoo"))
    assert 0 < int(size) < 10 << 30


def test_a_program_whose_writing_was_cut_off_is_compiled_again(tmp_path):
    _, folder, _ = started(tmp_path, on=True)
    # Smaller programs are there as well if the machine was busy.
    (whole,) = Path(folder).glob("jit__lambda-*-cache")
    others = set(Path(folder).glob("*-cache")) - {whole}
    cut_off = b"cut off"
    whole.write_bytes(cut_off)
    whole.with_name(whole.name.removesuffix("-cache") + "-atime").unlink()
    before = {file: file.read_bytes() for file in others}
    started(tmp_path, on=True)
    assert whole.read_bytes() != cut_off
    assert {file: file.read_bytes() for file in others} == before


def test_a_folder_that_the_user_chose_stays(tmp_path):
    own = str(tmp_path / "own")
    said, folder, _ = started(tmp_path, on=True, JAX_COMPILATION_CACHE_DIR=own)
    assert said.endswith(f"compiled programs kept in {own}")
    assert folder == own
    assert not (tmp_path / "jax-model-zoo").exists()


def test_no_folder_is_no_error(tmp_path):
    (tmp_path / "jax-model-zoo").write_text("a file is in the way")
    said, folder, _ = started(tmp_path, on=True)
    assert "compiled programs not kept" in said
    assert folder == "None"


def test_one_field_leaves_the_process_as_it_is(tmp_path):
    said, folder, _ = started(tmp_path, on=False)
    assert (said, folder) == ("process as it is", "None")
    assert not list(tmp_path.iterdir())


OPENED = """
import sys
import zoo
from zoo import building, inference, process
from zoo.config import base
process.tune_allocator = lambda: print("allocator") or "tuned"
building.with_data = lambda config: sys.exit("data")
config = base(model="cnn", task="classification")
config.data.name = "mnist_subset"
config.model.num_classes = 10
inference.load = lambda workdir, checkpoint: building.start_jax(config)
{call}
"""


@pytest.mark.parametrize("call", ["zoo.run(config, 'run')", "inference.evaluate('run', config)"])
def test_allocator_is_set_before_a_reader_of_data_has_threads(tmp_path, call):
    done = subprocess.run(
        [sys.executable, "-c", OPENED.format(call=call)], capture_output=True, text=True,
        cwd=tmp_path,
    )  # fmt: skip
    # Once before the first thread, and once to say so.
    expected = 2 if call.startswith("zoo.run") else 1
    assert (done.stdout, done.stderr) == (expected * "allocator\n", "data\n")


FIRST_THREAD = """
import threading
import zoo
from zoo import process
from zoo.config import base
tune, start, done = process.tune_allocator, threading.Thread.start, []
process.tune_allocator = lambda: done.append("allocator") or tune()
threading.Thread.start = lambda thread: done.append("thread") or start(thread)
config = base(model="cnn", task="classification")
config.data.name = "mnist_subset"
config.model.num_classes = 10
config.model.features = (4, 4, 4)
config.data.image_size = 8
config.train.steps = 1
zoo.run(config, "run")
print(done[0])
"""


def test_allocator_is_set_before_the_first_thread(tmp_path):
    # Found in training: the thread that compiles kernels came first and had a heap of its own, to
    # which XLA's threads were given, and 10,000 pages a step were handed out anew.
    done = subprocess.run(
        [sys.executable, "-c", FIRST_THREAD], capture_output=True, text=True, cwd=tmp_path,
        check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "allocator"
