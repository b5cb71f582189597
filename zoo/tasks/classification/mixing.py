"""Training images mixed with one another: mixup and CutMix.

Both match ``torchvision.transforms.v2.MixUp`` and ``CutMix`` for the same random numbers. They mix
each image with the one before it in the batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Images = Float[Array, "batch height width channels"]


def mixup(images: Images, share: Float[Array, ""] | float) -> Images:
    """Blends each image with the one before it (Zhang et al. 2018, section 2).

    Args:
        images: a batch.
        share: the weight of the image itself, from 0 to 1.
    """
    return share * images + (1 - share) * jnp.roll(images, 1, axis=0)


def cutmix(
    images: Images,
    share: Float[Array, ""] | float,
    centre: tuple[Float[Array, ""] | float, Float[Array, ""] | float],
) -> tuple[Images, Float[Array, ""]]:
    """Pastes a part of the previous image over each image (Yun et al. 2019, section 3).

    Args:
        images: a batch.
        share: the fraction of an image that should remain, from 0 to 1.
        centre: the row and column of the part's centre, as fractions of the sides in [0, 1). The
            part is cut off at the edges of the image.

    Returns:
        The images, and the fraction of an image that did remain.
    """
    _, height, width, _ = images.shape
    half = 0.5 * jnp.sqrt(1 - jnp.asarray(share, images.dtype))

    def inside(size: int, at: Float[Array, ""] | float) -> tuple[Array, Array]:
        middle, reach = jnp.floor(at * size), jnp.floor(half * size)
        low, high = jnp.maximum(middle - reach, 0), jnp.minimum(middle + reach, size)
        places = jnp.arange(size)
        return (places >= low) & (places < high), high - low

    rows, tall = inside(height, centre[0])
    columns, wide = inside(width, centre[1])
    part = (rows[:, None] & columns)[None, :, :, None]
    mixed = jnp.where(part, jnp.roll(images, 1, axis=0), images)
    return mixed, 1 - tall * wide / (height * width)


def mix(
    key: PRNGKeyArray,
    images: Images,
    mask: Float[Array, " batch"],
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
) -> tuple[Images, Float[Array, " batch"]]:
    """Mixes a batch with mixup or CutMix, each with probability 1/2 if both are enabled.

    Args:
        key: the random key for the share, which is drawn from Beta(alpha, alpha), and the place.
        images: a batch.
        mask: 0 for a row that is padding. A row that follows padding is left as it is.
        mixup_alpha: the alpha of mixup; 0 disables it.
        cutmix_alpha: the alpha of CutMix; 0 disables it. At least one of the two is above 0.

    Returns:
        The images, and the share of each that is its own; the rest comes from the row before it.
    """
    which, draw, row, column = jax.random.split(key, 4)

    def blended() -> tuple[Images, Float[Array, ""]]:
        share = jax.random.beta(draw, mixup_alpha, mixup_alpha).astype(images.dtype)
        return mixup(images, share), share

    def pasted() -> tuple[Images, Float[Array, ""]]:
        share = jax.random.beta(draw, cutmix_alpha, cutmix_alpha).astype(images.dtype)
        return cutmix(images, share, (jax.random.uniform(row), jax.random.uniform(column)))

    if mixup_alpha and cutmix_alpha:
        mixed, share = jax.lax.cond(jax.random.bernoulli(which), blended, pasted)
    else:
        mixed, share = blended() if mixup_alpha else pasted()
    whole = jnp.roll(mask, 1) > 0
    return (
        jnp.where(whole[:, None, None, None], mixed, images),
        jnp.where(whole, share.astype(images.dtype), 1),
    )
