"""Quantiles of what comes next in a series."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from zoo.losses import pinball

Batch = dict[str, Array]
BANDS = 4


@dataclasses.dataclass(frozen=True)
class Forecasting:
    """Joins a model of quantiles with the pinball loss, scaled errors and the band's coverage.

    A batch has ``series: Float[Array, "batch time"]``, ``phase: Float[Array, "batch"]``, ``target``
    and ``naive: Float[Array, "batch horizon"]``, what came and what the season before had, and
    ``mask: Float[Array, "batch"]``.

    Attributes:
        model: a linen module as ``zoo.models.Forecaster``.
        horizons: numbers of values after which errors are reported.
    """

    model: nn.Module
    horizons: tuple[int, ...] = (4, 13, 52)

    references: ClassVar[tuple[str, ...]] = ("series", "target", "naive")
    """Arrays of a batch that ``score`` needs."""
    draws: ClassVar[bool] = False
    """Whether ``predict`` returns images to look at."""

    def init(self, key: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        """Returns the model's variables for inputs shaped like those of ``batch``."""
        return dict(self.model.init(key, batch["series"][:1], batch["phase"][:1]))

    def loss(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Any, dict[str, Any]]]:
        """Returns the summed training loss, and the number of rows, and metrics."""
        sums = self._sums(params, batch, train=True, rngs={"dropout": key})
        loss_sum, weight = sums.pop("loss")
        return loss_sum, (weight, model_state, sums)

    def evaluate(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        """Returns ``loss`` and ``absolute_error`` of the middle quantile."""
        return self._sums(params, batch)

    def predict(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Returns ``quantiles: Float[Array, "batch horizon quantiles"]``."""
        made = self.model.apply({"params": params}, batch["series"], batch["phase"])
        return {"quantiles": jnp.asarray(made)}

    def score(
        self, outputs: dict[str, np.ndarray], references: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        """Returns ``mase_H`` and ``coverage_H`` of the first ``H`` values, for each horizon.

        The mean absolute error divided by that of the naive forecast for the same values, the one
        of the season before (Hyndman and Koehler 2006); and the share of the values between the
        outermost quantiles. ``bands`` are some forecasts to draw, the first and the last among
        them.
        """
        made, target, naive = outputs["quantiles"], references["target"], references["naive"]
        middle = made[..., made.shape[-1] // 2]
        metrics: dict[str, float] = {}
        for horizon in self.horizons:
            if horizon <= target.shape[1]:
                error, of_naive = (
                    float(np.abs(forecast - target)[:, :horizon].mean())
                    for forecast in (middle, naive)
                )
                inside = (made[..., 0] <= target) & (target <= made[..., -1])
                metrics[f"mase_{horizon}"] = error / of_naive
                metrics[f"coverage_{horizon}"] = float(inside[:, :horizon].mean())
        chosen = np.linspace(0, len(made) - 1, min(BANDS, len(made))).round().astype(int)
        return {
            "metrics": metrics,
            "bands": [
                {
                    "series": references["series"][i].tolist(),
                    "target": target[i].tolist(),
                    "naive": naive[i].tolist(),
                    "quantiles": made[i].tolist(),
                }
                for i in chosen
            ],
        }

    def _sums(
        self, params: Any, batch: Batch, **options: Any
    ) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        made: Any = self.model.apply({"params": params}, batch["series"], batch["phase"], **options)
        made = made.astype(jnp.promote_types(made.dtype, jnp.float32))
        model: Any = self.model
        probabilities = jnp.asarray(model.quantiles, made.dtype)
        losses = pinball(made, batch["target"][..., None], probabilities).mean(axis=(1, 2))
        middle = made[..., made.shape[-1] // 2]
        errors = jnp.abs(middle - batch["target"]).mean(axis=1)
        mask = batch["mask"].astype(made.dtype)
        weight = mask.sum()
        return {
            "loss": ((losses * mask).sum(), weight),
            "absolute_error": ((errors * mask).sum(), weight),
        }
