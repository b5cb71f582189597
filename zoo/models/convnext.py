"""ConvNeXt (Liu et al. 2022), as torchvision builds it."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float

from zoo.errors import UserError
from zoo.layers import Conv, LayerNorm, Linear, activation
from zoo.layers.images import check_images

Image = Float[Array, "batch height width channels"]


class ConvNeXt(nn.Module):
    """Patches of 4x4, four stages of blocks between which the image is halved, a linear layer.

    Verified against torchvision's ``convnext_tiny``.

    Attributes:
        num_classes: number of outputs.
        stages: number of blocks in each stage.
        features: width of each stage.
        stochastic_depth_rate: share of rows for which the last block is left out in training; it
            rises evenly from 0 at the first block.
        layer_scale: first value of the scales of the blocks' results.
        channels: number of channels of the images.
    """

    num_classes: int = 1000
    stages: tuple[int, ...] = (3, 3, 9, 3)
    features: tuple[int, ...] = (96, 192, 384, 768)
    stochastic_depth_rate: float = 0.1
    layer_scale: float = 1e-6
    channels: int = 3

    @nn.compact
    def __call__(self, image: Image, *, train: bool = False) -> Float[Array, "batch num_classes"]:
        """Returns the logits of a batch of images.

        Raises:
            UserError: the images do not fit (see ``check_images``) or are too small, or attributes
                do not fit together.
        """
        check_images("ConvNeXt", image, self.channels)
        if len(self.stages) != len(self.features):
            raise UserError(
                f"ConvNeXt: stages={self.stages} must have as many entries as "
                f"features={self.features}"
            )
        x = _conv(self.features[0], 4, strides=4, name="stem")(image)
        x = LayerNorm(epsilon=1e-6, name="stem_norm")(x)
        last, number = max(sum(self.stages) - 1, 1), 0
        for stage, (blocks, features) in enumerate(zip(self.stages, self.features, strict=True)):
            if stage:
                x = LayerNorm(epsilon=1e-6, name=f"halve{stage}_norm")(x)
                x = _conv(features, 2, strides=2, name=f"halve{stage}")(x)
            for index in range(blocks):
                x = ConvNeXtBlock(
                    self.stochastic_depth_rate * number / last,
                    self.layer_scale,
                    name=f"stage{stage + 1}_{index}",
                )(x, train=train)
                number += 1
        x = LayerNorm(epsilon=1e-6, name="norm")(x.mean(axis=(1, 2)))
        return Linear(self.num_classes, initialization=0.02, name="head")(x)


class ConvNeXtBlock(nn.Module):
    """A 7x7 convolution of each channel, and two linear layers at each place (figure 4).

    Attributes:
        stochastic_depth_rate: share of rows for which it is left out in training.
        layer_scale: first value of the scales of the result.
    """

    stochastic_depth_rate: float
    layer_scale: float

    @nn.compact
    def __call__(self, x: Image, *, train: bool) -> Image:
        """Adds the result of the layers to the input."""
        features = x.shape[-1]
        y = _conv(features, 7, padding=3, groups=features, name="depthwise")(x)
        y = LayerNorm(epsilon=1e-6, name="norm")(y)
        y = activation("gelu")(Linear(4 * features, initialization=0.02, name="up")(y))
        y = Linear(features, initialization=0.02, name="down")(y)
        y = y * self.param("layer_scale", nn.initializers.constant(self.layer_scale), (features,))
        # One draw for a whole row: stochastic depth (Huang et al. 2016).
        drop = nn.Dropout(
            self.stochastic_depth_rate, broadcast_dims=(1, 2, 3), deterministic=not train
        )
        return x + drop(y)


def _conv(
    features: int, size: int, *, strides: int = 1, padding: int = 0, groups: int = 1, name: str
) -> Conv:
    return Conv(
        features,
        size,
        strides=strides,
        padding=padding,
        groups=groups,
        initialization=0.02,
        name=name,
    )
