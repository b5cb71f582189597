"""The vision transformer (Dosovitskiy et al. 2021), as torchvision builds it."""

from __future__ import annotations

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from zoo.axes import constrain
from zoo.errors import UserError
from zoo.layers import Conv, LayerNorm, Linear
from zoo.layers.images import check_images
from zoo.layers.rematerialization import rematerialized
from zoo.models.transformer_blocks import RESIDUAL, Block


class ViT(nn.Module):
    """Patches of an image as the words of a transformer, with a class token in front.

    Verified against torchvision's ``vit_b_16`` and ``vit_l_16``.

    Attributes:
        num_classes: number of outputs.
        image_size: side of the images, on which the positions depend.
        patch_size: side of a patch; divides ``image_size``.
        features: width.
        num_layers: number of layers.
        num_heads: number of attention heads; divides ``features``.
        feedforward_features: width of the hidden layers.
        dropout_rate: share of the sums' parts that is set to zero in training.
        channels: number of channels of the images.
        remat: what the gradient keeps of the blocks; see ``zoo.layers.rematerialization``.
    """

    num_classes: int = 1000
    image_size: int = 224
    patch_size: int = 16
    features: int = 768
    num_layers: int = 12
    num_heads: int = 12
    feedforward_features: int = 3072
    dropout_rate: float = 0.0
    channels: int = 3
    remat: str = "none"

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch num_classes"]:
        """Returns the logits of a batch of images.

        Raises:
            UserError: the images do not fit (see ``check_images``), their sides are not
                ``image_size``, or ``patch_size`` does not divide it.
        """
        check_images("ViT", image, self.channels)
        side = self.image_size
        if image.shape[1:3] != (side, side):
            raise UserError(
                f"ViT: the images {image.shape} must have height and width image_size={side}"
            )
        if side % self.patch_size:
            raise UserError(f"ViT: patch_size={self.patch_size} must divide image_size={side}")
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        patches = Conv(
            self.features,
            self.patch_size,
            strides=self.patch_size,
            initialization="lecun_normal",
            name="patches",
        )(image)
        x = patches.reshape(image.shape[0], -1, self.features)
        token = self.param("class_token", nn.initializers.zeros, (1, 1, self.features))
        x = jax.numpy.concatenate([token.repeat(x.shape[0], axis=0).astype(x.dtype), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = constrain(dropout(x), *RESIDUAL)
        call = rematerialized(lambda block, x: block(x, train=train)[0], self.remat)
        for layer in range(self.num_layers):
            block = Block(
                self.num_heads,
                self.feedforward_features,
                "gelu",
                initialization="xavier_uniform",
                attention_out_initialization="pytorch",
                feedforward_out_initialization="xavier_uniform",
                dropout_rate=self.dropout_rate,
                drop_hidden=True,
                epsilon=1e-6,
                name=f"block_{layer}",
            )
            x = call(block, x)
        x = LayerNorm(epsilon=1e-6, name="ln")(x)
        return Linear(self.num_classes, initialization=0.0, name="head")(x[:, 0])
