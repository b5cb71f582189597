"""Transforms of examples: torchvision's functions of PIL images and random numbers.

For the same PIL image and numbers, every function returns what torchvision returns, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageEnhance

from zoo.data.randaugment import MAGNITUDES, rand_augment
from zoo.errors import UserError, did_you_mean

Example = dict[str, Any]
Transform = Callable[[Example, np.random.Generator], dict[str, np.ndarray]]


def resize(image: Image.Image, size: int) -> Image.Image:
    """Resizes to a square bilinearly: ``torchvision.transforms.functional.resize``."""
    return image.resize((size, size), Image.Resampling.BILINEAR)


def grayscale(image: Image.Image) -> Image.Image:
    """Converts to gray in three equal channels: ``rgb_to_grayscale(num_output_channels=3)``."""
    gray = image.convert("L")
    return Image.merge("RGB", (gray, gray, gray))


def rotate(image: Image.Image, degrees: float) -> Image.Image:
    """Rotates counter-clockwise about the centre with nearest neighbours: ``rotate``.

    Pixels from outside the image are black.
    """
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
    """Scales to [0, 1], subtracts ``mean``, divides by ``std``: ``ToTensor``, ``Normalize``."""
    unit = np.asarray(image, np.float32) / np.float32(255)
    return (unit - np.float32(mean)) / np.float32(std)


@dataclasses.dataclass(frozen=True)
class SeedTransform:
    """The transforms of the seed.

    Images are resized, converted to gray in three channels, and normalised. Training also applies a
    small rotation, and changes brightness and contrast in random order.

    Attributes:
        train: whether to augment.
        image_size: side of the result, in pixels.
        mean: the mean that is subtracted from values in [0, 1].
        std: the standard deviation by which they are then divided, above 0.
        rotation_degrees: largest rotation to either side.
        brightness: the factor is drawn from 1 - ``brightness`` to 1 + ``brightness``; at most 1.
        contrast: the factor is drawn from 1 - ``contrast`` to 1 + ``contrast``; at most 1.
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


