"""Building blocks that model families share."""

from zoo.layers.activations import activation
from zoo.layers.convolution import Conv
from zoo.layers.linear import Linear
from zoo.layers.pooling import max_pool

__all__ = ["Conv", "Linear", "activation", "max_pool"]
