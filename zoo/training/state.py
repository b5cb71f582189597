"""The state of training: everything that determines the next number."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PRNGKeyArray

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state that a train step reads and writes; a pytree.

    Attributes:
        step: the number of updates made so far.
        params: the trainable parameters.
        model_state: the model's other collections, such as running statistics; may be empty.
        opt_state: the state of the optax transformation.
        ema_params: the exponential moving average of ``params``, or None if it is off.
        key: the run's random key; step ``k`` uses ``fold_in(key, k)``.
        healthy: False once a loss or a gradient was not finite. From then on a step changes
            nothing, so that the last good state is still there when the host notices.
    """

    step: Int[Array, ""]
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    ema_params: PyTree | None
    key: PRNGKeyArray
    healthy: Bool[Array, ""]

    @property
    def eval_params(self) -> PyTree:
        """The parameters to evaluate and to ship: the average if there is one."""
        return self.params if self.ema_params is None else self.ema_params


def create_state(
    variables: dict[str, PyTree],
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    *,
    ema: bool = False,
) -> TrainState:
    """Makes the state of step 0.

    Args:
        variables: linen variables; ``params`` and any further collections.
        optimizer: the transformation whose state is kept.
        key: the run's random key.
        ema: whether to keep an average of the parameters. A train step that is made with a decay,
            ``make_train_step(..., ema=0.999)``, updates it.
    """
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state={name: value for name, value in variables.items() if name != "params"},
        opt_state=optimizer.init(params),
        # Copy the parameters, since donating one buffer under two names is an error.
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
        key=key,
        healthy=jnp.ones((), jnp.bool_),
    )
