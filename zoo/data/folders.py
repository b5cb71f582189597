"""Your own images: one folder for each class, or an npz file."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.files import check_file, check_folder, shown
from zoo.data.image_files import (
    SUFFIXES,
    ImageError,
    broken_images,
    find_images,
    identity,
    list_folder,
    read_image,
    with_those_above,
)

SPLITS = ("train", "validation", "test")
# Names of splits in small letters. "val" is ImageNet's.
_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
    "testing": "test",
}
# Share of each held-out split, for a folder without splits and an npz file with only x and y.
HELD_BACK = 0.1
# A data set of few images may have this many classes, of which it need not hold all.
_CLASSES_OF_FEW = 1000
# Number of broken images and of kinds of files that a message lists.
_LISTED = 5


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


@dataclasses.dataclass(frozen=True)
class Folder:
    """The images of a folder.

    Attributes:
        classes: the names of the classes.
        splits: the images by split.
        notes: what was left out and what was taken for what, in words.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, Files]
    notes: tuple[str, ...]


@functools.lru_cache(maxsize=4)
def read_folder(path: Path, validation_fraction: float, skip_broken: int = 0) -> Folder:
    """Finds the images of ``PATH/<split>/<class>/*`` or ``PATH/<class>/*``.

    There are the splits ``train``, ``validation`` and ``test``; ``val``, ``valid``, ``dev`` and
    ``eval`` are ``validation`` too. Without ``test``, as in ImageNet's folders, the validation
    images are the test split: numbers are compared on them, so they must not choose the best state.

    In the second case a tenth of each class is held out for validation and another tenth for the
    test. A hash of each file's path chooses them, so adding files moves few others between splits.

    Every image is read once before it is used; which are whole is remembered.

    Args:
        path: the folder.
        validation_fraction: share of ``train`` that becomes ``validation`` if there is no
            ``validation`` folder.
        skip_broken: the number of broken images that may be left out.

    Raises:
        ImageError: the folder has another layout, or more images are broken; the message names
            them.
    """
    check_folder(path, ImageError)
    left_out: collections.Counter[str] = collections.Counter()
    splits, notes = _split_folders(path, left_out)
    if not splits:
        classes = _classes(path, left_out)
        # Files of two names are one image, which may not be in two splits.
        everything = _once(_files(path, classes, left_out), left_out)
        found, said = _whole(path, {"train": everything}, skip_broken)
        _check_classes(path, classes, found["train"])
        found = _divided(path, found["train"], {"test": HELD_BACK, "validation": HELD_BACK})
    else:
        classes = _classes(splits["train"], left_out)
        found = {}
        for split, folder in splits.items():
            own = classes if split == "train" else _classes(folder, left_out)
            if unknown := own.keys() - classes.keys():
                raise ImageError(
                    f"{shown(folder)}: {splits['train'].name!r} has no class {sorted(unknown)[0]!r}"
                )
            found[split] = _files(folder, {name: own.get(name) for name in classes}, left_out)
        found, said = _whole(path, found, skip_broken)
        _check_classes(path, classes, found["train"])
        if "validation" not in found and validation_fraction:
            train = _once(found["train"], left_out)
            found |= _divided(path, train, {"validation": validation_fraction})
    if left_out:
        kinds = ", ".join(f"{kind} ({count:,})" for kind, count in left_out.most_common())
        notes += (f"left out of {shown(path)}: {kinds}",)
    return Folder(tuple(classes), found, notes + said)


@functools.lru_cache(maxsize=2)
def read_npz(path: Path) -> tuple[tuple[str, ...], dict[str, tuple[Any, Any]]]:
    """Reads ``x_train, y_train, x_test, y_test``, with or without ``x_validation``, or ``x, y``.

    ``x`` is [examples, height, width] or [examples, height, width, channels] in uint8. ``y`` holds
    integers from 0, one for each image. From ``x, y`` a tenth is drawn for validation and another
    tenth for the test. Other arrays are not read.

    Returns:
        The names of the classes, and the images and labels by split.

    Raises:
        ImageError: the file is absent, broken or has other contents; the message names the array.
    """
    check_file(path, ImageError, "data.path")
    needed = "it must have x_train, y_train, x_test and y_test, or x and y"
    wanted = [("x", "y"), *((f"x_{split}", f"y_{split}") for split in SPLITS)]
    names, held = _arrays(path, [name for pair in wanted for name in pair])
    for images, labels in wanted:
        if (images in held) != (labels in held):
            there, absent = (images, labels) if images in held else (labels, images)
            raise ImageError(f"{shown(path)} has {there!r} but no {absent!r}: {needed}")
    if "x" in held:
        x, y = _checked(path, "x", "y", held)
        if len(y) < len(SPLITS):
            raise ImageError(f"{shown(path)} has {len(y)} images: too few for {', '.join(SPLITS)}")
        order = np.random.default_rng(0).permutation(len(y))
        count = max(1, round(HELD_BACK * len(order)))
        parts = np.split(order, [count, 2 * count])
        pairs = {
            split: (x[rows], y[rows])
            for split, rows in zip(("test", "validation", "train"), parts, strict=True)
        }
    else:
        pairs = {
            split: _checked(path, f"x_{split}", f"y_{split}", held)
            for split in SPLITS
            if f"x_{split}" in held
        }
    if not {"train", "test"} <= pairs.keys():
        raise ImageError(f"{shown(path)} has {names}: {needed}")
    classes = 1 + max(int(labels.max()) for _, labels in pairs.values())
    examples = sum(len(labels) for _, labels in pairs.values())
    if classes > max(_CLASSES_OF_FEW, examples):
        raise ImageError(
            f"{shown(path)}: y has the label {classes - 1}, and there are {examples} images: "
            "labels are the numbers of the classes, from 0 without gaps"
        )
    return tuple(str(label) for label in range(classes)), pairs


