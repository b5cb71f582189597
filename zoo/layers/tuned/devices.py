"""Native functions on several devices: XLA does not know their axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array


def on_each_device(
    function: Callable[..., Any], rule: str, *, batch: str = "b"
) -> Callable[..., Any]:
    """Returns a function of whole arrays for which each device calls ``function`` with its rows.

    Args:
        function: a function of arrays.
        rule: names of the axes of arguments and results, such as ``b t f, f g -> b t g``.
        batch: the only axis along which arrays are divided. Arguments without it are whole. Either
            all results have it or none; without it they are sums over it.
    """
    arguments, results = ([axes.split() for axes in side.split(",")] for side in rule.split("->"))
    summed = batch not in results[0]
    divided = custom_partitioning(function)

    def shardings(mesh: Any, arrays: Sequence[list[str]], names: Any) -> list[NamedSharding]:
        return [
            NamedSharding(mesh, PartitionSpec(*(names if axis == batch else None for axis in axes)))
            for axes in arrays
        ]

    def partition(mesh: Any, given: Any, result: Any) -> Any:
        place = next(number for number, axes in enumerate(arguments) if batch in axes)
        spec = given[place].sharding.spec
        axis = arguments[place].index(batch)
        names = spec[axis] if axis < len(spec) else None

        def of_rows(*arrays: Any) -> Any:
            computed = function(*arrays)
            return jax.lax.psum(computed, names) if summed and names else computed

        made = shardings(mesh, results, names)
        return (
            mesh,
            of_rows,
            jax.tree.unflatten(jax.tree.structure(result), made),
            tuple(shardings(mesh, arguments, names)),
        )

    def typed(*arrays: Any) -> Any:
        # Inside a ``shard_map``, what a native function computes differs along the axes that its
        # arguments do, which JAX does not know.
        return jax.tree.map(lambda array: _vary(array, _axes(*arrays)), divided(*arrays))

    names = dict.fromkeys(axis for axes in (*arguments, *results) for axis in axes)
    divided.def_partition(
        partition,
        sharding_rule=rule,
        reduction_factors=(batch,) if summed else (),
        need_replication_factors=tuple(name for name in names if name != batch),
    )
    return typed


def vary_alike(*arrays: Array) -> list[Array]:
    """Returns arrays that, inside a ``shard_map``, all differ along the axes that any of them does.

    XLA's operations do so by themselves: the gradient of what was the same on all devices is then a
    sum over them.
    """
    return [_vary(array, _axes(*arrays)) for array in arrays]


def _axes(*arrays: Array) -> frozenset[str]:
    return frozenset().union(*(jax.typeof(array).manual_axis_type.varying for array in arrays))


def _vary(array: Array, axes: frozenset[str]) -> Array:
    missing = tuple(sorted(axes - jax.typeof(array).manual_axis_type.varying))
    return jax.lax.pcast(array, missing, to="varying") if missing else array
