"""Text to image: a transformer reads the caption, a UNet removes the noise."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float, Int

from zoo.errors import UserError
from zoo.layers import Linear
from zoo.layers.images import check_images
from zoo.models.transformer import TransformerEncoder
from zoo.models.unet import Image, UNet


class TextToImage(nn.Module):
    """``UNet`` with a ``TransformerEncoder`` as its context, trained together.

    The layout of latent diffusion (Rombach et al. 2022), on pixels, or on patches of them
    (Hoogeboom et al. 2023, section 3). The places of the image attend to the words, and
    every block knows the mean of all words (Podell et al. 2024, section 2.1). A caption of padding
    alone stands for no caption, which classifier-free guidance needs.

    Attributes:
        vocab_size: number of words, padding (0) among them.
        text_features: width of the words' vectors.
        text_layers: number of layers of the text encoder.
        text_heads: number of its attention heads; divides ``text_features``.
        max_length: largest number of words of a caption.
        channels: number of channels of the images.
        patch_size: side of the squares of pixels that the UNet sees as one; divides the images'
            sides.
        features: see ``UNet``.
        attention: see ``UNet``.
        layers_per_level: see ``UNet``.
        num_heads: see ``UNet``.
        norm_groups: see ``UNet``.
        dropout_rate: dropout rate of both networks.
        scale_shift: see ``UNet``.
    """

    vocab_size: int = 256
    text_features: int = 64
    text_layers: int = 2
    text_heads: int = 4
    max_length: int = 16
    channels: int = 3
    patch_size: int = 1
    features: tuple[int, ...] = (32, 64, 96)
    attention: tuple[bool, ...] = (False, True, True)
    layers_per_level: int = 1
    num_heads: int = 4
    norm_groups: int = 8
    dropout_rate: float = 0.0
    scale_shift: bool = False

    def setup(self) -> None:
        """Makes both networks."""
        self.text = TransformerEncoder(
            self.vocab_size,
            features=self.text_features,
            num_heads=self.text_heads,
            num_layers=self.text_layers,
            feedforward_features=4 * self.text_features,
            dropout_rate=self.dropout_rate,
            activation="gelu",
            norm_first=True,
            positions="learned",
            max_length=self.max_length,
        )
        self.caption = Linear(4 * self.features[0])
        self.unet = UNet(
            channels=self.channels * self.patch_size**2,
            features=self.features,
            attention=self.attention,
            layers_per_level=self.layers_per_level,
            num_heads=self.num_heads,
            norm_groups=self.norm_groups,
            dropout_rate=self.dropout_rate,
            scale_shift=self.scale_shift,
        )

    def __call__(
        self,
        image: Image,
        step: Int[Array, " batch"] | Float[Array, " batch"],
        tokens: Int[Array, "batch words"],
        *,
        train: bool = False,
    ) -> Image:
        """Returns what the network predicts for noisy images.

        Args:
            image: noisy images.
            step: step of the noise schedule.
            tokens: captions, padded with 0.
            train: whether to drop out.

        Raises:
            UserError: a shape or an attribute does not fit.
        """
        check_images("TextToImage", image, self.channels)
        if any(side % self.patch_size for side in image.shape[1:3]):
            raise UserError(
                f"TextToImage: height and width of the image {image.shape} must be multiples of "
                f"patch_size={self.patch_size}"
            )
        # The first place is seen even of an empty caption: attention to nothing has no answer.
        mask = (tokens != 0).at[:, 0].set(True)
        context = self.text(tokens, mask, train=train)
        counts = mask[..., None].astype(context.dtype)
        mean = (context * counts).sum(axis=1) / counts.sum(axis=1)
        predicted = self.unet(
            to_patches(image, self.patch_size),
            step,
            context,
            mask,
            vector=self.caption(mean),
            train=train,
        )
        return from_patches(predicted, self.patch_size)


def to_patches(
    image: Float[Array, "batch height width channels"], size: int
) -> Float[Array, "batch rows columns patch_channels"]:
    """Makes one pixel of ``size * size`` times the channels out of each square of pixels."""
    batch, height, width, channels = image.shape
    squares = image.reshape(batch, height // size, size, width // size, size, channels)
    return squares.swapaxes(2, 3).reshape(
        batch, height // size, width // size, size * size * channels
    )


def from_patches(
    patches: Float[Array, "batch rows columns patch_channels"], size: int
) -> Float[Array, "batch height width channels"]:
    """The inverse of ``to_patches``."""
    batch, rows, columns, features = patches.shape
    squares = patches.reshape(batch, rows, columns, size, size, features // size**2)
    return squares.swapaxes(2, 3).reshape(batch, rows * size, columns * size, features // size**2)
