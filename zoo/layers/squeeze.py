"""Squeeze and excitation (Hu et al. 2018)."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from zoo.layers.convolution import Conv

Image = Float[Array, "batch height width channels"]


class SqueezeExcitation(nn.Module):
    """Scales each channel by what two layers find in the means of all, as torchvision's.

    Attributes:
        squeeze_features: width of the hidden layer.
        activation: between the layers (delta in equation 3).
        gate: of the scales (sigma in equation 3).
    """

    squeeze_features: int
    activation: Callable[[Array], Array] = jax.nn.relu
    gate: Callable[[Array], Array] = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: Image) -> Image:
        """Scales the channels."""
        means = x.mean(axis=(1, 2), keepdims=True)
        conv = functools.partial(Conv, kernel_size=1, initialization="he_normal_out")
        hidden = self.activation(conv(self.squeeze_features, name="fc1")(means))
        return x * self.gate(conv(x.shape[-1], name="fc2")(hidden))
