"""``zoo.models.SpeechRecognizer``, and its weights in the layout of a PyTorch class."""

import jax.numpy as jnp

from zoo import fields
from zoo.families import family
from zoo.families.rnn import rnn_table
from zoo.models.speech import SpeechRecognizer

FAMILY = family.Family(
    module=SpeechRecognizer,
    kind="ctc",
    sizes={"speech_recognizer": {}},
    rules={
        "num_symbols": family.FROM_DATA,
        "sample_rate": fields.at_least(1),
        "window": fields.Rule(
            "an even number, at least 2", lambda value: value >= 2 and value % 2 == 0
        ),
        "hop": fields.at_least(1),
        "num_mels": fields.at_least(1),
        "stack": fields.at_least(1),
        "features": fields.at_least(1),
        "num_layers": fields.at_least(1),
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
)
