"""Forecasting: quantiles of the next values of a series."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from zoo.losses import pinball
from zoo.tasks.task import Batch, Sums, SumsTask, call_options

BANDS = 4


@dataclasses.dataclass(frozen=True)
class Forecasting(SumsTask):
    """Joins a model of quantiles with the pinball loss, scaled errors and the band's coverage.

    A batch has ``series: Float[Array, "batch time"]``, ``phase: Float[Array, "batch"]`` and
    ``mask: Float[Array, "batch"]``. It also has ``target`` and ``naive: Float[Array, "batch
    horizon"]``, which are the true values and those of the season before.

    Attributes:
        model: a linen module such as ``zoo.models.Forecaster``.
        horizons: the numbers of values after which errors are reported.
    """

    model: nn.Module
    horizons: tuple[int, ...] = (4, 13, 52)

    references: ClassVar[tuple[str, ...]] = ("series", "target", "naive")
    """The arrays of a batch that ``score`` needs."""

    def init(self, key: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        """Returns the model's variables for inputs shaped like those of ``batch``."""
        return dict(self.model.init(key, batch["series"][:1], batch["phase"][:1]))

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

        ``mase_H`` is the mean absolute error divided by that of the naive forecast for the same
        values, which repeats the season before (Hyndman and Koehler 2006). ``coverage_H`` is the
        share of the values that lie between the outermost quantiles. ``bands`` are some forecasts
        to draw, including the first and the last. Where the naive forecast makes no error, as for a
        series that repeats exactly, ``mase_H`` is not defined and is left out.
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
                if of_naive:
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

    def sums(self, params: Any, batch: Batch, key: PRNGKeyArray | None = None) -> Sums:
        """Returns ``loss`` and ``absolute_error`` of the middle quantile as (sum, weight)."""
        made: Any = self.model.apply(
            {"params": params}, batch["series"], batch["phase"], **call_options(key)
        )
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
