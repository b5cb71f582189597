"""Quantiles of the next values of a series, all at once (Wen et al. 2017, with a GRU)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.errors import UserError
from zoo.layers import Linear, Recurrent


class Forecaster(nn.Module):
    """A recurrence over what has been, and a linear layer to quantiles of what comes.

    The series is seen as differences from its last value in units of its own variation, and
    forecasts are given so: level and scale of a series do not matter.

    Attributes:
        horizon: values that are forecast.
        quantiles: their probabilities, increasing; the middle one is the forecast.
        period: values in a season, whose phase the model sees.
        cell: ``rnn`` (tanh), ``rnn_relu``, ``lstm`` or ``gru``.
        features: width of the state.
        num_layers: number of recurrent layers.
        dropout_rate: share of each layer's outputs that is set to zero in training.
    """

    horizon: int = 52
    quantiles: tuple[float, ...] = (0.05, 0.5, 0.95)
    period: float = 52.18
    cell: str = "gru"
    features: int = 64
    num_layers: int = 1
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(
        self,
        series: Float[Array, "batch time"],
        phase: Float[Array, " batch"],
        *,
        train: bool = False,
    ) -> Float[Array, "batch horizon quantiles"]:
        """Returns quantiles of the values after the series, in its own units.

        Args:
            series: what has been, at least two values.
            phase: number of the last value in the series; values ``period`` apart are alike.
            train: whether to drop out.

        Raises:
            UserError: the series are not 2-D, or are too short.
        """
        if series.ndim != 2 or series.shape[1] < 2:
            raise UserError(
                f"Forecaster: the series {series.shape} must be [batch, time], each at least 2 long"
            )
        last = series[:, -1:]
        spread = series.std(axis=1, keepdims=True) + 1e-6
        x = (series - last) / spread
        places = jnp.arange(-series.shape[1] + 1, 1)
        angle = 2 * jnp.pi * (phase[:, None] + places) / self.period
        inputs = jnp.stack([x, jnp.sin(angle), jnp.cos(angle)], axis=-1)
        outputs, _ = Recurrent(
            self.cell, self.features, self.num_layers, dropout_rate=self.dropout_rate, name="layers"
        )(inputs, train=train)
        state = nn.Dropout(self.dropout_rate, deterministic=not train)(outputs[:, -1])
        shape = (-1, self.horizon, len(self.quantiles))
        made = Linear(self.horizon * len(self.quantiles), name="output")(state).reshape(shape)
        # Quantiles do not cross: each is above the one before by something positive.
        steps = jnp.concatenate([made[..., :1], jax.nn.softplus(made[..., 1:])], axis=-1)
        return last[..., None] + spread[..., None] * jnp.cumsum(steps, axis=-1)
