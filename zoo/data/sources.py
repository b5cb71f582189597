"""Sources of examples: data sets in the package, prepared TFDS folders, and your own images."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int, UInt8

from zoo.data import folders
from zoo.errors import UserError, did_you_mean

Example = dict[str, Any]

_EMBEDDED = ("mnist_subset",)
_TFDS = ("cifar10", "mnist")
_OWN = ("image_folder", "npz")


class DataError(UserError):
    """Data are absent, or are not what the config says."""


class Source(Protocol):
    """Random access to examples ``{"image": UInt8[height, width, channels], "label": int}``."""

    def __len__(self) -> int:
        """Returns the number of examples."""

    def __getitem__(self, index: int) -> Example:
        """Returns the example at an index below the length."""


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """A description of a data set, known before its examples are read.

    Attributes:
        name: name of the data set.
        sizes: number of examples by split.
        class_names: names of the classes, by label.
        image_shape: height, width and channels.
        notes: see ``zoo.data.Dataset``.
    """

    name: str
    sizes: Mapping[str, int]
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def dataset_names() -> list[str]:
    """Returns the names that ``describe`` and ``open_source`` know."""
    return sorted((*_EMBEDDED, *_OWN, *_TFDS))


def describe(
    name: str,
    *,
    data_dir: str | None = None,
    path: str | None = None,
    validation_fraction: float = 0.0,
    skip_broken: int = 0,
) -> DataInfo:
    """Describes a data set. A missing one is reported at once and without a network.

    Args:
        name: ``mnist_subset`` comes with the package; ``mnist`` and ``cifar10`` are read from a
            prepared TFDS folder; ``image_folder`` and ``npz`` are your own data.
        data_dir: the TFDS folder; None for TFDS's own default.
        path: where the data of ``image_folder`` or ``npz`` are: see ``zoo.data.folders``.
        validation_fraction: share of the train split of a TFDS data set, or of a folder, that
            becomes ``validation``.
        skip_broken: number of broken images that a folder may have; they are left out.

    Raises:
        DataError: the name is unknown, or the data are absent.
    """
    _check(name, path, validation_fraction, skip_broken)
    if name in _OWN:
        classes, splits, notes = _own(name, str(path), validation_fraction, skip_broken)
        sizes = {split: len(source) for split, source in splits.items()}
        return DataInfo(name, sizes, classes, splits["train"][0]["image"].shape, notes)
    if name in _EMBEDDED:
        arrays = _embedded(name)
        sizes = {split: len(arrays[f"{split}_label"]) for split in ("train", "validation", "test")}
        classes = tuple(str(c) for c in np.unique(arrays["train_label"]))
        return DataInfo(name, sizes, classes, arrays["train_image"].shape[1:])
    info = _tfds_builder(_tfds_folder(name, data_dir)).info
    sizes = {split: info.splits[split].num_examples for split in ("train", "test")}
    held_out = len(_held_out(sizes["train"], validation_fraction))
    if held_out:
        sizes = {"train": sizes["train"] - held_out, "validation": held_out, "test": sizes["test"]}
    return DataInfo(
        name, sizes, tuple(info.features["label"].names), tuple(info.features["image"].shape)
    )


def open_source(
    name: str,
    split: str,
    *,
    data_dir: str | None = None,
    path: str | None = None,
    validation_fraction: float = 0.0,
    skip_broken: int = 0,
) -> Source:
    """Opens a split of a data set; examples are decoded on access.

    The validation split of a TFDS data set is drawn from its train split, and ``train`` is then the
    rest. The draw is the same at every call. It is not stratified, because that would need to read
    every label first.

    Args:
        name: see ``describe``.
        split: ``train``, ``validation`` or ``test``.
        data_dir: see ``describe``.
        path: see ``describe``.
        validation_fraction: see ``describe``.
        skip_broken: see ``describe``.

    Raises:
        DataError: see ``describe``, or the data set has no such split.
    """
    info = describe(
        name,
        data_dir=data_dir,
        path=path,
        validation_fraction=validation_fraction,
        skip_broken=skip_broken,
    )
    check_split(name, split, info.sizes)
    if name in _OWN:
        return _own(name, str(path), validation_fraction, skip_broken)[1][split]
    if name in _EMBEDDED:
        arrays = _embedded(name)
        return ArraySource(arrays[f"{split}_image"], arrays[f"{split}_label"])
    folder = _tfds_folder(name, data_dir)
    try:
        source = _tfds_builder(folder).as_data_source("test" if split == "test" else "train")
    except NotImplementedError as error:
        raise DataError(
            f"data.name={name!r} in {folder} is in a format without random access: prepare it "
            f"again with `zoo prepare {name} --data_dir=DIR`, in another folder"
        ) from error
    if split == "test":
        return source
    held_out = _held_out(len(source), validation_fraction)
    if split == "validation":
        return Rows(source, held_out)
    return Rows(source, np.setdiff1d(np.arange(len(source)), held_out)) if len(held_out) else source


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Examples in memory."""

    images: UInt8[np.ndarray, "examples height width channels"]
    labels: UInt8[np.ndarray, " examples"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return {"image": self.images[index], "label": int(self.labels[index])}


@dataclasses.dataclass(frozen=True)
class Rows:
    """A selection of the examples of another source."""

    source: Source
    indices: Int[np.ndarray, " rows"]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.source[int(self.indices[index])]


@dataclasses.dataclass(frozen=True)
class Concatenation:
    """The examples of several sources, one after the other."""

    parts: tuple[Source, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: int) -> Example:
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


def check_split(name: str, split: str, sizes: Mapping[str, int]) -> None:
    """Raises DataError if ``split`` is not in ``sizes``."""
    if split not in sizes:
        hint = " (data.validation_fraction makes one)" if split == "validation" else ""
        known = ", ".join(f"{other} ({size:,})" for other, size in sizes.items())
        raise DataError(f"data.name={name!r} has no split {split!r}{hint}; its splits are {known}")


def _check(name: str, path: str | None, validation_fraction: float, skip_broken: int) -> None:
    if name not in dataset_names():
        raise DataError(f"data.name={name!r} is unknown.{did_you_mean(name, dataset_names())}")
    if name in _OWN and not path:
        raise DataError(f"data.name={name!r} needs data.path, where the images are")
    if path and name not in _OWN:
        raise DataError(f"data.path={path!r} has no meaning for data.name={name!r}: leave it empty")
    if skip_broken and name != "image_folder":
        raise DataError(
            f"data.skip_broken={skip_broken} has no meaning for data.name={name!r}: leave it at 0"
        )
    if not 0 <= validation_fraction < 1:
        raise DataError(
            f"data.validation_fraction={validation_fraction} must be at least 0 and below 1"
        )
    if validation_fraction and name in _EMBEDDED:
        raise DataError(
            f"data.validation_fraction={validation_fraction}: {name!r} has a validation split of "
            "its own; leave the field at 0"
        )


def _own(
    name: str, path: str, validation_fraction: float, skip_broken: int
) -> tuple[tuple[str, ...], Mapping[str, Source], tuple[str, ...]]:
    """Returns the classes, the splits and the notes of the user's own data."""
    where = Path(path).expanduser()
    if name == "image_folder":
        found = folders.read_folder(where, validation_fraction, skip_broken)
        return found.classes, dict(found.splits), found.notes
    classes, arrays = folders.read_npz(where)
    return classes, {split: ArraySource(*pair) for split, pair in arrays.items()}, ()


def _embedded(name: str) -> Mapping[str, np.ndarray]:
    file = importlib.resources.files("zoo.data") / "embedded" / f"{name}.npz"
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
        return dict(arrays)


def _held_out(examples: int, fraction: float) -> Int[np.ndarray, " rows"]:
    chosen = np.random.default_rng(0).permutation(examples)[: round(examples * fraction)]
    return np.sort(chosen)


def _tfds_folder(name: str, data_dir: str | None) -> Path:
    """Returns the folder of the newest prepared version, without importing TFDS."""
    folder = Path(data_dir or _default_data_dir()).expanduser()
    infos = (folder / name).glob("*/dataset_info.json")
    # The name of a folder that is still being written is longer than a version.
    versions = [i.parent for i in infos if re.fullmatch(r"\d+\.\d+\.\d+", i.parent.name)]
    if not versions:
        raise DataError(
            f"data.name={name!r} is not in {folder}: give the TFDS folder that has it with "
            f"--config.data.data_dir=DIR, or make one with `pip install 'jax-model-zoo[prepare]'` "
            f"and `zoo prepare {name} --data_dir=DIR`"
        )
    return max(versions, key=lambda version: tuple(map(int, version.name.split("."))))


def _tfds_builder(folder: Path) -> Any:
    import tensorflow_datasets as tfds

    # Open it by folder: by name, TFDS accepts only the version that it knows itself.
    return tfds.builder_from_directory(str(folder))


def _default_data_dir() -> str:
    return os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")


def split_of(text: str, limits: Mapping[str, float]) -> str:
    """Returns the split of a text, which depends only on the text and the limits.

    Args:
        text: the text; equal texts are in the same split.
        limits: for each split except ``train``, the share of it and the splits before it together.
    """
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    return next((split for split, limit in limits.items() if share < limit), "train")
