"""Squeeze and excitation (Hu et al. 2018)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from zoo.layers.convolution import Conv

Image = Float[Array, "batch height width channels"]


class SqueezeExcitation(nn.Module):
    """Scales each channel by a number that two layers compute from the means of all channels.

    As ``torchvision.ops.SqueezeExcitation``.

    Attributes:
        squeeze_features: width of the hidden layer.
        activation: function between the layers (delta in equation 3).
        gate: function that makes the scales (sigma in equation 3).
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
