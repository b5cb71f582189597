"""Your own images: one folder for each class, or an npz file."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from zoo.errors import UserError

SPLITS = ("train", "validation", "test")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Share of each held-out split, for a folder without splits and an npz file with only x and y.
HELD_BACK = 0.1
MOST_PIXELS = 100_000_000


class ImageError(UserError):
    """Images are absent, cannot be read, or have a layout that the zoo does not know."""


@dataclasses.dataclass(frozen=True)
class Files:
    """Images in files, which are read on access.

    Attributes:
        files: one file for each example.
        labels: the class of each file.
    """

    files: Sequence[Path]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": read_image(self.files[index]), "label": self.labels[index]}


def read_image(file: str | Path) -> UInt8[np.ndarray, "height width 3"]:
    """Reads an image as a viewer shows it: upright, its first frame, in 8-bit RGB.

    Raises:
        ImageError: the file is absent, not an image or cut off, or has more than 100 million
            pixels.
    """
    try:
        with Image.open(file) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise ImageError(
                    f"{file} has {width} x {height} pixels, more than {MOST_PIXELS:,}: make it "
                    "smaller"
                )
            return _rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise ImageError(f"{file}: there is no such file") from error
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ImageError(f"{file} cannot be read as an image: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{file} is broken or cut off: {error}") from error


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    if image.mode.startswith("I"):
        # Keep the upper 8 of 16 bits. PIL's own conversion clips everything above 255.
        wide = np.asarray(image).astype(np.int64)
        gray = np.clip(wide // 257 if wide.max(initial=0) > 255 else wide, 0, 255)
        return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        # Transparent pixels are shown on white.
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


@functools.lru_cache(maxsize=4)
def read_folder(path: Path, validation_fraction: float) -> tuple[tuple[str, ...], dict[str, Files]]:
    """Finds the images of ``PATH/{train,validation,test}/<class>/*`` or ``PATH/<class>/*``.

    In the second case a tenth of each class is held out for validation and another tenth for the
    test. A hash of each file's path chooses them, so adding files moves few others between splits.

    Args:
        path: the folder.
        validation_fraction: share of ``train`` that becomes ``validation`` if there is no
            ``validation`` folder.

    Returns:
        The names of the classes, and the files by split.

    Raises:
        ImageError: the folder has another layout.
    """
    if not path.is_dir():
        raise ImageError(f"data.path={str(path)!r}: there is no such folder")
    folders = {folder.name for folder in _folders(path)}
    strange = sorted({"val", "valid", "dev", "eval"} & folders)
    if strange and "train" in folders:
        raise ImageError(f"{path / strange[0]}: call it 'validation'")
    if not {"train", "test"} & folders:
        classes, found = _classes(path), _files(path, _classes(path))
        return classes, _divided(path, found, {"test": HELD_BACK, "validation": HELD_BACK})
    if not {"train", "test"} <= folders:
        raise ImageError(
            f"{path} has {sorted(folders)}: there must be 'train' and 'test', or only classes"
        )
    classes = _classes(path / "train")
    splits = {}
    for split in SPLITS:
        if split in folders:
            if unknown := set(_classes(path / split)) - set(classes):
                raise ImageError(f"{path / split}: 'train' has no class {sorted(unknown)[0]!r}")
            splits[split] = _files(path / split, classes)
    if "validation" not in splits and validation_fraction:
        splits |= _divided(path, splits["train"], {"validation": validation_fraction})
    return classes, splits


@functools.lru_cache(maxsize=2)
def read_npz(path: Path) -> tuple[tuple[str, ...], dict[str, tuple[Any, Any]]]:
    """Reads ``x_train, y_train, x_test, y_test``, with or without ``x_validation``, or ``x, y``.

    ``x`` is [examples, height, width] or [examples, height, width, channels] in uint8. ``y`` holds
    integers from 0. From ``x, y`` a tenth is drawn for validation and another tenth for the test.

    Returns:
        The names of the classes, and the images and labels by split.

    Raises:
        ImageError: the file is absent or has other contents.
    """
    if not path.is_file():
        raise ImageError(f"data.path={str(path)!r}: there is no such file")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            held = dict(arrays)
    except (OSError, ValueError, EOFError) as error:
        raise ImageError(f"{path} is not an npz file of plain arrays: {error}") from error
    if {"x", "y"} <= held.keys():
        order = np.random.default_rng(0).permutation(len(held["y"]))
        count = round(HELD_BACK * len(order))
        parts = np.split(order, [count, 2 * count])
        pairs = {
            split: (held["x"][rows], held["y"][rows])
            for split, rows in zip(("test", "validation", "train"), parts, strict=True)
        }
    else:
        pairs = {
            split: (held[f"x_{split}"], held[f"y_{split}"])
            for split in SPLITS
            if {f"x_{split}", f"y_{split}"} <= held.keys()
        }
    if not {"train", "test"} <= pairs.keys():
        raise ImageError(
            f"{path} has {sorted(held)}: it must have x_train, y_train, x_test and y_test, or x "
            "and y"
        )
    checked = {split: _checked(path, split, *pair) for split, pair in pairs.items()}
    classes = 1 + max(int(labels.max()) for _, labels in checked.values())
    return tuple(str(label) for label in range(classes)), checked


def _checked(path: Path, split: str, images: Any, labels: Any) -> tuple[Any, Any]:
    labels = labels.reshape(len(labels), -1)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images):
        raise ImageError(
            f"{path}: x of {split} is {images.dtype}{list(images.shape)}; it must be uint8 "
            "[examples, height, width] or [examples, height, width, channels]"
        )
    if labels.shape != (len(images), 1) or not np.issubdtype(labels.dtype, np.integer):
        raise ImageError(
            f"{path}: y of {split} is {labels.dtype}{list(labels.shape)}; it must be one "
            f"integer for each of the {len(images)} images"
        )
    if labels.min() < 0:
        raise ImageError(f"{path}: y of {split} has {labels.min()}; labels begin with 0")
    images = images[..., None] if images.ndim == 3 else images
    if images.shape[-1] not in (1, 3):
        raise ImageError(f"{path}: x of {split} has {images.shape[-1]} channels, not 1 or 3")
    return images, labels[:, 0]


def _folders(path: Path) -> list[Path]:
    return sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))


def _classes(path: Path) -> tuple[str, ...]:
    names = tuple(folder.name for folder in _folders(path))
    if len(names) < 2:
        raise ImageError(
            f"{path} has {len(names)} folders: it must have one for each class, at least two"
        )
    return names


def _files(path: Path, classes: Sequence[str]) -> Files:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = path / name
        found = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
        if folder.is_dir() and not found:
            raise ImageError(f"{folder} has no images; known suffixes are {', '.join(SUFFIXES)}")
        files += found
        labels += [label] * len(found)
    return Files(tuple(files), tuple(labels))


def _divided(path: Path, files: Files, shares: Mapping[str, float]) -> dict[str, Files]:
    """Moves shares of each class out of ``train``, by a hash of the path below the folder."""
    parts: dict[str, list[int]] = {name: [] for name in (*shares, "train")}
    for label in sorted(set(files.labels)):
        of_class = [index for index, other in enumerate(files.labels) if other == label]
        if len(of_class) <= len(shares):
            raise ImageError(
                f"{files.files[of_class[0]].parent} has {len(of_class)} images: too few to keep "
                f"some back for {' and '.join(shares)}"
            )
        by_hash = sorted(
            of_class,
            key=lambda index: hashlib.sha256(
                files.files[index].relative_to(path).as_posix().encode()
            ).digest(),
        )
        begin = 0
        for name, share in shares.items():
            end = begin + max(1, round(share * len(of_class)))
            parts[name] += by_hash[begin:end]
            begin = end
        parts["train"] += by_hash[begin:]
    return {
        name: Files(
            tuple(files.files[index] for index in sorted(indices)),
            tuple(files.labels[index] for index in sorted(indices)),
        )
        for name, indices in parts.items()
    }
