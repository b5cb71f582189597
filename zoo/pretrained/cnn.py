"""Weights of ``zoo.models.CNN`` from and to the seed's PyTorch class."""

from zoo.pretrained.tables import Entry, Table
from zoo.pretrained.transforms import CONV_OIHW, LINEAR_TRANSPOSED, flatten_chw


def cnn_table(image_size: int = 48, pool_size: int = 2) -> Table:
    """The table of ``zoo.models.CNN`` and the seed's PyTorch class.

    Args:
        image_size: side of the images, on which the order of ``fc1``'s inputs depends.
        pool_size: the model's.
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
