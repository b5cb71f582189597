"""``zoo.models.Forecaster``, and its weights in the layout of a PyTorch class."""

import jax.numpy as jnp

from zoo import fields
from zoo.families import family
from zoo.families.rnn import rnn_table
from zoo.models.forecaster import Forecaster

FAMILY = family.Family(
    module=Forecaster,
    kind="forecaster",
    sizes={"forecaster": {}},
    rules={
        "horizon": family.FROM_DATA,
        "quantiles": fields.Rule(
            "an odd number of probabilities between 0 and 1, increasing",
            lambda value: (
                len(value) % 2 == 1
                and 0 < value[0] <= value[-1] < 1
                and list(value) == sorted(set(value))
            ),
        ),
        "period": fields.ABOVE_ZERO,
        "cell": family.CELL,
        "features": fields.at_least(1),
        "num_layers": family.DEPTH,
        "dropout_rate": fields.FRACTION,
    },
    example=lambda module: {
        "series": jnp.zeros((1, 2 * module.horizon)),
        "phase": jnp.zeros(1),
    },
    weights={"pytorch": lambda module, params: rnn_table(module.num_layers, embeds=False)},
)