@dataclasses.dataclass(frozen=True)
class CifarTransform:
    """The usual augmentation of small photographs (He et al. 2016, section 4.2).

    Training adds four black pixels on each side, cuts out a random square of the old size, and
    mirrors it half of the time. Each channel is then normalised by the mean and standard deviation
    of CIFAR-10. By default there is no other augmentation.

    Attributes:
        train: whether to augment.
        image_size: side of the result, in pixels; other images are resized to it first.
        rand_augment: number of changes by ``zoo.data.randaugment``, in training after the
            mirroring.
        rand_augment_magnitude: how strong they are, 0 to 30.
    """

    train: bool
    image_size: int = 32
    rand_augment: int = 0
    rand_augment_magnitude: int = 9

    def __post_init__(self) -> None:
        """Raises UserError for a number out of range."""
        _check_photograph(self.image_size, self.rand_augment, self.rand_augment_magnitude)

    def __call__(self, example: Example, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns ``image: Float32[image_size, image_size, 3]`` and ``label: Int32[]``."""
        array = example["image"]
        image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).convert("RGB")
        if image.size != (self.image_size, self.image_size):
            image = resize(image, self.image_size)
        pixels = np.asarray(image)
        if self.train:
            pad = 4
            padded = np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)))
            top, left = generator.integers(0, 2 * pad + 1, 2)
            pixels = padded[top : top + self.image_size, left : left + self.image_size]
            if generator.random() < 0.5:
                pixels = pixels[:, ::-1]
            if self.rand_augment:
                changed = rand_augment(
                    Image.fromarray(np.ascontiguousarray(pixels)),
                    self.rand_augment,
                    self.rand_augment_magnitude,
                    generator,
                )
                pixels = np.asarray(changed)
        unit = pixels.astype(np.float32) / np.float32(255)
        return {
            "image": (unit - _CIFAR_MEAN) / _CIFAR_STD,
            "label": np.asarray(example["label"], np.int32),
        }


@dataclasses.dataclass(frozen=True)
class ImagenetTransform:
    """The usual preparation of photographs, as in torchvision's training and evaluation presets.

    Training cuts out a part of the image of random size and shape (Szegedy et al. 2015, section 6;
    ``RandomResizedCrop``) and mirrors it half of the time. Evaluation resizes the shorter side to
    8/7 of ``image_size`` and cuts out the centre. Each channel is then normalised.

    Attributes:
        train: whether to augment.
        image_size: side of the result, in pixels.
        rand_augment: number of changes by ``zoo.data.randaugment``, in training after the
            mirroring.
        rand_augment_magnitude: how strong they are, 0 to 30.
    """

    train: bool
    image_size: int = 224
    rand_augment: int = 0
    rand_augment_magnitude: int = 9

    def __post_init__(self) -> None:
        """Raises UserError for a number out of range."""
        _check_photograph(self.image_size, self.rand_augment, self.rand_augment_magnitude)

    def __call__(self, example: Example, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns ``image: Float32[image_size, image_size, 3]`` and ``label: Int32[]``."""
        array = example["image"]
        image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).convert("RGB")
        if self.train:
            image = resize(image.crop(random_part(*image.size, generator)), self.image_size)
            if generator.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            image = rand_augment(image, self.rand_augment, self.rand_augment_magnitude, generator)
        else:
            image = center_crop(shorter_side(image, self.image_size * 8 // 7), self.image_size)
        unit = np.asarray(image, np.float32) / np.float32(255)
        return {
            "image": (unit - _IMAGENET_MEAN) / _IMAGENET_STD,
            "label": np.asarray(example["label"], np.int32),
        }


def random_part(
    width: int, height: int, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draws (left, top, right, bottom): ``RandomResizedCrop.get_params``.

    The part has 8 % to 100 % of the area, and sides of 3:4 to 4:3. After ten draws that do not fit,
    it is the centre.
    """
    for _ in range(10):
        area = width * height * generator.uniform(0.08, 1.0)
        ratio = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(generator.integers(0, height - h + 1))
            left = int(generator.integers(0, width - w + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def shorter_side(image: Image.Image, size: int) -> Image.Image:
    """Resizes the shorter side to ``size`` pixels bilinearly: ``resize(image, size)``."""
    width, height = image.size
    short, long = sorted((width, height))
    if short == size:
        return image
    longer = int(size * long / short)
    new = (size, longer) if width <= height else (longer, size)
    return image.resize(new, Image.Resampling.BILINEAR)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Cuts a square out of the centre of an image that is at least as large: ``center_crop``."""
    width, height = image.size
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def _check_photograph(image_size: int, count: int, magnitude: int) -> None:
    if image_size < 1:
        raise UserError(f"image_size={image_size} must be at least 1")
    if count < 0:
        raise UserError(f"rand_augment={count} must be at least 0")
    if not 0 <= magnitude < MAGNITUDES:
        raise UserError(f"rand_augment_magnitude={magnitude} must be between 0 and 30")


_IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
_CIFAR_MEAN = np.array([0.4914, 0.4822, 0.4465], np.float32)
_CIFAR_STD = np.array([0.2470, 0.2435, 0.2616], np.float32)
_TRANSFORMS: dict[str, Any] = {
    "cifar": CifarTransform,
    "imagenet": ImagenetTransform,
    "seed": SeedTransform,
}


def transform_names() -> list[str]:
    """Returns the names that ``make_transform`` knows."""
    return sorted(_TRANSFORMS)


def transform_options(name: str) -> list[str]:
    """Returns the names of a transform's options.

    Raises:
        UserError: the name is unknown.
    """
    if name not in _TRANSFORMS:
        raise UserError(f"data.transform={name!r} is unknown.{did_you_mean(name, _TRANSFORMS)}")
    return [field.name for field in dataclasses.fields(_TRANSFORMS[name]) if field.name != "train"]


def make_transform(name: str, *, train: bool, **options: Any) -> Transform:
    """Returns a transform of examples.

    Args:
        name: ``seed``, ``cifar`` or ``imagenet``.
        train: whether to augment; the generator is only used for that.
        **options: the options of the transform: see its class.

    Raises:
        UserError: the name is unknown, or an option is out of range.
    """
    known = transform_options(name)
    for option in options:
        if option not in known:
            raise UserError(f"data.transform={name!r} has no option {option!r}")
    return _TRANSFORMS[name](train=train, **options)
