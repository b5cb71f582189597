"""Residual networks (He et al. 2016), as torchvision builds them.

The stride of a bottleneck is in its 3x3 convolution.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from zoo.errors import UserError
from zoo.layers import BatchNorm, Conv, Linear, max_pool
from zoo.layers.images import check_images

Image = Float[Array, "batch height width channels"]
Norm = Callable[[str, Image], Image]
STEMS = ("imagenet", "cifar")


class ResNet(nn.Module):
    """A stem, four stages of residual blocks, the mean over the image, and a linear layer.

    Verified against torchvision's ``resnet18`` to ``resnet152``.

    Attributes:
        num_classes: number of outputs.
        stages: number of blocks in each stage; the image is halved between stages.
        features: width of the first stage; it doubles from stage to stage.
        bottleneck: blocks of 1x1, 3x3 and 1x1 convolutions, four times as wide outside, instead
            of two 3x3 convolutions.
        stem: ``imagenet``: a 7x7 convolution and a pooling, each of stride 2; ``cifar``: a 3x3
            convolution, for small images (section 4.2).
        channels: number of channels of the images.
    """

    num_classes: int = 1000
    stages: tuple[int, ...] = (2, 2, 2, 2)
    features: int = 64
    bottleneck: bool = False
    stem: str = "imagenet"
    channels: int = 3

    @nn.compact
    def __call__(
        self,
        image: Image,
        *,
        train: bool = False,
        mask: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch num_classes"]:
        """Returns the logits of a batch of images.

        Args:
            image: images.
            train: whether normalisations use and learn from the batch's statistics.
            mask: 1 for a row that counts in them; None: all do.

        Raises:
            UserError: the images do not fit (see ``check_images``), or ``stem`` is unknown.
        """
        check_images("ResNet", image, self.channels)
        if self.stem not in STEMS:
            raise UserError(f"ResNet: stem={self.stem!r} must be 'imagenet' or 'cifar'")

        def norm(name: str, x: Image) -> Image:
            return BatchNorm(name=name)(x, train=train, mask=mask)

        if self.stem == "imagenet":
            x = _conv(self.features, 7, strides=2, name="conv1")(image)
            x = max_pool(jax.nn.relu(norm("bn1", x)), 3, strides=2, padding=1)
        else:
            x = _conv(self.features, 3, name="conv1")(image)
            x = jax.nn.relu(norm("bn1", x))
        block = Bottleneck if self.bottleneck else BasicBlock
        for stage, blocks in enumerate(self.stages):
            for index in range(blocks):
                x = block(
                    features=self.features * 2**stage,
                    strides=2 if stage and not index else 1,
                    name=f"layer{stage + 1}_{index}",
                )(x, train=train, mask=mask)
        return Linear(self.num_classes, name="fc")(x.mean(axis=(1, 2)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside the shortcut (figure 5, left).

    Attributes:
        features: number of output channels.
        strides: strides of the first convolution.
    """

    features: int
    strides: int

    @nn.compact
    def __call__(self, x: Image, *, train: bool, mask: Float[Array, " batch"] | None) -> Image:
        """Adds the result of the convolutions to the shortcut."""

        def norm(name: str, x: Image) -> Image:
            return BatchNorm(name=name)(x, train=train, mask=mask)

        y = jax.nn.relu(norm("bn1", _conv(self.features, 3, self.strides, name="conv1")(x)))
        y = norm("bn2", _conv(self.features, 3, name="conv2")(y))
        return jax.nn.relu(y + _shortcut(x, self.features, self.strides, norm))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside the shortcut (figure 5, right).

    Attributes:
        features: channels of the middle; a quarter of the output channels.
        strides: strides of the 3x3 convolution.
    """

    features: int
    strides: int

    @nn.compact
    def __call__(self, x: Image, *, train: bool, mask: Float[Array, " batch"] | None) -> Image:
        """Adds the result of the convolutions to the shortcut."""

        def norm(name: str, x: Image) -> Image:
            return BatchNorm(name=name)(x, train=train, mask=mask)

        y = jax.nn.relu(norm("bn1", _conv(self.features, 1, name="conv1")(x)))
        y = jax.nn.relu(norm("bn2", _conv(self.features, 3, self.strides, name="conv2")(y)))
        y = norm("bn3", _conv(4 * self.features, 1, name="conv3")(y))
        return jax.nn.relu(y + _shortcut(x, 4 * self.features, self.strides, norm))


def _conv(features: int, kernel_size: int, strides: int = 1, *, name: str) -> Conv:
    return Conv(
        features,
        kernel_size,
        strides=strides,
        padding=kernel_size // 2,
        use_bias=False,
        initialization="he_normal_out",
        name=name,
    )


def _shortcut(x: Image, features: int, strides: int, norm: Norm) -> Image:
    if strides == 1 and x.shape[-1] == features:
        return x
    return norm("downsample_bn", _conv(features, 1, strides, name="downsample")(x))
