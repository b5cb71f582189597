"""What all tests share."""

import atexit
import gc
import json
import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from offline.network import cut_off

# Before JAX starts: eight virtual devices, so that sharding is tested on any machine; and a
# compiler that optimises least and does without MLIR, which takes a fifth of the time: a test runs
# what it compiles once or twice.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
    ]
)

# The tests are of the kernels, where one does not say otherwise.
os.environ.setdefault("ZOO_KERNELS", "on")

# Each of xdist's workers has one core: threads of PyTorch and numpy that wait for each other
# there, while the other worker computes, take most of the time of a convolution.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# Nothing here needs the network, so nothing may try: neither the tests nor what they start.
cut_off()
OFFLINE = str(Path(__file__).parent / "offline")
if OFFLINE not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [OFFLINE, *filter(None, [os.environ.get("PYTHONPATH")])]
    )

# What several tests compile, such as a family's step, is compiled once a session; xdist's workers
# inherit the folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="zoo-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)

# A worker comes to hold millions of objects, of traced programs above all, and to look through them
# again and again takes a twentieth of the time.
gc.set_threshold(50_000, 20, 50)

# The same examples every time, and no limit on time: other work on the machine fails no test.
settings.register_profile("zoo", derandomize=True, deadline=None)
settings.load_profile("zoo")


def pytest_addoption(parser):
    parser.addoption(
        "--status",
        metavar="FILE",
        help="write the largest differences from the references to FILE, by model (without -n)",
    )


def pytest_sessionfinish(session):
    path = session.config.getoption("--status")
    if not path:
        return
    import parity

    status = {}
    for one in parity.MEASURED:
        known = status.setdefault(
            one["model"],
            {"reference": one["reference"], "arrays": 0, "training": False}
            | {kind: {"float64": 0.0, "float32": 0.0} for kind in ("forward", "gradient")},
        )
        known["arrays"] += one["arrays"]
        known["training"] |= one["train"]
        for kind in ("forward", "gradient"):
            for dtype, share in one[kind].items():
                known[kind][dtype] = max(known[kind][dtype], share)
    text = json.dumps(dict(sorted(status.items())), indent=2) + "\n"
    Path(path).write_text(text, encoding="utf-8")
