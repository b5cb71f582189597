"""Quantiles: the loss by its definition and by what it is minimal at, and the scores by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.losses import pinball
from zoo.models import Forecaster
from zoo.tasks.forecasting import Forecasting


def test_the_pinball_loss_is_smallest_at_the_quantile():
    values = np.random.default_rng(0).gamma(2.0, size=4001)
    guesses = np.linspace(0, 8, 1601)
    for probability in (0.05, 0.5, 0.9):
        losses = pinball(jnp.asarray(guesses[:, None]), jnp.asarray(values), probability).mean(1)
        best = guesses[int(jnp.argmin(losses))]
        assert best == pytest.approx(np.quantile(values, probability), abs=0.01)


def test_scores_are_those_by_hand():
    task = Forecasting(Forecaster(horizon=4), horizons=(2, 4, 9))
    target = np.array([[1.0, 2.0, 3.0, 4.0]])
    quantiles = np.stack([target - 1, target + 0.5, target + 1], axis=-1)
    quantiles[0, 3] = [9, 10, 11]
    references = {"series": np.zeros((1, 3)), "target": target, "naive": target + 2}
    scores = task.score({"quantiles": quantiles}, references)
    assert scores["metrics"] == {
        "mase_2": 0.25, "coverage_2": 1.0, "mase_4": (3 * 0.5 + 6) / 8, "coverage_4": 0.75,
    }  # fmt: skip
    assert scores["bands"][0]["target"] == [1, 2, 3, 4]


def test_the_loss_is_the_mean_over_rows_horizon_and_quantiles():
    model = Forecaster(horizon=3, features=4)
    generator = np.random.default_rng(0)
    batch = {
        "series": generator.normal(size=(4, 9)), "phase": np.arange(4.0),
        "target": generator.normal(size=(4, 3)), "mask": np.array([1.0, 1, 1, 0]),
    }  # fmt: skip
    with jax.enable_x64(True):
        batch = {name: jnp.asarray(array) for name, array in batch.items()}
        task = Forecasting(model)
        params = task.init(jax.random.key(0), batch)["params"]
        total, (weight, _, sums) = task.loss(params, {}, batch, jax.random.key(1))
        made = model.apply({"params": params}, batch["series"], batch["phase"])
    errors = np.asarray(batch["target"])[..., None] - np.asarray(made)
    shares = np.array([0.05, 0.5, 0.95])
    expected = np.where(errors > 0, shares * errors, (shares - 1) * errors)
    assert weight == 3
    np.testing.assert_allclose(total, expected[:3].mean(axis=(1, 2)).sum(), rtol=1e-12)
    np.testing.assert_allclose(
        sums["absolute_error"][0], np.abs(errors[:3, :, 1]).mean(axis=1).sum(), rtol=1e-12
    )


def test_a_series_that_repeats_exactly_has_no_scaled_error():
    task = Forecasting(Forecaster(horizon=4), horizons=(2,))
    target = np.full((3, 4), 5.0)
    quantiles = np.stack([target - 1, target + 0.5, target + 1], axis=-1)
    scores = task.score(
        {"quantiles": quantiles}, {"series": target, "target": target, "naive": target}
    )
    assert scores["metrics"] == {"coverage_2": 1.0}
