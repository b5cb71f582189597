"""What is done to an example: functions of PIL images and drawn numbers, as torchvision has them.

Every function gives bit for bit what torchvision gives for the same PIL image and numbers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageEnhance

from zoo.errors import UserError, did_you_mean

Example = dict[str, Any]
Transform = Callable[[Example, np.random.Generator], dict[str, np.ndarray]]


def resize(image: Image.Image, size: int) -> Image.Image:
    """Resizes to a square, bilinear: ``torchvision.transforms.functional.resize``."""
    return image.resize((size, size), Image.Resampling.BILINEAR)


def grayscale(image: Image.Image) -> Image.Image:
    """Gray in three equal channels: ``rgb_to_grayscale(num_output_channels=3)``."""
    gray = image.convert("L")
    return Image.merge("RGB", (gray, gray, gray))


def rotate(image: Image.Image, degrees: float) -> Image.Image:
    """Rotates counter-clockwise about the centre, nearest neighbour, black outside: ``rotate``."""
    return image.rotate(degrees, Image.Resampling.NEAREST)


def adjust_brightness(image: Image.Image, factor: float) -> Image.Image:
    """Blends with black; 1 changes nothing: ``adjust_brightness``."""
    return ImageEnhance.Brightness(image).enhance(factor)


def adjust_contrast(image: Image.Image, factor: float) -> Image.Image:
    """Blends with the mean gray; 1 changes nothing: ``adjust_contrast``."""
    return ImageEnhance.Contrast(image).enhance(factor)


def normalize(
    image: Image.Image, mean: float, std: float
) -> Float32[np.ndarray, "height width channels"]:
    """Scales to [0, 1], subtracts the mean, divides by ``std``: ``ToTensor``, ``Normalize``."""
    unit = np.asarray(image, np.float32) / np.float32(255)
    return (unit - np.float32(mean)) / np.float32(std)


@dataclasses.dataclass(frozen=True)
class SeedTransform:
    """The seed's transforms.

    Resized, gray in three channels, normalised; in training also a small rotation, and changes of
    brightness and contrast in random order.

    Attributes:
        train: whether to augment.
        image_size: side of the result, in pixels.
        mean: subtracted from values in [0, 1].
        std: divided by, above 0.
        rotation_degrees: the rotation is drawn between minus and plus this.
        brightness: the factor is drawn between 1 minus and 1 plus this, which is at most 1.
        contrast: likewise.
    """

    train: bool
    image_size: int = 48
    mean: float = 0.1307
    std: float = 0.3081
    rotation_degrees: float = 10.0
    brightness: float = 0.2
    contrast: float = 0.2

    def __post_init__(self) -> None:
        """Raises UserError for numbers out of range."""
        ranges = {
            "image_size": (self.image_size >= 1, "at least 1"),
            "std": (self.std > 0, "above 0"),
            "rotation_degrees": (0 <= self.rotation_degrees <= 180, "between 0 and 180"),
            "brightness": (0 <= self.brightness <= 1, "between 0 and 1"),
            "contrast": (0 <= self.contrast <= 1, "between 0 and 1"),
        }
        for name, (allowed, rule) in ranges.items():
            if not allowed:
                raise UserError(f"{name}={getattr(self, name)} must be {rule}")

    def __call__(self, example: Example, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns ``image: Float32[image_size, image_size, 3]`` and ``label: Int32[]``."""
        array = example["image"]
        image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
        image = grayscale(resize(image, self.image_size))
        if self.train:
            image = rotate(image, generator.uniform(-self.rotation_degrees, self.rotation_degrees))
            changes = [
                (adjust_brightness, generator.uniform(1 - self.brightness, 1 + self.brightness)),
                (adjust_contrast, generator.uniform(1 - self.contrast, 1 + self.contrast)),
            ]
            for index in generator.permutation(len(changes)):
                adjust, factor = changes[index]
                image = adjust(image, factor)
        return {
            "image": normalize(image, self.mean, self.std),
            "label": np.asarray(example["label"], np.int32),
        }


_TRANSFORMS = {"seed": SeedTransform}


def transform_names() -> list[str]:
    """Returns the names that ``make_transform`` knows."""
    return sorted(_TRANSFORMS)


def make_transform(name: str, *, train: bool, **options: Any) -> Transform:
    """Returns a transform of examples.

    Args:
        name: ``seed``.
        train: whether to augment; without, the generator is not used.
        **options: see ``SeedTransform``.

    Raises:
        UserError: the name is unknown, or an option is out of range.
    """
    if name not in _TRANSFORMS:
        raise UserError(f"data.transform={name!r} is unknown.{did_you_mean(name, _TRANSFORMS)}")
    return _TRANSFORMS[name](train=train, **options)
