"""Files of images: which lie below a folder, how one is read, and which are broken."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import os
import stat
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from jaxtyping import UInt8, UInt64
from PIL import ExifTags, Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import track

from zoo import process
from zoo.data.files import check_file, leads_nowhere, reason_of, shown
from zoo.errors import UserError

# What Pillow reads by itself. It would start Ghostscript for PostScript, so that is not here.
FORMATS = (
    "AVIF", "BMP", "CUR", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MPO", "PCX",
    "PNG", "PPM", "PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM",
)  # fmt: skip
SUFFIXES = (
    ".apng", ".avif", ".avifs", ".bmp", ".bw", ".cur", ".dds", ".dib", ".gif", ".icb", ".icns",
    ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx",
    ".mpo", ".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".qoi", ".ras", ".rgb",
    ".rgba", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp", ".xbm", ".xpm",
)  # fmt: skip
MOST_PIXELS = 100_000_000

# Folders that systems and programs make beside the user's own, besides those with a dot.
_HIDDEN = (
    "__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found",
)  # fmt: skip
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Numbers of TIFF's tags; SampleFormat 2 is signed, PhotometricInterpretation 0 is white.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
# Files whose reading is shown as one step of the progress bar.
_AT_ONCE = 256

Identity = tuple[int, int]


class ImageError(UserError):
    """Images are absent, cannot be read, or have a layout that the zoo does not know."""


def read_image(file: str | Path, *, quick: bool = False) -> UInt8[np.ndarray, "height width 3"]:
    """Reads an image as a viewer shows it: upright, its first frame, in 8-bit RGB.

    Wide pixels are scaled by their type. 0 is black, and the type's largest number is white.
    Floats have two conventions: white is 1 if no value is above 1.5, else 255.

    Args:
        file: the file.
        quick: read a JPEG at an eighth of its size, which finds out the same damage.

    Raises:
        ImageError: the file is absent, is not an image, is broken, has no pixels or more than 100
            million, or holds floats outside their range.
    """
    check_file(file, ImageError)
    try:
        with Image.open(file) as image:
            width, height = image.size
            if image.format not in FORMATS:
                raise ImageError(
                    f"{shown(file)} is of the format {image.format}, which is not read: make it "
                    "PNG or JPEG"
                )
            if not 0 < width * height <= MOST_PIXELS:
                raise ImageError(
                    f"{shown(file)} has {width} x {height} pixels, "
                    + (
                        f"more than {MOST_PIXELS:,}: make it smaller"
                        if width * height
                        else "so there is nothing to see"
                    )
                )
            if quick:
                image.draft(None, (1, 1))
            image.load()
            turn = _TURNS.get(_orientation(image))
            upright = _rgb(image, shown(file))
            return np.asarray(upright if turn is None else upright.transpose(turn))
    except ImageError:
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ImageError(f"{shown(file)} cannot be read as an image: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{shown(file)} is broken or cut off: {error}") from error
    except Exception as error:  # what a decoder raises for damaged content is not documented
        raise ImageError(f"{shown(file)} is broken or cut off: {error!r}") from error


def _orientation(image: Image.Image) -> int:
    """Returns how a camera was held, as EXIF numbers it; 1, upright, where no number is readable.

    Viewers show images with damaged metadata too.
    """
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, TypeError, ValueError, LookupError, struct.error):
        return 1
    return found if isinstance(found, int) else 1


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        tags = getattr(image, "tag_v2", {})
        gray = _floats(image, name) if image.mode == "F" else _integers(image, tags)
        if image.format == "TIFF" and tags.get(_PHOTOMETRIC) == 0:
            gray = 255 - gray
        return Image.fromarray(gray).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        # Transparent pixels are shown on white.
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _integers(image: Image.Image, tags: Mapping[int, Any]) -> UInt8[np.ndarray, "height width"]:
    # Pillow has 16 bits in all formats but TIFF, which says what it has.
    bits = tags.get(_BITS, (16,))[0]
    signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
    pixels = np.asarray(image)
    if bits == 32 and not signed:
        pixels = pixels.view(np.uint32)
    wide, white = pixels.astype(np.int64), 2 ** (bits - signed) - 1
    # The upper 8 of 16 bits.
    scaled = wide // 257 if white == 65535 else np.round(wide * (255 / white))
    return np.clip(scaled, 0, 255).astype(np.uint8)


def _floats(image: Image.Image, name: str) -> UInt8[np.ndarray, "height width"]:
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise ImageError(f"{name} has values that are not finite")
    low, high = float(values.min()), float(values.max())
    # Half of white on each side is left to filters, which overshoot.
    white = 1 if high <= 1.5 else 255
    if low < -0.5 * white or high > 1.5 * white:
        raise ImageError(
            f"{name} has floats from {low:g} to {high:g}: they must lie between 0 and 1, or "
            "between 0 and 255"
        )
    return np.clip(np.round(values * (255 / white)), 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a folder holds.

    Attributes:
        folders: its folders, also those that links lead to, in the order of their names.
        images: its files with the suffix of an image, in the order of their names.
        left_out: the number of other things, by a word for their kind.
    """

    folders: tuple[Path, ...]
    images: tuple[Path, ...]
    left_out: collections.Counter[str]


