"""The one train step that every family shares."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from zoo.training.precision import matmul_precision, with_precision
from zoo.training.state import TrainState

Batch = dict[str, Array]
# name -> (sum, weight): what a mean is made of, so that parts can be added up in any order.
Sums = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
# (params, model_state, batch, key) -> (loss_sum, (weight, model_state, metrics))
LossFn = Callable[
    [Any, Any, Batch, PRNGKeyArray],
    tuple[Float[Array, ""], tuple[Float[Array, ""], Any, Sums]],
]


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    ema: float | None = None,
    precision: str = "float32",
) -> Callable[[TrainState, Batch], tuple[TrainState, Sums]]:
    """Returns the pure function ``train_step(state, batch) -> (state, metrics)``.

    The loss is a *sum* over what counts, with its weight. The step adds up both and divides once,
    so that masked tokens, padded rows, accumulation and sharding all give the same gradient.
    Nothing here knows the number of devices.

    Args:
        loss_fn: takes ``params, model_state, batch, key``; returns
            ``(loss_sum, (weight, model_state, metrics))``, metrics being ``{name: (sum, weight)}``.
        optimizer: one optax transformation, the learning rate included.
        accumulate: number of equal parts in which the batch is computed, one after the other, to
            save memory. Divides the batch size.
        ema: largest decay of the moving average of the parameters, in (0, 1); None: no average.
        precision: ``float32``, ``tf32`` or ``bfloat16``; see ``with_precision``.

    Returns:
        The step. Its metrics are those of ``loss_fn`` with ``loss`` and ``gradient_norm`` (global,
        before clipping) added. If loss or gradient is not finite, it leaves the state as it was
        but for ``healthy=False``, and gives metrics of weight zero.

    Raises:
        ValueError: ``accumulate`` or ``ema`` is out of range, or ``precision`` is unknown.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate={accumulate} must be at least 1")
    if ema is not None and not 0 < ema < 1:
        raise ValueError(f"ema={ema} must lie between 0 and 1")
    differentiated = jax.value_and_grad(with_precision(loss_fn, precision), has_aux=True)

    def value_and_grad(*arguments: Any) -> Any:
        with matmul_precision(precision):
            return differentiated(*arguments)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        key = jax.random.fold_in(state.key, state.step)
        if accumulate == 1:
            (loss_sum, (weight, model_state, metrics)), gradient_sum = value_and_grad(
                state.params, state.model_state, batch, key
            )
        else:
            loss_sum, weight, model_state, metrics, gradient_sum = _accumulated(
                value_and_grad, state, batch, key, accumulate
            )
        # A batch in which nothing counts has gradient zero, not 0/0.
        divisor = jnp.where(weight > 0, weight, 1)

        # Divided where it is read: a branch would get the quotients as arrays of their own.
        def gradient() -> Any:
            return jax.tree.map(lambda g: g / divisor.astype(g.dtype), gradient_sum)

        def update(state: TrainState) -> TrainState:
            updates, opt_state = optimizer.update(gradient(), state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            ema_params = state.ema_params
            if ema is not None:
                decay = ema_decay(state.step, ema)
                ema_params = jax.tree.map(
                    lambda average, p: average + (1 - decay).astype(p.dtype) * (p - average),
                    state.ema_params,
                    params,
                )
            updated = dataclasses.replace(
                state,
                step=state.step + 1,
                params=params,
                model_state=_cast_like(model_state, state.model_state),
                opt_state=opt_state,
                ema_params=ema_params,
            )
            chex.assert_trees_all_equal_shapes_and_dtypes(updated, state)
            return updated

        gradient_norm = optax.tree.norm(gradient())
        healthy = state.healthy & jnp.isfinite(loss_sum) & jnp.isfinite(gradient_norm)
        state = dataclasses.replace(_update_if(healthy, update, state), healthy=healthy)
        metrics = metrics | {
            "loss": (loss_sum, weight),
            "gradient_norm": (gradient_norm, jnp.ones_like(gradient_norm)),
        }
        return state, _where(healthy, metrics, jax.tree.map(jnp.zeros_like, metrics))

    return train_step


def ema_decay(step: Int[Array, ""], decay: float) -> Float[Array, ""]:
    """Decay of the moving average at a 0-based step: ``min(decay, (1 + t) / (10 + t))``.

    The warm-up of TensorFlow's ``ExponentialMovingAverage(num_updates=t)`` and of diffusers'
    ``EMAModel``: early averages follow the parameters instead of the initialisation.
    """
    t = step.astype(jnp.float32)
    return jnp.minimum(decay, (1 + t) / (10 + t))


def add_sums(a: Sums, b: Sums) -> Sums:
    """Adds two sets of sums with the same names."""
    return jax.tree.map(jnp.add, a, b)


def _accumulated(
    value_and_grad: Callable, state: TrainState, batch: Batch, key: PRNGKeyArray, parts: int
) -> tuple[Array, Array, Any, Sums, Any]:
    # Part i takes every parts-th row: rows of one device stay on that device.
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def part(carry: tuple[Any, Any], indexed: tuple[Array, Batch]) -> tuple[Any, Any]:
        model_state, gradient_sum = carry
        index, rows = indexed
        (loss_sum, (weight, model_state, metrics)), gradient = value_and_grad(
            state.params, model_state, rows, jax.random.fold_in(key, index)
        )
        model_state = _cast_like(model_state, state.model_state)
        gradient_sum = jax.tree.map(jnp.add, gradient_sum, gradient)
        return (model_state, gradient_sum), (loss_sum, weight, metrics)

    zero = jax.tree.map(jnp.zeros_like, state.params)
    (model_state, gradient_sum), per_part = jax.lax.scan(
        part, (state.model_state, zero), (jnp.arange(parts), split)
    )
    loss_sum, weight, metrics = jax.tree.map(lambda x: x.sum(axis=0), per_part)
    return loss_sum, weight, model_state, metrics, gradient_sum


def _cast_like(new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: n.astype(o.dtype), new, old)


def _update_if(
    condition: Array, update: Callable[[TrainState], TrainState], state: TrainState
) -> TrainState:
    def branch(condition: Array, state: TrainState) -> TrainState:
        return jax.lax.cond(condition, update, lambda state: state, state)

    def choice(condition: Array, state: TrainState) -> TrainState:
        return _where(condition, update(state), state)

    # XLA's loops on a CPU cannot choose in place: it would copy the state, and compute each part of
    # it for each array that is made of it.
    return jax.lax.platform_dependent(condition, state, cpu=branch, default=choice)


def _where(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
