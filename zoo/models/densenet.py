"""DenseNet (Huang et al. 2017), as torchvision builds it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.layers import BatchNorm, Conv, Linear, max_pool, mean_pool
from zoo.layers.images import check_images

Image = Float[Array, "batch height width channels"]


class DenseNet(nn.Module):
    """Blocks in which each layer sees the results of all before, halved between blocks.

    Verified against torchvision's ``densenet121``.

    Attributes:
        num_classes: number of outputs.
        blocks: number of layers in each block.
        growth: channels that a layer adds (k in the paper).
        features: channels of the stem.
        bottleneck: width of a layer's 1x1 convolution, in multiples of ``growth``.
        channels: number of channels of the images.
    """

    num_classes: int = 1000
    blocks: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    features: int = 64
    bottleneck: int = 4
    channels: int = 3

    @nn.compact
    def __call__(
        self, image: Image, *, train: bool = False, mask: Float[Array, " batch"] | None = None
    ) -> Float[Array, "batch num_classes"]:
        """Returns the logits of a batch of images.

        Args:
            image: images.
            train: whether normalisations use and learn from the batch's statistics.
            mask: 1 for a row that counts in them; None: all do.

        Raises:
            UserError: the images do not fit (see ``check_images``) or are too small.
        """
        check_images("DenseNet", image, self.channels)

        def norm_relu(name: str, x: Image) -> Image:
            return jax.nn.relu(BatchNorm(name=name)(x, train=train, mask=mask))

        x = _conv(self.features, 7, strides=2, name="conv0")(image)
        x = max_pool(norm_relu("norm0", x), 3, strides=2, padding=1)
        for block, layers in enumerate(self.blocks, start=1):
            for layer in range(1, layers + 1):
                name = f"block{block}_{layer}"
                y = norm_relu(f"{name}_norm1", x)
                y = _conv(self.bottleneck * self.growth, 1, name=f"{name}_conv1")(y)
                y = norm_relu(f"{name}_norm2", y)
                y = _conv(self.growth, 3, name=f"{name}_conv2")(y)
                x = jnp.concatenate([x, y], axis=-1)
            if block < len(self.blocks):
                x = norm_relu(f"transition{block}_norm", x)
                x = _conv(x.shape[-1] // 2, 1, name=f"transition{block}_conv")(x)
                x = mean_pool(x, 2)
        x = norm_relu("norm5", x).mean(axis=(1, 2))
        return Linear(self.num_classes, name="classifier")(x)


def _conv(features: int, size: int, *, strides: int = 1, name: str) -> Conv:
    return Conv(
        features,
        size,
        strides=strides,
        padding=size // 2,
        use_bias=False,
        initialization="he_normal",
        name=name,
    )
