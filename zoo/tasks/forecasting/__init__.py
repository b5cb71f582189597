"""Forecasting: quantiles of the next values of a series."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from zoo import fields
from zoo.data.calendars import is_frequency
from zoo.data.series import load_series
from zoo.data.vocabulary import Vocabulary
from zoo.families import Family
from zoo.tasks.forecasting.asking import VERBS, Forecast, encode, forecast
from zoo.tasks.forecasting.page import draw, sections
from zoo.tasks.forecasting.task import Forecasting
from zoo.tasks.wing import Wing

__all__ = ["WING", "Forecast", "Forecasting", "forecast"]


def _check(config: ConfigDict, family: Family) -> None:
    if config.model.horizon not in (0, config.data.horizon):
        raise fields.ConfigError(
            f"model.horizon={config.model.horizon} must be data.horizon={config.data.horizon}, or "
            "0 to take it from there: the model makes as many values as it is taught"
        )


def _make(
    model: nn.Module,
    vocabularies: Mapping[str, Vocabulary],
    task: Mapping[str, Any],
    data: Mapping[str, Any],
) -> Forecasting:
    return Forecasting(model, **task)


WING = Wing(
    name="forecasting",
    kinds=("forecaster",),
    fields={},
    data_fields={
        "name": fields.Field("co2_weekly", fields.choice("co2_weekly", "series")),
        **fields.of(
            load_series,
            {
                "context": fields.at_least(2),
                "horizon": fields.at_least(1),
                "period": fields.at_least(1),
                "frequency": fields.Rule(
                    "empty, or a step that pandas knows, such as '15min', 'h', 'D', 'B' (business "
                    "days), 'W', 'MS' or 'ME' (months by their start or end), 'QS' or 'YS'",
                    is_frequency,
                ),
            },
        ),
    },
    metrics={"loss": "lowest", "absolute_error": "lowest"},
    load=load_series,
    make=_make,
    encode=encode,
    verbs=VERBS,
    check=_check,
    draw=draw,
    sections=sections,
)
