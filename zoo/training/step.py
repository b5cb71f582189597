"""The train step that all families share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from zoo.errors import UserError
from zoo.training.precision import matmul_precision, with_precision
from zoo.training.state import TrainState

Batch = dict[str, Array]
# name -> (sum, weight): the two parts of a mean, so that batches can be added up in any order.
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
    so that masked tokens, padded rows, accumulation and sharding all give the same gradient. The
    code does not depend on the number of devices.

    Args:
        loss_fn: takes ``params, model_state, batch, key`` and returns
            ``(loss_sum, (weight, model_state, metrics))``. The metrics are
            ``{name: (sum, weight)}``.
        optimizer: one optax transformation, which includes the learning rate.
        accumulate: the number of equal parts in which the batch is computed, one after another, to
            save memory. It must divide the number of rows.
        ema: the largest decay of the moving average of the parameters, in (0, 1), for a state made
            by ``create_state(..., ema=True)``. None: no average, for a state without one.
        precision: ``float32``, ``tf32`` or ``bfloat16``; see ``with_precision``.

    Returns:
        The step. Its metrics are those of ``loss_fn`` together with ``loss`` and ``gradient_norm``
        (global, before clipping). If the loss or the gradient is not finite, the step leaves the
        state as it was except for ``healthy=False``, and returns metrics of weight zero.

    Raises:
        ValueError: ``accumulate`` or ``ema`` is out of range, or ``precision`` is unknown.
        UserError: the step raises it when it is traced, if ``accumulate`` does not divide the rows
            or only one of step and state has a moving average.
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
        _check_average(ema, state)
        key = jax.random.fold_in(state.key, state.step)
        if accumulate == 1:
            (loss_sum, (weight, model_state, metrics)), gradient_sum = value_and_grad(
                state.params, state.model_state, batch, key
            )
        else:
            loss_sum, weight, model_state, metrics, gradient_sum = _accumulated(
                value_and_grad, state, batch, key, accumulate
            )
        # If nothing in a batch counts, its gradient is zero, not 0/0.
        divisor = jnp.where(weight > 0, weight, 1)

        # Divide where the gradient is used: a branch would get the quotients as separate arrays.
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

    TensorFlow's ``ExponentialMovingAverage(num_updates=t)`` and diffusers' ``EMAModel`` use the
    same warm-up. With it, early averages follow the parameters instead of the initialisation.
    """
    t = step.astype(jnp.float32)
    return jnp.minimum(decay, (1 + t) / (10 + t))


def add_sums(a: Sums, b: Sums) -> Sums:
    """Adds two sets of sums with the same names."""
    return jax.tree.map(jnp.add, a, b)


def _check_average(ema: float | None, state: TrainState) -> None:
    if ema is not None and state.ema_params is None:
        raise UserError(
            f"the train step has ema={ema}, but the state keeps no average of the parameters: make "
            "it with create_state(..., ema=True)"
        )
    if ema is None and state.ema_params is not None:
        raise UserError(
            "the state keeps an average of the parameters, but the train step has ema=None and "
            "would never update it: give make_train_step the decay, such as ema=0.999, or make the "
            "state with create_state(..., ema=False)"
        )


def _accumulated(
    value_and_grad: Callable, state: TrainState, batch: Batch, key: PRNGKeyArray, parts: int
) -> tuple[Array, Array, Any, Sums, Any]:
    for path, leaf in jax.tree.leaves_with_path(batch):
        if leaf.ndim == 0 or leaf.shape[0] % parts:
            raise UserError(
                f"accumulate={parts} must divide the rows of the batch, but "
                f"batch{jax.tree_util.keystr(path)} has the shape {leaf.shape}: change the batch "
                "size or accumulate"
            )
    # Part i takes every parts-th row, so that the rows of a device stay on that device.
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

    # XLA's loops on a CPU cannot select in place. They would copy the state, and compute each part
    # of it anew for each array that is made from it.
    return jax.lax.platform_dependent(condition, state, cpu=branch, default=choice)


def _where(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
