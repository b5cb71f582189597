"""Building blocks that model families share."""

from zoo.layers.activations import activation
from zoo.layers.attention import MultiHeadAttention, dot_product_attention
from zoo.layers.convolution import Conv
from zoo.layers.embedding import Embed
from zoo.layers.linear import Linear
from zoo.layers.normalization import GroupNorm, LayerNorm
from zoo.layers.pooling import max_pool
from zoo.layers.positions import sinusoidal
from zoo.layers.recurrence import Recurrent

__all__ = [
    "Conv",
    "Embed",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "MultiHeadAttention",
    "Recurrent",
    "activation",
    "dot_product_attention",
    "max_pool",
    "sinusoidal",
]
