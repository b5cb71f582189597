"""``zoo.models.TextClassifier``, and its weights in the layout of a PyTorch class."""

import jax.numpy as jnp

from zoo import fields
from zoo.families import family
from zoo.families.rnn import rnn_table
from zoo.models.text_classifier import TextClassifier

FAMILY = family.Family(
    module=TextClassifier,
    kind="text_classifier",
    sizes={"text_classifier": {}},
    rules={
        "num_classes": family.FROM_DATA,
        "vocab_size": family.FROM_DATA,
        "cell": family.CELL,
        "embed_features": fields.at_least(1),
        "features": fields.at_least(1),
        "num_layers": family.DEPTH,
        "dropout_rate": fields.FRACTION,
    },
    example=lambda module: {
        "tokens": jnp.zeros((1, 1), jnp.int32),
        "lengths": jnp.ones(1, jnp.int32),
    },
    weights={"pytorch": lambda module, params: rnn_table(module.num_layers, bidirectional=True)},
    axes=family.EMBEDDING_AXES,
)
