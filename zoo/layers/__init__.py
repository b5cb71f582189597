"""Building blocks that model families share."""

from zoo.layers.activations import activation
from zoo.layers.convolution import Conv
from zoo.layers.embedding import Embed
from zoo.layers.linear import Linear
from zoo.layers.pooling import max_pool
from zoo.layers.recurrence import Recurrent

__all__ = ["Conv", "Embed", "Linear", "Recurrent", "activation", "max_pool"]
