"""Counts the arithmetic operations of a function from its jaxpr."""

import math
from collections.abc import Callable
from typing import Any

import jax


def count_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Returns the number of operations in products and convolutions, two for each multiply-add.

    Elementwise operations are not counted, as in the figures that papers give. A loop counts as
    often as it runs, a ``while`` loop once, and a conditional as its largest branch. The choice
    between native functions and XLA's operations counts as a conditional.

    Args:
        function: a pure function.
        *arguments: arrays or their shapes.
    """
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of(jaxpr: Any) -> int:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * math.prod(kernel) // outputs
    inner = [_of(jaxpr) for jaxpr in _jaxprs(params)]
    if name in ("cond", "with_native"):
        return max(inner, default=0)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _jaxprs(params: dict[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns"):
                found.append(item)
            elif hasattr(item, "jaxpr") and hasattr(item.jaxpr, "eqns"):
                found.append(item.jaxpr)
    return found
