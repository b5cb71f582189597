"""Captioned scenes, each with one handwritten digit of some colour, size and place."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image

from zoo.data.datasets import Dataset, token_array
from zoo.data.sources import DataError, Example, describe, open_source
from zoo.data.vocabulary import Vocabulary
from zoo.errors import did_you_mean

NAMES = ("digit_scenes",)
SIDE = 32
MAX_WORDS = 12

COLORS = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (60, 90, 250),
    "yellow": (240, 220, 40),
    "purple": (170, 60, 220),
    "white": (245, 245, 245),
}
SIZES = {"big": 20, "small": 12}
# The centre of the digit, as (row, column).
PLACES = {
    "top left": (10, 10),
    "top right": (10, 22),
    "bottom left": (22, 10),
    "bottom right": (22, 22),
    "center": (16, 16),
}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
BACKGROUND = 24

# Pairs of colour and digit that are left out of training. Each colour and each digit also occurs
# in other pairs.
HELD_OUT = (("red", 7), ("green", 2), ("blue", 5), ("yellow", 0), ("purple", 4), ("white", 9))

_SYNONYMS = {
    "red": ("red", "crimson"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "yellow": ("yellow", "golden"),
    "purple": ("purple", "violet"),
    "white": ("white", "pale"),
    "big": ("big", "large"),
    "small": ("small", "little", "tiny"),
    "top left": ("top left", "upper left"),
    "top right": ("top right", "upper right"),
    "bottom left": ("bottom left", "lower left"),
    "bottom right": ("bottom right", "lower right"),
    "center": ("center", "middle"),
}
_FRAMES = (
    "a {size} {color} {digit} at the {place}",
    "{size} {color} {digit} in the {place}",
    "the {digit} is {size} and {color} at the {place}",
    "in the {place} a {size} {color} {digit}",
)
_SIZES_OF_SPLITS = {"train": 50_000, "validation": 512, "test": 512, "held_out": 512}


@dataclasses.dataclass(frozen=True)
class Scene:
    """The contents of a scene.

    Attributes:
        digit: 0 to 9.
        color: one of ``COLORS``.
        size: one of ``SIZES``.
        place: one of ``PLACES``.
    """

    digit: int
    color: str
    size: str
    place: str


def draw_scene(generator: np.random.Generator, *, held_out: bool | None = False) -> Scene:
    """Draws a scene with a pair of colour and digit from ``HELD_OUT``, or not; None: any pair."""
    pairs = [
        (color, digit)
        for color in COLORS
        for digit in range(10)
        if held_out in (None, (color, digit) in HELD_OUT)
    ]
    color, digit = pairs[generator.integers(len(pairs))]
    size, place = (list(table)[generator.integers(len(table))] for table in (SIZES, PLACES))
    return Scene(digit, color, size, place)


def render(
    scene: Scene, digit: UInt8[np.ndarray, "28 28"], shift: tuple[int, int] = (0, 0)
) -> UInt8[np.ndarray, "32 32 3"]:
    """Paints a scene.

    Args:
        scene: the contents of the scene.
        digit: an image of the digit, white on black.
        shift: number of pixels by which the digit is moved down and to the right.
    """
    side = SIZES[scene.size]
    # MNIST has four empty pixels on each side.
    ink = Image.fromarray(digit[4:24, 4:24]).resize((side, side), Image.Resampling.BILINEAR)
    top, left = (
        int(np.clip(middle - side // 2 + off, 0, SIDE - side))
        for middle, off in zip(PLACES[scene.place], shift, strict=True)
    )
    alpha = np.zeros((SIDE, SIDE, 1), np.float32)
    alpha[top : top + side, left : left + side, 0] = np.asarray(ink, np.float32) / 255
    painted = BACKGROUND + alpha * (np.array(COLORS[scene.color], np.float32) - BACKGROUND)
    return painted.round().astype(np.uint8)


def caption(scene: Scene, generator: np.random.Generator) -> str:
    """Describes a scene in words from a small random grammar; the size may be left out."""

    def word(meaning: str) -> str:
        words = _SYNONYMS[meaning]
        return words[generator.integers(len(words))]

    frame = _FRAMES[generator.integers(len(_FRAMES))]
    if generator.random() < 0.2:
        frame = frame.replace("{size} and ", "").replace("{size} ", "")
    place = word(scene.place)
    if scene.place != "center" and generator.random() < 0.3:
        place += " corner"
    return frame.format(
        size=word(scene.size), color=word(scene.color), digit=DIGITS[scene.digit], place=place
    )


@functools.cache
def words() -> Vocabulary:
    """Returns the words of all captions; number 0 is padding."""
    frames = (word for frame in _FRAMES for word in frame.split() if "{" not in word)
    synonyms = (word for phrases in _SYNONYMS.values() for p in phrases for word in p.split())
    return Vocabulary(("<pad>", *sorted({*frames, *synonyms, *DIGITS, "corner"})), "word")


def encode_caption(text: str, vocabulary: Vocabulary) -> Int32[np.ndarray, " words"]:
    """Returns the words of a caption as numbers, with padding.

    Raises:
        DataError: the caption is too long, or has words outside the vocabulary; the message names
            them.
    """
    split = text.lower().replace(",", " ").replace(".", " ").split()
    if len(split) > MAX_WORDS:
        raise DataError(f"the caption has {len(split)} words, more than {MAX_WORDS}: {text!r}")
    return token_array(vocabulary.encode(split), MAX_WORDS)


def to_network(image: UInt8[np.ndarray, "*image"]) -> Float32[np.ndarray, "*image"]:
    """Scales pixels from [0, 255] to [-1, 1]."""
    return np.asarray(image, np.float32) / np.float32(127.5) - np.float32(1)


def to_pixels(image: Float32[np.ndarray, "*image"]) -> UInt8[np.ndarray, "*image"]:
    """Scales pixels from [-1, 1] to [0, 255]; values outside are clipped."""
    return np.clip(np.round((np.asarray(image) + 1) * 127.5), 0, 255).astype(np.uint8)


def read_color(image: UInt8[np.ndarray, "32 32 3"]) -> str:
    """Returns the colour of the digit in a scene, judged by its brightest pixels."""
    pixels = image.reshape(-1, 3).astype(np.float32) - BACKGROUND
    ink = np.abs(pixels).max(axis=1)
    brightest = pixels[ink >= 0.7 * ink.max()].mean(axis=0)
    direction = brightest / (np.linalg.norm(brightest) + 1e-6)
    names = list(COLORS)
    table = np.array(list(COLORS.values()), np.float32) - BACKGROUND
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    return names[int((table @ direction).argmax())]


def read_place(image: UInt8[np.ndarray, "32 32 3"]) -> str:
    """Returns the place of the digit in a scene, judged by the centre of its bounding box."""
    ink = np.abs(image.astype(np.float32) - BACKGROUND).max(axis=2) > 60
    if not ink.any():
        return "nowhere"
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    middle = np.array([(rows[0] + rows[-1] + 1) / 2, (columns[0] + columns[-1] + 1) / 2])
    distances = [np.abs(middle - place).sum() for place in PLACES.values()]
    return list(PLACES)[int(np.argmin(distances))]


def load_scenes(name: str) -> Dataset:
    """Describes the captioned scenes; a scene is a function of its split and its number.

    Args:
        name: ``digit_scenes``, painted with the handwritten digits of ``mnist_subset``. The split
            ``held_out`` has the pairs of colour and digit that no other split has.

    Raises:
        DataError: the name is unknown.
    """
    if name not in NAMES:
        raise DataError(f"data.name={name!r} is unknown.{did_you_mean(name, NAMES)}")
    return Dataset(
        name=name,
        sizes=_SIZES_OF_SPLITS,
        vocabularies={"words": words()},
        model_fields={"vocab_size": len(words())},
        open_split=Scenes,
        transform=lambda train: lambda example, generator: example,
    )


def load_scene_digits(*, data_dir: str = "") -> Dataset:
    """Describes the same scenes with the digit as their class; all pairs occur.

    A classifier trained on them can judge the digits of generated scenes.

    Args:
        data_dir: a TFDS folder with ``mnist``, whose digits are then used; empty uses the digits of
            ``mnist_subset``.

    Raises:
        DataError: the folder has no ``mnist``.
    """
    # MNIST has no validation split, so a tenth of its train split becomes one.
    digits: dict[str, Any] = {"name": "mnist_subset"}
    if data_dir:
        digits = {"name": "mnist", "data_dir": data_dir, "validation_fraction": 0.1}
    describe(**digits)
    return Dataset(
        name=NAMES[0],
        sizes={split: _SIZES_OF_SPLITS[split] for split in ("train", "validation", "test")},
        vocabularies={"classes": Vocabulary(DIGITS, "class name")},
        model_fields={"num_classes": len(DIGITS)},
        open_split=lambda split: Scenes(split, digits=digits, every_pair=True),
        transform=lambda train: (
            lambda example, generator: {
                "image": example["image"],
                "label": example["digit"],
            }
        ),
    )


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Examples of one split.

    ``image`` is Float32[32, 32, 3] between -1 and 1, and ``tokens`` is the caption, Int32[12].
    ``digit``, ``color``, ``size`` and ``place`` are numbers in their tables.

    Attributes:
        split: name of the split.
        digits: the handwritten digits, as arguments of ``zoo.data.sources.open_source``.
        every_pair: whether the pairs of ``HELD_OUT`` occur like the others.
    """

    split: str
    digits: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "mnist_subset"})
    every_pair: bool = False

    @functools.cached_property
    def images(self) -> list[UInt8[np.ndarray, "images 28 28"]]:
        """Images of the handwritten digits, by digit."""
        split = "test" if self.split == "held_out" else self.split
        source = open_source(split=split, **self.digits)
        examples = [source[index] for index in range(len(source))]
        return [
            np.stack([e["image"][..., 0] for e in examples if e["label"] == digit])
            for digit in range(10)
        ]

    def __len__(self) -> int:
        return _SIZES_OF_SPLITS[self.split]

    def __getitem__(self, index: int) -> Example:
        seed = (list(_SIZES_OF_SPLITS).index(self.split), int(index))
        generator = np.random.default_rng(seed)
        held_out = None if self.every_pair else self.split == "held_out"
        scene = draw_scene(generator, held_out=held_out)
        images = self.images[scene.digit]
        shift = generator.integers(-1, 2, 2)
        image = render(scene, images[generator.integers(len(images))], tuple(shift))
        numbers = {
            "digit": scene.digit,
            "color": list(COLORS).index(scene.color),
            "size": list(SIZES).index(scene.size),
            "place": list(PLACES).index(scene.place),
        }
        return {
            "image": to_network(image),
            "tokens": encode_caption(caption(scene, generator), words()),
        } | {field: np.asarray(number, np.int32) for field, number in numbers.items()}
