"""``zoo.models.CNN``, and its weights in the layout of the seed's PyTorch class."""

import math
from collections.abc import Mapping
from typing import Any

from zoo import fields
from zoo.families import family
from zoo.models.cnn import CNN
from zoo.weights.tables import Entry, Table
from zoo.weights.transforms import CONV_OIHW, LINEAR_TRANSPOSED, flatten_chw


def cnn_table(image_size: int = 48, pool_size: int = 2) -> Table:
    """Returns the table of ``zoo.models.CNN`` for the seed's PyTorch class.

    Args:
        image_size: side of the images; the order of the inputs of ``fc1`` depends on it.
        pool_size: see the model.
    """
    side = image_size // pool_size // pool_size
    layers = dict.fromkeys(("conv1", "conv2", "conv3"), CONV_OIHW)
    layers |= {"fc1": flatten_chw(side, side), "fc2": LINEAR_TRANSPOSED}
    return [
        entry
        for layer, transform in layers.items()
        for entry in (
            Entry(f"{layer}.weight", f"{layer}/kernel", transform),
            Entry(f"{layer}.bias", f"{layer}/bias"),
        )
    ]


def _table(module: CNN, params: family.Params) -> Table:
    # The module does not know the side of its images, but it follows from the inputs of fc1.
    rows = params["fc1"]["kernel"].shape[0]
    side = math.isqrt(rows // module.features[-1]) * module.pool_size**2
    return cnn_table(side, module.pool_size)


def _check(attributes: Mapping[str, Any]) -> None:
    if attributes["output_activation"] != "identity":
        raise fields.ConfigError(
            f"model.output_activation={attributes['output_activation']!r}: the loss takes logits; "
            "train with 'identity'"
        )


FAMILY = family.Family(
    module=CNN,
    kind="image_classifier",
    sizes={"cnn": {}},
    rules={
        **family.IMAGES,
        "features": fields.Rule(
            "three numbers, each at least 1", lambda value: len(value) == 3 and min(value) >= 1
        ),
        "kernel_size": fields.at_least(1),
        "padding": fields.at_least(0),
        "pool_size": fields.at_least(1),
        "hidden_features": fields.at_least(1),
        "dropout_rate": fields.FRACTION,
        "activation": family.ACTIVATION,
        "output_activation": family.ACTIVATION,
        "initialization": family.INITIALIZATION,
    },
    example=family.image(48),
    weights={"pytorch": _table},
    preprocessing=family.presets("cnn"),
    check=_check,
)
