"""RandAugment (Cubuk et al. 2020): a few random changes of an image, all equally strong.

The results equal those of ``torchvision.transforms.RandAugment`` bit for bit, given the same PIL
image and the same draws.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

MAGNITUDES = 31
"""Number of magnitudes: a magnitude is an integer from 0 to 30, where 30 is the largest change."""

Change = Callable[[Image.Image, float], Image.Image]


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=0
    )


def _translate_x(image: Image.Image, share: float) -> Image.Image:
    return _affine(image, 1, 0, -int(150 / 331 * image.width * share), 0, 1, 0)


def _translate_y(image: Image.Image, share: float) -> Image.Image:
    return _affine(image, 1, 0, 0, 0, 1, -int(150 / 331 * image.height * share))


def _enhancing(kind: Callable[[Image.Image], Any]) -> Change:
    return lambda image, share: kind(image).enhance(1 + 0.9 * share)


def _solarize(image: Image.Image, share: float) -> Image.Image:
    # Pixels below the threshold stay. Pixels are integers, so rounding it up changes nothing.
    return ImageOps.solarize(image, math.ceil(round(255 * (1 - share), 6)))


# Each change by name, and whether its sign is drawn. A change takes the share of its largest
# magnitude: -1 to 1 with a sign, otherwise 0 to 1. The order is torchvision's.
CHANGES: dict[str, tuple[Change, bool]] = {
    "Identity": (lambda image, share: image, False),
    "ShearX": (lambda image, share: _affine(image, 1, 0.3 * share, 0, 0, 1, 0), True),
    "ShearY": (lambda image, share: _affine(image, 1, 0, 0, 0.3 * share, 1, 0), True),
    "TranslateX": (_translate_x, True),
    "TranslateY": (_translate_y, True),
    "Rotate": (lambda image, share: image.rotate(30 * share, Image.Resampling.NEAREST), True),
    "Brightness": (_enhancing(ImageEnhance.Brightness), True),
    "Color": (_enhancing(ImageEnhance.Color), True),
    "Contrast": (_enhancing(ImageEnhance.Contrast), True),
    "Sharpness": (_enhancing(ImageEnhance.Sharpness), True),
    "Posterize": (lambda image, share: ImageOps.posterize(image, 8 - round(4 * share)), False),
    "Solarize": (_solarize, False),
    "AutoContrast": (lambda image, share: ImageOps.autocontrast(image), False),
    "Equalize": (lambda image, share: ImageOps.equalize(image), False),
}  # fmt: skip


def rand_augment(
    image: Image.Image, count: int, magnitude: int, generator: np.random.Generator
) -> Image.Image:
    """Changes an image ``count`` times.

    Args:
        image: an RGB or gray image.
        count: number of changes, applied one after the other and drawn with replacement.
        magnitude: strength of the changes, 0 to 30.
        generator: draws the changes and their signs.
    """
    names = list(CHANGES)
    for _ in range(count):
        change, signed = CHANGES[names[generator.integers(len(names))]]
        sign = -1 if signed and generator.random() < 0.5 else 1
        image = change(image, sign * magnitude / (MAGNITUDES - 1))
    return image
