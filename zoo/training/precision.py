"""The arithmetic in which a step is computed. Parameters always stay in float32."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# XLA's names for the precision of float32 products. On a CPU all three compute in float32.
_MATMUL_PRECISION = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}


def matmul_precision(precision: str) -> contextlib.AbstractContextManager[None]:
    """Sets the precision of products in everything that is traced inside.

    Differentiation belongs inside too: a layer's own rule for the gradient is traced after the
    function itself.

    Raises:
        ValueError: ``precision`` is not one of the three.
    """
    if precision not in _MATMUL_PRECISION:
        raise ValueError(f"precision={precision!r} must be one of {', '.join(_MATMUL_PRECISION)}")
    return jax.default_matmul_precision(_MATMUL_PRECISION[precision])


def with_precision(function: Callable, precision: str) -> Callable:
    """Wraps ``function(params, model_state, batch, key)`` to compute in ``precision``.

    ``float32`` computes products at the highest setting, even if the hardware has a faster and less
    precise one. ``tf32`` is XLA's middle setting: TensorFloat-32 on a GPU and three bfloat16 passes
    on a TPU. ``bfloat16`` computes with a bfloat16 copy of the floating-point parameters and
    inputs; gradients have the type of the parameters. Only float32 arrays are cast, so float64
    tests see float64.

    Raises:
        ValueError: ``precision`` is not one of the three.
    """
    matmul_precision(precision)  # a wrong name is found before anything is traced

    def computed(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
        if precision == "bfloat16":
            params, batch = _to_bfloat16(params), _to_bfloat16(batch)
        with matmul_precision(precision):
            return function(params, model_state, batch, key)

    return computed


def _to_bfloat16(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, tree)
