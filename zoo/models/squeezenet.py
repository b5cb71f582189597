"""SqueezeNet 1.1 (Iandola et al. 2016), as torchvision builds it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.layers import Conv, max_pool
from zoo.layers.images import check_images

Image = Float[Array, "batch height width channels"]


class SqueezeNet(nn.Module):
    """A convolution, stages of fire modules, and the mean of a convolution to the classes.

    Verified against torchvision's ``squeezenet1_1``. As there the logits come from a ReLU, so none
    is below 0.

    Attributes:
        num_classes: number of outputs.
        stages: channels that each fire module squeezes to (s in the paper); a pooling halves the
            image before each stage.
        features: channels of the first convolution.
        dropout_rate: share of the last fire module's outputs that is set to zero in training.
        channels: number of channels of the images.
    """

    num_classes: int = 1000
    stages: tuple[tuple[int, ...], ...] = ((16, 16), (32, 32), (48, 48, 64, 64))
    features: int = 64
    dropout_rate: float = 0.5
    channels: int = 3

    @nn.compact
    def __call__(self, image: Image, *, train: bool = False) -> Float[Array, "batch num_classes"]:
        """Returns the logits of a batch of images.

        Args:
            image: images.
            train: whether to drop out.

        Raises:
            UserError: the images do not fit (see ``check_images``) or have a side of less than 17
                pixels.
        """
        check_images("SqueezeNet", image, self.channels)
        conv1 = Conv(self.features, 3, strides=2, initialization="he_uniform", name="conv1")
        x, number = jax.nn.relu(conv1(image)), 1
        for stage in self.stages:
            x = max_pool(x, 3, strides=2, ceil_mode=True)
            for squeeze in stage:
                number += 1
                x = Fire(squeeze, name=f"fire{number}")(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        x = Conv(self.num_classes, 1, initialization=0.01, name=f"conv{number + 1}")(x)
        return jax.nn.relu(x).mean(axis=(1, 2))


class Fire(nn.Module):
    """Few channels, seen by 1x1 and 3x3 filters, four times as many of each (figure 1).

    Attributes:
        squeeze: number of the few channels.
    """

    squeeze: int

    @nn.compact
    def __call__(self, x: Image) -> Image:
        """Returns ``8 * squeeze`` channels, those of the 1x1 filters first."""
        x = jax.nn.relu(_conv(self.squeeze, 1, name="squeeze")(x))
        expanded = [_conv(4 * self.squeeze, size, name=f"expand{size}x{size}") for size in (1, 3)]
        return jax.nn.relu(jnp.concatenate([conv(x) for conv in expanded], axis=-1))


def _conv(features: int, size: int, *, name: str) -> Conv:
    return Conv(features, size, padding=size // 2, initialization="he_uniform", name=name)
