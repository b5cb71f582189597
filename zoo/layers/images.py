"""What a model that reads images expects of them."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.errors import UserError


def check_images(
    model: str, images: Float[Array, "batch height width channels"], channels: int
) -> None:
    """Refuses images that a model cannot read; only their shape and type are looked at.

    Args:
        model: name of the model, for the message.
        images: what the model was called with.
        channels: number of channels that the model reads.

    Raises:
        UserError: the images are not 4-D, have another number of channels or look like
            [batch, channels, height, width], or are integers.
    """
    if images.ndim != 4:
        raise UserError(
            f"{model}: the images {images.shape} must be [batch, height, width, channels]"
        )
    found = images.shape[-1]
    if found != channels and images.shape[1] == channels:
        raise UserError(
            f"{model}: the images {images.shape} look like [batch, channels, height, width]; they "
            "must be [batch, height, width, channels]: use jnp.moveaxis(images, 1, -1)"
        )
    if found != channels:
        raise UserError(
            f"{model}: the images {images.shape} have {found} channels, but the model reads "
            f"channels={channels}. Make it with channels={found}, or convert the images"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(
            f"{model}: the images are {images.dtype}, they must be floating-point numbers. Scale "
            "them first, for example images / 255, or use the model's preprocessing"
        )