def list_folder(folder: Path) -> Listing:
    """Lists a folder; nothing in it is opened.

    Raises:
        ImageError: the folder cannot be listed.
    """
    folders: list[Path] = []
    images: list[Path] = []
    left_out: collections.Counter[str] = collections.Counter()
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ImageError(f"{shown(folder)} cannot be listed: {reason_of(error)}") from error
    for name in names:
        path = folder / name
        if name.startswith(".") or name in _HIDDEN:
            left_out["hidden folders" if path.is_dir() else "hidden files"] += 1
            continue
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            if not leads_nowhere(error):
                raise ImageError(f"{shown(path)}: {reason_of(error)}") from error
            left_out["links that lead nowhere"] += 1
            continue
        suffix = path.suffix.lower()
        if stat.S_ISDIR(mode):
            folders.append(path)
        elif not stat.S_ISREG(mode):
            left_out["FIFOs, sockets and devices"] += 1
        elif suffix in SUFFIXES:
            images.append(path)
        else:
            left_out[
                f"files ending in {shown(suffix)}" if suffix else "files without a suffix"
            ] += 1
    return Listing(tuple(folders), tuple(images), left_out)


def find_images(
    folder: Path, known: Set[Identity], left_out: collections.Counter[str]
) -> list[Path]:
    """Finds the images in a folder and the folders in it, also those that links lead to.

    Args:
        folder: where to look.
        known: folders that are not entered when links lead to them, as ``with_those_above``
            returns them.
        left_out: the number of things that are left out, by kind; what is found is added.

    Raises:
        ImageError: a folder cannot be listed.
    """
    # A link may lead back to a folder above, or to one that is read already: that would have no
    # end, or give images twice.
    entered = known | with_those_above([folder])
    found: list[Path] = []
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        listing = list_folder(here)
        left_out.update(listing.left_out)
        found += listing.images
        for inner in listing.folders:
            if identity(inner) in entered:
                left_out["links to folders that are read already or lie above"] += 1
                continue
            entered |= with_those_above([inner]) if inner.is_symlink() else {identity(inner)}
            waiting.append(inner)
    return sorted(found)


def identity(path: Path) -> Identity:
    """Returns what is the same for all names of a file or folder."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def with_those_above(folders: Iterable[Path]) -> set[Identity]:
    """Returns folders and all that they lie in, after links are followed."""
    real = [Path(os.path.realpath(folder)) for folder in folders]
    return {identity(path) for path in {above for one in real for above in (one, *one.parents)}}


def broken_images(folder: Path, files: Sequence[Path]) -> tuple[dict[Path, str], tuple[str, ...]]:
    """Finds out which images cannot be read, before they are needed.

    Images found whole are remembered in the user's cache folder, by path, size and time of change,
    so that each is read once. What stands there cannot do harm: an entry that is lost or damaged is
    only an image that is read again.

    Args:
        folder: where the files are; there is one file of entries for each folder.
        files: the files to read.

    Returns:
        Why each broken image cannot be read; and what the user should know of this besides.
    """
    name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]
    memory = process.cache_folder() / "images" / f"{name}.whole"
    entries = np.array([_entry(file) for file in files], np.uint64)
    unread = np.flatnonzero(~np.isin(entries, _remembered(memory)))
    if not len(unread):
        return {}, ()
    Image.init()  # before threads do it
    whole = np.ones(len(files), bool)
    whole[unread] = False
    broken = {}
    steps = track(
        range(0, len(unread), _AT_ONCE),
        f"reading {len(unread):,} images once",
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    try:
        # Decoders let other threads run.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for begin in steps:
                some = unread[begin : begin + _AT_ONCE]
                reasons = list(pool.map(_why_broken, [files[index] for index in some]))
                for index, reason in zip(some, reasons, strict=True):
                    whole[index] = not reason
                    if reason:
                        broken[files[index]] = reason
    finally:
        unkept = _remember(memory, entries[whole])
    return broken, unkept


def _why_broken(file: Path) -> str:
    try:
        read_image(file, quick=True)
    except ImageError as error:
        return str(error)
    return ""


def _entry(file: Path) -> int:
    found = os.stat(file)
    seen = f"|{found.st_size}|{found.st_mtime_ns}|{PIL.__version__}".encode()
    digest = hashlib.sha256(os.fsencode(os.path.abspath(file)) + seen).digest()
    return int.from_bytes(digest[:8], "little")


def _remembered(memory: Path) -> UInt64[np.ndarray, " entries"]:
    try:
        content = memory.read_bytes()
    except OSError:  # nothing is remembered, so every image is read
        content = b""
    return np.frombuffer(content[: len(content) // 8 * 8], "<u8")


def _remember(memory: Path, entries: UInt64[np.ndarray, " entries"]) -> tuple[str, ...]:
    """Writes the entries, or says why it cannot."""
    unfinished = memory.with_suffix(f".{os.getpid()}")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(entries.astype("<u8").tobytes())
        unfinished.replace(memory)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        return (f"the next run reads all images again: {memory}: {reason_of(error)}",)
    return ()
