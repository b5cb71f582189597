"""RandAugment (Cubuk et al. 2020): a few changes of an image, drawn at random, equally strong.

Bit for bit what ``torchvision.transforms.RandAugment`` gives for the same PIL image and draws.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

MAGNITUDES = 31
"""A magnitude is a whole number from 0 to 30: how far each change goes, of its largest."""

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
    # Pixels below the threshold stay: for whole numbers the next whole threshold is the same.
    return ImageOps.solarize(image, math.ceil(round(255 * (1 - share), 6)))


# By name: the change, given the share of its largest magnitude, -1 to 1 or 0 to 1; and whether the
# sign is drawn. The order is torchvision's.
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
        image: in RGB or gray.
        count: changes one after the other, drawn with replacement.
        magnitude: 0 to 30.
        generator: draws the changes and their signs.
    """
    names = list(CHANGES)
    for _ in range(count):
        change, signed = CHANGES[names[generator.integers(len(names))]]
        sign = -1 if signed and generator.random() < 0.5 else 1
        image = change(image, sign * magnitude / (MAGNITUDES - 1))
    return image
