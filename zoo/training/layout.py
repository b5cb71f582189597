"""The layout of arrays: the mesh, the shardings, and the one place that compiles."""

import dataclasses
import functools
import logging
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zoo.errors import UserError

PyTree = Any
# Patterns of paths, such as ``fc1/kernel``, with the mesh axis for each axis of the array.
Placement = tuple[tuple[str, PartitionSpec], ...]


def make_mesh(data: int = -1) -> Mesh:
    """Makes a mesh with the axis ``data``, over which the rows of a batch are divided.

    Args:
        data: the number of devices along the axis; -1 takes all devices.

    Raises:
        UserError: there are fewer devices than that.
    """
    devices = jax.devices()
    count = len(devices) if data == -1 else data
    if count > len(devices):
        raise UserError(
            f"mesh.data={data}, but there are only {len(devices)} devices: "
            "lower it, or give -1 to take all"
        )
    return Mesh(np.array(devices[:count]), ("data",), axis_types=(AxisType.Auto,))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each array of a run lies. Init, step, restore, evaluation and inference share it.

    Attributes:
        mesh: the devices.
        placement: the placement of parameters and of everything kept for each of them: the
            optimizer's state and the average. The first pattern that matches a path applies. An
            array that no pattern matches is replicated on every device.
    """

    mesh: Mesh
    placement: Placement = ()

    @property
    def devices(self) -> int:
        """Number of devices."""
        return int(self.mesh.devices.size)

    @property
    def whole(self) -> NamedSharding:
        """The sharding of arrays that are replicated on every device, such as sums."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def rows(self) -> NamedSharding:
        """The sharding of a batch, whose rows are divided over the devices."""
        return NamedSharding(self.mesh, PartitionSpec("data"))

    def of(self, tree: PyTree) -> PyTree:
        """Returns the sharding of each array of a state, or of parts of one."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: NamedSharding(self.mesh, self._spec(path, leaf)), tree
        )

    def abstract(self, tree: PyTree) -> PyTree:
        """Returns shapes, types and shardings of a state, or of parts of one."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            tree,
            self.of(tree),
        )

    def put(self, tree: PyTree) -> PyTree:
        """Puts a state, or parts of one, on the devices; every process gives the same values."""
        # In several processes jax puts values in a way that a guard takes for an accident.
        with jax.transfer_guard("allow"):
            put = jax.device_put(jax.tree.map(_numbers, tree), self.of(tree))
        return jax.tree.map(_like, put, tree)

    def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Puts this process's rows of the global batch on its devices."""
        with jax.transfer_guard("allow"):
            return {
                name: jax.make_array_from_process_local_data(self.rows, rows)
                for name, rows in batch.items()
            }

    def abstract_batch(self, batch: PyTree) -> PyTree:
        """Returns shapes, types and shardings of a global batch."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.rows), batch
        )

    def _spec(self, path: Any, leaf: Any) -> PartitionSpec:
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, spec in self.placement:
            # Counters and factored statistics have a parameter's path but other axes.
            if re.search(pattern, where) and len(spec) <= len(leaf.shape):
                return spec
        return PartitionSpec()


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(leaf: Any) -> Any:
    # jax can put numbers on the devices of other processes, but not keys.
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _like(put: jax.Array, leaf: Any) -> jax.Array:
    return jax.random.wrap_key_data(put, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else put


def compiler_options(platform: str | None = None) -> dict[str, str | bool]:
    """Returns the options for XLA that differ from its defaults on a platform; None: the current.

    On a CPU they choose the faster of XLA's two libraries for each operation. Its default for
    convolutions takes up to twice as long as the other (``docs/performance.md``). An option that
    the installed jaxlib does not know is left out with a warning.
    """
    if (platform or jax.default_backend()) != "cpu":
        return {}
    kinds = ("LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT", "LIBRARY_FUSION_TYPE_REDUCE")
    return _known({"xla_cpu_experimental_ynn_fusion_type": ",".join(kinds)})


def _known(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda: 0).lower().compile({name: value})
    except jax.errors.JaxRuntimeError as error:
        logging.getLogger(__name__).warning(
            "XLA of jaxlib %s does not take %s=%s, so programs may be slower: %s",
            jaxlib.__version__, name, value, error,
        )  # fmt: skip
        return False
    return True


def jit(function: Callable, **options: Any) -> Callable:
    """Applies ``jax.jit`` with ``compiler_options``."""
    return jax.jit(function, compiler_options=compiler_options(), **options)


def make_state(make: Callable[[], PyTree], layout: Layout) -> PyTree:
    """Makes a state under a layout, so that no device ever holds more than its own part.

    The function is compiled, on a CPU in half the usual time.
    """
    on_cpu = jax.default_backend() == "cpu"
    options: dict[str, Any] = _known({"xla_backend_optimization_level": 1}) if on_cpu else {}
    shardings = layout.of(jax.eval_shape(make))
    return jax.jit(make, out_shardings=shardings, compiler_options=options)()


def compile_step(
    function: Callable, state: Any, batch: Any, layout: Layout, *, returns_state: bool
) -> tuple[Callable, float]:
    """Compiles ``function(state, batch)`` ahead of its first call.

    Args:
        function: a pure function.
        state: the first argument: arrays or their shapes.
        batch: the second argument, a global batch: arrays or their shapes.
        layout: where the arrays lie.
        returns_state: whether the function returns ``(state, others)``. The new state then reuses
            the memory of the old one. All other results are replicated on every device.

    Returns:
        The compiled function, which refuses other shapes, and the seconds that compiling took.
    """
    start = time.perf_counter()
    shardings = layout.of(state)
    jitted = jax.jit(
        function,
        in_shardings=(shardings, layout.rows),
        out_shardings=(shardings, layout.whole) if returns_state else layout.whole,
        donate_argnums=(0,) if returns_state else (),
    )
    lowered = jitted.lower(layout.abstract(state), layout.abstract_batch(batch))
    compiled = lowered.compile(compiler_options(layout.mesh.devices.flat[0].platform))
    return compiled, time.perf_counter() - start
