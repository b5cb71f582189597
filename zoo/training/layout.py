"""The layout of arrays: the mesh, the shardings, and the one place that compiles."""

import contextlib
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zoo.axes import DIVIDED, MESH
from zoo.errors import UserError
from zoo.training.placement import Placement

PyTree = Any
# The axes of a mesh over which the rows of a batch are divided.
ROWS = DIVIDED["batch"]


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    sequence: int = 1,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Makes a mesh with the axes ``data``, ``fsdp``, ``tensor`` and ``sequence``.

    The rows of a batch are divided over ``data`` and ``fsdp``, and parameters over ``fsdp`` and
    ``tensor``; see ``zoo.axes``. Neighbours along the last axes are neighbours among the devices.

    Args:
        data: the number of devices along the axis. For one of the axes it may be -1, which takes
            all devices that the others leave.
        fsdp: as ``data``.
        tensor: as ``data``.
        sequence: as ``data``.
        devices: the devices; None takes all of this program's.

    Raises:
        UserError: there are fewer devices than that, the other axes do not divide their number, or
            two of the axes are -1.
    """
    given = dict(zip(MESH, (data, fsdp, tensor, sequence), strict=True))
    shown = ", ".join(f"mesh.{name}={size}" for name, size in given.items() if size != 1)
    devices = jax.devices() if devices is None else devices
    unknown = [name for name, size in given.items() if size == -1]
    for name, size in given.items():
        if size != -1 and size < 1:
            raise UserError(f"mesh.{name}={size} must be -1 (all that are left) or at least 1")
    if len(unknown) > 1:
        raise UserError(
            f"{shown}: only one can be -1, which takes all devices that the others leave. Give "
            f"mesh.{unknown[0]}=1 or another number"
        )
    count = math.prod(size for size in given.values() if size != -1)
    if count > len(devices):
        raise UserError(
            f"{shown}, but there are only {len(devices)} devices: lower it, or give -1 to take all"
        )
    if unknown:
        if len(devices) % count:
            raise UserError(
                f"{shown}: {count} does not divide the {len(devices)} devices that mesh."
                f"{unknown[0]}=-1 would fill. Give numbers whose product divides {len(devices)}"
            )
        given[unknown[0]] = len(devices) // count
    sizes = tuple(given.values())
    chosen = np.array(devices[: math.prod(sizes)]).reshape(sizes)
    return Mesh(chosen, MESH, axis_types=(AxisType.Auto,) * len(MESH))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each array of a run lies. Init, step, restore, evaluation and inference share it.

    Attributes:
        mesh: the devices.
        placement: the place of each parameter by its path; see ``placement_of``. All that is kept
            for a parameter, under a path that ends in its own, lies where it does: the average and
            the optimizer's state. Every other array is replicated on every device.
    """

    mesh: Mesh
    placement: Placement = dataclasses.field(default_factory=dict)

    @property
    def devices(self) -> int:
        """Number of devices."""
        return int(self.mesh.devices.size)

    @property
    def row_parts(self) -> int:
        """Number of parts into which the rows of a batch are divided."""
        return math.prod(self.mesh.shape[axis] for axis in ROWS)

    @property
    def whole(self) -> NamedSharding:
        """The sharding of arrays that are replicated on every device, such as sums."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def rows(self) -> NamedSharding:
        """The sharding of a batch, whose rows are divided over ``data`` and ``fsdp``."""
        return NamedSharding(self.mesh, PartitionSpec(ROWS))

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

    def bytes_per_device(self, tree: PyTree) -> int:
        """Returns the bytes that each device holds of a state, or of parts of one."""
        return sum(
            math.prod(sharding.shard_shape(tuple(leaf.shape))) * leaf.dtype.itemsize
            for leaf, sharding in zip(
                jax.tree.leaves(tree), jax.tree.leaves(self.of(tree)), strict=True
            )
        )

    def _spec(self, path: Any, leaf: Any) -> PartitionSpec:
        names = [jax.tree_util.keystr((key,), simple=True) for key in path]
        for begin in range(len(names)):
            place = self.placement.get("/".join(names[begin:]))
            # Counters have a parameter's path and follow nothing.
            if place is not None and (spec := place.of(tuple(leaf.shape))) is not None:
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
    function: Callable,
    state: Any,
    batch: Any,
    layout: Layout,
    *,
    returns_state: bool,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Callable, float]:
    """Compiles ``function(state, batch)`` ahead of its first call.

    Args:
        function: a pure function.
        state: the first argument: arrays or their shapes.
        batch: the second argument, a global batch: arrays or their shapes.
        layout: where the arrays lie.
        returns_state: whether the function returns ``(state, others)``. The new state then reuses
            the memory of the old one. All other results are replicated on every device.
        options: options for the compiler besides ``compiler_options``.

    Returns:
        The compiled function, which refuses other shapes, and the seconds that compiling took.
    """
    start = time.perf_counter()
    shardings = layout.of(state)
    # Values between layers are kept divided by the axes of the mesh (``zoo.axes.constrain``).
    known: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if layout.devices > 1:
        known = jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh)
    jitted = jax.jit(
        function,
        in_shardings=(shardings, layout.rows),
        out_shardings=(shardings, layout.whole) if returns_state else layout.whole,
        donate_argnums=(0,) if returns_state else (),
    )
    with known:
        lowered = jitted.lower(layout.abstract(state), layout.abstract_batch(batch))
    known_options = compiler_options(layout.mesh.devices.flat[0].platform)
    compiled = lowered.compile({**known_options, **options})
    return compiled, time.perf_counter() - start
