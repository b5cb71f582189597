"""Building blocks that model families share."""

from zoo.layers.activations import activation
from zoo.layers.attention import MultiHeadAttention, dot_product_attention
from zoo.layers.convolution import Conv
from zoo.layers.embedding import Embed
from zoo.layers.linear import Linear, apply_each
from zoo.layers.normalization import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from zoo.layers.pooling import adaptive_mean_pool, max_pool, mean_pool
from zoo.layers.positions import sinusoidal
from zoo.layers.recurrence import Recurrent
from zoo.layers.squeeze import SqueezeExcitation
from zoo.layers.tuned.fusion import fuse

__all__ = [
    "BatchNorm",
    "Conv",
    "Embed",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "MultiHeadAttention",
    "RMSNorm",
    "Recurrent",
    "SqueezeExcitation",
    "activation",
    "adaptive_mean_pool",
    "apply_each",
    "dot_product_attention",
    "fuse",
    "max_pool",
    "mean_pool",
    "sinusoidal",
]