def _arrays(path: Path, wanted: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Returns the names of all arrays of an npz file, and those arrays that are wanted."""
    name = ""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ImageError(
                f"{shown(path)} holds one array, as np.save writes it: write the images and the "
                "labels with np.savez(file, x=images, y=labels)"
            )
        with loaded as arrays:
            held = {}
            for name in wanted:
                if name in arrays.files:
                    held[name] = arrays[name]
                    if not isinstance(held[name], np.ndarray):  # numpy gives the bytes
                        raise ValueError("it is no array")
            return sorted(arrays.files), held
    except ImageError:
        raise
    except Exception as error:  # zipfile, zlib and numpy's header each have errors of their own
        where = f"{shown(path)}, array {name!r}," if name else shown(path)
        raise ImageError(
            f"{where} cannot be read as an npz file of plain arrays: {str(error) or repr(error)}"
        ) from error


def _checked(path: Path, x: str, y: str, held: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns images [examples, height, width, channels] and labels [examples]."""
    images, labels = held[x], held[y]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        raise ImageError(
            f"{shown(path)}: {x} is {images.dtype}{list(images.shape)}; it must be uint8 "
            "[examples, height, width] or [examples, height, width, channels]"
        )
    if labels.dtype == bool:
        labels = labels.astype(np.uint8)
    one_each = labels.shape in ((len(images),), (len(images), 1))
    if not one_each or not np.issubdtype(labels.dtype, np.integer):
        raise ImageError(
            f"{shown(path)}: {y} is {labels.dtype}{list(labels.shape)}; it must be one "
            f"integer for each of the {len(images)} images of {x}"
        )
    if labels.min() < 0:
        raise ImageError(f"{shown(path)}: {y} has {labels.min()}; labels begin with 0")
    images = images[..., None] if images.ndim == 3 else images
    if images.shape[-1] not in (1, 3):
        raise ImageError(f"{shown(path)}: {x} has {images.shape[-1]} channels, not 1 or 3")
    return images, labels.reshape(-1)


def _split_folders(
    path: Path, left_out: collections.Counter[str]
) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Returns the folders of the splits and what to say of them; none if there are only classes.

    A folder is a split if it has a split's name and holds folders, those of the classes. So a class
    may be called ``train``.
    """
    folders = list_folder(path).folders
    named = [folder for folder in folders if folder.name.lower() in _NAMES]
    holding = [folder for folder in named if list_folder(folder).folders]
    others = [folder for folder in folders if folder not in named]
    found: dict[str, Path] = {}
    for folder in holding:
        split = _NAMES[folder.name.lower()]
        if split in found:
            raise ImageError(
                f"{shown(path)}: {found[split].name!r} and {folder.name!r} are both the "
                f"{split} split: keep one"
            )
        found[split] = folder
    if "train" not in found or len(found) < 2:
        mixed = holding and not any(list_folder(folder).folders for folder in others)
        if not named or (others and not mixed):
            return {}, ()
        raise ImageError(
            f"{shown(path)} has {[shown(folder.name) for folder in folders]}: there must be "
            "'train' and 'test' or 'val', each with a folder for every class, or only classes"
        )
    listing = list_folder(path)
    left_out.update(listing.left_out)
    for folder in folders:
        if folder not in found.values():
            left_out[f"folder {shown(folder.name)!r}, which is no split with classes"] += 1
    if listing.images:
        left_out["images outside the folders of classes"] += len(listing.images)
    notes: tuple[str, ...] = ()
    if "test" not in found:
        found["test"] = found.pop("validation")
        notes = (
            f"{shown(found['test'])} is the test split, as there is no other "
            "(data.validation_fraction makes a validation split of train)",
        )
    return {split: found[split] for split in SPLITS if split in found}, notes


def _classes(path: Path, left_out: collections.Counter[str]) -> dict[str, Path]:
    """Returns the folders of the classes by name, in the order of the names."""
    listing = list_folder(path)
    left_out.update(listing.left_out)
    if listing.images:
        left_out["images outside the folders of classes"] += len(listing.images)
    if len(listing.folders) < 2:
        raise ImageError(
            f"{shown(path)} has {len(listing.folders)} folders: it must have one for each class, "
            "at least two"
        )
    same: dict[tuple[int, int], Path] = {}
    for folder in listing.folders:
        first = same.setdefault(identity(folder), folder)
        if first != folder:
            raise ImageError(f"{shown(first)} and {shown(folder)} are the same folder")
    # A name that is not UTF-8 could be neither printed nor saved.
    return {
        os.fsencode(folder.name).decode("utf-8", "backslashreplace"): folder
        for folder in listing.folders
    }


def _files(
    path: Path, classes: Mapping[str, Path | None], left_out: collections.Counter[str]
) -> Files:
    """Finds the images of the classes below a folder; a class without a folder has none."""
    files: list[Path] = []
    labels: list[int] = []
    known = with_those_above([path, *(folder for folder in classes.values() if folder)])
    for label, folder in enumerate(classes.values()):
        if folder is None:
            continue
        there: collections.Counter[str] = collections.Counter()
        found = find_images(folder, known, there)
        left_out.update(there)
        if not found:
            has = ", ".join(f"{kind} ({count})" for kind, count in there.most_common(_LISTED))
            raise ImageError(
                f"{shown(folder)} has no images{f', but {has}' if has else ''}; known suffixes are "
                f"{', '.join(SUFFIXES)}"
            )
        files += found
        labels += [label] * len(found)
    return Files(tuple(files), tuple(labels))


def _once(files: Files, left_out: collections.Counter[str]) -> Files:
    """Leaves out further names of a file, such as links to it."""
    first: dict[tuple[int, int], int] = {}
    for index, file in enumerate(files.files):
        first.setdefault(identity(file), index)
    if len(first) < len(files):
        left_out["further names of the same image"] += len(files) - len(first)
    return _chosen(files, list(first.values()))


def _whole(
    path: Path, splits: Mapping[str, Files], skip_broken: int
) -> tuple[dict[str, Files], tuple[str, ...]]:
    """Leaves out broken images, at most ``skip_broken``; also returns what to say of them."""
    everything = [file for files in splits.values() for file in files.files]
    broken, notes = broken_images(path, everything)
    if not broken:
        return dict(splits), notes
    listed = "; ".join(list(broken.values())[:_LISTED])
    more = f"; and {len(broken) - _LISTED:,} more" if len(broken) > _LISTED else ""
    if len(broken) > skip_broken:
        raise ImageError(
            f"{len(broken):,} of {len(everything):,} images cannot be used, and "
            f"data.skip_broken={skip_broken} are allowed: {listed}{more}. Mend or remove them, or "
            f"leave them out with data.skip_broken={len(broken)}"
        )
    notes = (f"left out as broken ({len(broken)}): {listed}{more}", *notes)
    return {
        split: _chosen(files, [i for i, file in enumerate(files.files) if file not in broken])
        for split, files in splits.items()
    }, notes


def _check_classes(path: Path, classes: Iterable[str], train: Files) -> None:
    """Raises ImageError if a class has lost all its images."""
    names = list(classes)
    if absent := sorted(set(range(len(names))) - set(train.labels)):
        raise ImageError(f"{shown(path)}: all images of the class {names[absent[0]]!r} are broken")


def _chosen(files: Files, indices: Sequence[int]) -> Files:
    return Files(
        tuple(files.files[index] for index in indices),
        tuple(files.labels[index] for index in indices),
    )


def _divided(path: Path, files: Files, shares: Mapping[str, float]) -> dict[str, Files]:
    """Moves shares of each class out of ``train``, by a hash of the path below the folder."""
    parts: dict[str, list[int]] = {name: [] for name in (*shares, "train")}
    for label in sorted(set(files.labels)):
        of_class = [index for index, other in enumerate(files.labels) if other == label]
        if len(of_class) <= len(shares):
            raise ImageError(
                f"{shown(files.files[of_class[0]].parent)} has {len(of_class)} images: too few to "
                f"keep some back for {' and '.join(shares)}"
            )
        by_hash = sorted(
            of_class,
            key=lambda index: hashlib.sha256(
                os.fsencode(files.files[index].relative_to(path).as_posix())
            ).digest(),
        )
        begin = 0
        for name, share in shares.items():
            end = begin + max(1, round(share * len(of_class)))
            parts[name] += by_hash[begin:end]
            begin = end
        parts["train"] += by_hash[begin:]
    return {name: _chosen(files, sorted(indices)) for name, indices in parts.items()}
