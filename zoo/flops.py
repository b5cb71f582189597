"""Counts the arithmetic operations of a function from its jaxpr."""

import math
from collections.abc import Callable
from typing import Any

import jax


def count_flops(function: Callable[..., Any], *arguments: Any, platform: str = "") -> int:
    """Returns the number of operations in products and convolutions, two for each multiply-add.

    Elementwise operations are not counted, as in the figures that papers give. A loop counts as
    often as it runs, a ``while`` loop once, and a conditional as its largest branch. A Pallas
    kernel counts what it says of itself, or else its body for each point of its grid.

    Args:
        function: a pure function.
        *arguments: arrays or their shapes.
        platform: the platform, such as ``tpu``, whose forms are counted where a function has
            several; empty: the largest form. Native functions are forms for ``cpu``.
    """
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr, platform)


def _of(jaxpr: Any, platform: str) -> int:
    return sum(_of_equation(equation, platform) for equation in jaxpr.eqns)


def _of_equation(equation: Any, platform: str) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * math.prod(kernel) // outputs
    if name == "pallas_call" and params.get("cost_estimate"):
        return int(params["cost_estimate"].flops)
    if name == "with_kernel" and params["flops"]:
        return int(params["flops"])
    inner = [_of(jaxpr, platform) for jaxpr in _jaxprs(params)]
    if name in ("cond", "with_native"):
        return _of_branch(inner, params, platform)
    return sum(inner) * _runs(name, params)


def _of_branch(branches: list[int], params: dict[str, Any], platform: str) -> int:
    """Returns the operations of the branch for a platform, or of the largest."""
    if platform and "native" in params:
        native, plain = (_of(params[form].jaxpr, platform) for form in ("native", "xlas"))
        return native if platform == "cpu" else plain
    platforms = params.get("branches_platforms")
    if platform and platforms:
        for branch, named in zip(branches, platforms, strict=True):
            if named is None or platform in named:
                return branch
    return max(branches, default=0)


def _runs(name: str, params: dict[str, Any]) -> int:
    if name == "scan":
        return int(params["length"])
    if name == "pallas_call":
        return math.prod(size for size in params["grid_mapping"].grid if isinstance(size, int))
    if name == "shard_map":
        # Its body is what one device does.
        return int(params["mesh"].size)
    return 1


def _jaxprs(params: dict[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns"):
                found.append(item)
            elif hasattr(item, "jaxpr") and hasattr(item.jaxpr, "eqns"):
                found.append(item.jaxpr)
    return found
