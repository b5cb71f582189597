"""Where arrays live: the mesh, the shardings, and the one place that compiles."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zoo.errors import UserError


def make_mesh(data: int = -1) -> Mesh:
    """Makes a mesh with the axis ``data``, over which the rows of a batch are divided.

    Args:
        data: number of devices along the axis; -1 takes all there are.

    Raises:
        UserError: there are fewer devices than asked for.
    """
    devices = jax.devices()
    count = len(devices) if data == -1 else data
    if count > len(devices):
        raise UserError(
            f"mesh.data={data}, but there are only {len(devices)} devices: "
            "lower it, or give -1 to take all"
        )
    return Mesh(np.array(devices[:count]), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole: parameters, optimizer state, sums."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: rows divided along the mesh's axis ``data``."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's rows of the global batch on its devices."""
    sharding = by_rows(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def put_replicated(tree: Any, mesh: Mesh) -> Any:
    """Puts host values on every device."""
    return jax.device_put(tree, replicated(mesh))


def abstract(tree: Any, sharding: NamedSharding) -> Any:
    """Shapes and types of a tree of arrays, as they lie under ``sharding``."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def compiler_options(platform: str | None = None) -> dict[str, str | bool]:
    """Returns what XLA is told beyond its defaults on a platform; None: the one in use.

    On a CPU: of its two libraries the faster one for each operation. Its default for convolutions
    takes up to twice as long as the other (``docs/performance.md``).
    """
    if (platform or jax.default_backend()) != "cpu":
        return {}
    kinds = ("LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT", "LIBRARY_FUSION_TYPE_REDUCE")
    return {"xla_cpu_experimental_ynn_fusion_type": ",".join(kinds)}


def jit(function: Callable, **options: Any) -> Callable:
    """``jax.jit`` with ``compiler_options``."""
    return jax.jit(function, compiler_options=compiler_options(), **options)


def run_once(function: Callable) -> Any:
    """Compiles a function, on a CPU in half of the usual time, and calls it."""
    on_cpu = jax.default_backend() == "cpu"
    options: dict[str, Any] = {"xla_backend_optimization_level": 1} if on_cpu else {}
    return jax.jit(function, compiler_options=options)()


def compile_step(
    function: Callable, carry: Any, batch: Any, mesh: Mesh, *, donate: bool
) -> tuple[Callable, float]:
    """Compiles ``function(carry, batch)`` ahead of its first call.

    ``carry`` is replicated, the batch divided by rows; what comes out is replicated.

    Args:
        function: a pure function.
        carry: arrays or their shapes: the first argument.
        batch: arrays or their shapes: the second argument, of the global batch.
        mesh: the devices.
        donate: whether the carry's memory is reused for the result.

    Returns:
        The compiled function, which refuses any other shape, and the seconds that it took.
    """
    start = time.perf_counter()
    jitted = jax.jit(
        function,
        in_shardings=(replicated(mesh), by_rows(mesh)),
        out_shardings=replicated(mesh),
        donate_argnums=(0,) if donate else (),
    )
    lowered = jitted.lower(abstract(carry, replicated(mesh)), abstract(batch, by_rows(mesh)))
    compiled = lowered.compile(compiler_options(mesh.devices.flat[0].platform))
    return compiled, time.perf_counter() - start
