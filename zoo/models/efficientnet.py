"""EfficientNet (Tan and Le 2019), as torchvision builds it."""

from __future__ import annotations

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from zoo.layers import BatchNorm, Conv, Linear, SqueezeExcitation
from zoo.layers.images import check_images

Image = Float[Array, "batch height width channels"]
Mask = Float[Array, " batch"]

# Table 1: expansion, kernel, stride, output channels and number of layers of each stage.
B0 = (
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4), (6, 3, 1, 320, 1),
)  # fmt: skip


class EfficientNet(nn.Module):
    """A stem, stages of inverted residual blocks, and a linear layer.

    With the defaults it is EfficientNet-B0. Verified against torchvision's ``efficientnet_b0``.

    Attributes:
        num_classes: number of outputs.
        stages: expansion, kernel, stride, output channels and number of layers of each stage.
        features: channels of the stem.
        last_features: channels of the last convolution.
        dropout_rate: share of the means of the last convolution that is set to zero in training.
        stochastic_depth_rate: share of rows for which a block is left out in training, towards the
            last one; it rises evenly from 0 at the first.
        channels: number of channels of the images.
    """

    num_classes: int = 1000
    stages: tuple[tuple[int, ...], ...] = B0
    features: int = 32
    last_features: int = 1280
    dropout_rate: float = 0.2
    stochastic_depth_rate: float = 0.2
    channels: int = 3

    @nn.compact
    def __call__(
        self, image: Image, *, train: bool = False, mask: Mask | None = None
    ) -> Float[Array, "batch num_classes"]:
        """Returns the logits of a batch of images.

        Args:
            image: images.
            train: whether to drop out, and to use and learn from the batch's statistics.
            mask: 1 for a row that counts in them; None: all do.

        Raises:
            UserError: the images do not fit (see ``check_images``).
        """
        check_images("EfficientNet", image, self.channels)

        def norm_silu(name: str, x: Image) -> Image:
            return jax.nn.silu(BatchNorm(name=name)(x, train=train, mask=mask))

        x = _conv(self.features, 3, strides=2, name="stem")(image)
        x = norm_silu("stem_bn", x)
        total, number = sum(stage[-1] for stage in self.stages), 0
        for stage, (expansion, kernel, strides, features, layers) in enumerate(self.stages):
            for layer in range(layers):
                x = MBConv(
                    expansion,
                    kernel,
                    strides if layer == 0 else 1,
                    features,
                    self.stochastic_depth_rate * number / total,
                    name=f"stage{stage + 1}_{layer}",
                )(x, train=train, mask=mask)
                number += 1
        x = _conv(self.last_features, 1, name="last")(x)
        x = norm_silu("last_bn", x).mean(axis=(1, 2))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return Linear(self.num_classes, name="classifier")(x)


class MBConv(nn.Module):
    """Wider, filtered channel by channel, and narrow again (Sandler et al. 2018).

    Attributes:
        expansion: channels in between, in multiples of the input's.
        kernel_size: side of the filters.
        strides: strides of the filters.
        features: channels of the result.
        stochastic_depth_rate: share of rows for which it is left out in training.
    """

    expansion: int
    kernel_size: int
    strides: int
    features: int
    stochastic_depth_rate: float

    @nn.compact
    def __call__(self, x: Image, *, train: bool, mask: Mask | None) -> Image:
        """Adds the result of the layers to the input, where the shapes are equal."""

        def norm(name: str, x: Image) -> Image:
            return BatchNorm(name=name)(x, train=train, mask=mask)

        inputs = x.shape[-1]
        expanded = self.expansion * inputs
        y = x
        if expanded != inputs:
            y = jax.nn.silu(norm("expand_bn", _conv(expanded, 1, name="expand")(y)))
        y = _conv(
            expanded, self.kernel_size, strides=self.strides, groups=expanded, name="depthwise"
        )(y)
        y = jax.nn.silu(norm("depthwise_bn", y))
        y = SqueezeExcitation(max(1, inputs // 4), activation=jax.nn.silu, name="squeeze")(y)
        y = norm("project_bn", _conv(self.features, 1, name="project")(y))
        if self.strides > 1 or inputs != self.features:
            return y
        # One draw for a whole row: stochastic depth (Huang et al. 2016).
        drop = nn.Dropout(
            self.stochastic_depth_rate, broadcast_dims=(1, 2, 3), deterministic=not train
        )
        return x + drop(y)


def _conv(features: int, size: int, *, strides: int = 1, groups: int = 1, name: str) -> Conv:
    return Conv(
        features,
        size,
        strides=strides,
        padding=size // 2,
        groups=groups,
        use_bias=False,
        initialization="he_normal_out",
        name=name,
    )
