"""``zoo.models.SpeechRecognizer``, and its weights in the layout of a PyTorch class."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from zoo import fields
from zoo.families import family
from zoo.families.rnn import rnn_table
from zoo.models.speech import SpeechRecognizer


def _check(attributes: Mapping[str, Any]) -> None:
    frequencies = attributes["window"] // 2 + 1
    if attributes["num_mels"] > frequencies:
        raise fields.ConfigError(
            f"model.num_mels={attributes['num_mels']} must be at most {frequencies}, the number of "
            f"frequencies of model.window={attributes['window']}"
        )


FAMILY = family.Family(
    module=SpeechRecognizer,
    kind="ctc",
    sizes={"speech_recognizer": {}},
    rules={
        "num_symbols": family.FROM_DATA,
        "sample_rate": fields.at_least(1),
        # The transform of a window is a matrix of its size squared.
        "window": fields.Rule(
            "an even number between 2 and 8192", lambda value: 2 <= value <= 8192 and value % 2 == 0
        ),
        "hop": fields.at_least(1),
        "num_mels": fields.at_least(1),
        "stack": fields.at_least(1),
        "features": fields.at_least(1),
        "num_layers": family.DEPTH,
        "dropout_rate": fields.FRACTION,
    },
    example=lambda module: {
        "samples": jnp.zeros((1, module.sample_rate)),
        "lengths": jnp.full(1, module.sample_rate, jnp.int32),
    },
    weights={
        "pytorch": lambda module, params: rnn_table(
            module.num_layers, embeds=False, bidirectional=True
        )
    },
    axes=family.EMBEDDING_AXES,
    check=_check,
)
