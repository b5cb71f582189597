"""Files of images: pixels of every type as they look, and damage that is named."""

import io
import os
import socket
import struct
import zlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image, ImageOps

from zoo.data.image_files import SUFFIXES, ImageError, read_image

SHADES = np.array([[0, 1, 64, 100], [127, 128, 200, 255]], np.uint8)


def tiff(array, *, white_is_zero=False, bits=None):
    """Returns a TIFF of one strip, written from the standard (Adobe, TIFF 6.0, section 2)."""
    kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    height, width = array.shape
    tags = {
        256: width, 257: height, 258: bits or 8 * array.itemsize, 259: 1,
        262: 0 if white_is_zero else 1, 273: 8, 277: 1, 278: height, 279: array.nbytes, 339: kind,
    }  # fmt: skip
    content = array.astype(array.dtype.newbyteorder("<")).tobytes()
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHI", b"II", 42, 8 + len(content))
    return head + content + struct.pack("<H", len(tags)) + entries + bytes(4)


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def pgm(array, largest):
    return b"P5 %d %d %d\n" % (*array.shape[::-1], largest) + array.astype(">u2").tobytes()


def read(tmp_path, content, name="a.tif"):
    (tmp_path / name).write_bytes(content)
    return read_image(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        png(SHADES.astype(np.uint16) * 257),
        tiff(SHADES.astype(np.uint16) * 257),
        tiff(np.round(SHADES * (32767 / 255)).astype(np.int16)),
        tiff(np.round(SHADES * ((2**31 - 1) / 255)).astype(np.int32)),
        tiff(np.round(SHADES * ((2**32 - 1) / 255)).astype(np.uint32)),
        tiff((SHADES / 255).astype(np.float32)),
        tiff(SHADES.astype(np.float32)),
        tiff((255 - SHADES).astype(np.uint16) * 257, white_is_zero=True),
        pgm(SHADES.astype(np.uint16) * 257, 65535),
        pgm(SHADES.astype(np.uint16) * 16, 255 * 16),
    ],
    ids=["png", "u16", "i16", "i32", "u32", "unit", "float", "white", "pgm", "pgm12"],
)
def test_wide_pixels_are_scaled_by_their_type(tmp_path, content):
    found = read(tmp_path, content)
    np.testing.assert_array_equal(found, np.repeat(SHADES[..., None], 3, axis=-1))


@pytest.mark.parametrize(
    ("content", "mean"),
    [
        (png(np.arange(256, dtype=np.uint16).reshape(16, 16)), 0),
        (png(np.arange(256, dtype=np.uint16).reshape(16, 16) * 16), 7.5),
        (tiff(np.full((2, 2), 1000, np.int32)), 0),
        (tiff(np.full((2, 2), -1000, np.int32)), 0),
        (tiff(np.full((2, 2), 0.5, np.float32)), 128),
        # A filter leaves values somewhat outside the range.
        (tiff(np.array([[-0.1, 1.1]], np.float32)), 127.5),
    ],
    ids=["16 bits", "12 of 16 bits", "32 bits", "negative", "half", "beyond"],
)
def test_dark_images_stay_dark(tmp_path, content, mean):
    assert abs(read(tmp_path, content).mean() - mean) < 0.5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, np.nan], "not finite"),
        ([0, np.inf], "not finite"),
        ([-1, 1], "floats from -1 to 1"),
        ([0, 40_000], "floats from 0 to 40000"),
    ],
)
def test_floats_without_a_known_white_are_named(tmp_path, values, words):
    with pytest.raises(ImageError, match=rf"a\.tif has .*{words}"):
        read(tmp_path, tiff(np.array([values], np.float32)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_images_are_upright(tmp_path, orientation, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a{suffix}", exif=exif)
    with Image.open(tmp_path / f"a{suffix}") as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), expected)


def test_damaged_metadata_does_not_hide_an_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=b"Exif\0\0II no EXIF")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)


@pytest.mark.parametrize(
    "suffix",
    [
        ".apng", ".avif", ".bmp", ".dds", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe",
        ".jpeg", ".jpg", ".mpo", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi",
        ".tga", ".tif", ".tiff", ".webp", ".xbm",
    ],
)  # fmt: skip
def test_what_pillow_writes_is_read(tmp_path, suffix):
    assert suffix in SUFFIXES
    mode = {".pbm": "1", ".xbm": "1", ".pgm": "L"}.get(suffix, "RGB")
    # A bright half above a dark one; every format keeps that.
    pixels = np.repeat(np.repeat([[250], [5]], 16, axis=0), 32, axis=1).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / f"a{suffix}")
    found = read_image(tmp_path / f"a{suffix}")
    assert found.shape == (32, 32, 3)
    halves = found[:12].mean(), found[20:].mean()
    assert max(halves) > 240
    assert min(halves) < 15


def chunk(name, content):
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


@pytest.mark.parametrize(("width", "height"), [(5, 0), (0, 5), (60_000, 60_000)])
def test_impossible_sizes_are_named(tmp_path, width, height):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    content = (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    with pytest.raises(ImageError, match=r"a\.png"):
        read(tmp_path, content, "a.png")
    bitmap = struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54)
    bitmap += struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    with pytest.raises(ImageError, match=r"b\.bmp"):
        read(tmp_path, bitmap, "b.bmp")


def test_a_program_that_looks_like_an_image_is_not_run(tmp_path):
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(ImageError, match=r"a\.png is of the format EPS"):
        read(tmp_path, script, "a.png")


def test_what_is_no_file_is_not_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("b.png")
    for name, words in (
        ("a.png", "is a FIFO"), ("b.png", "is a socket"), ("/dev/zero", "is a device"),
        (".", "is a folder"), ("a.png/b.png", "there is no such file"), ("n" * 300, "too long"),
        ("a\0.png", "null"),
    ):  # fmt: skip
        with pytest.raises(ImageError, match=words):
            read_image(name)


def encoded(kind):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


WHOLE = {
    kind: encoded(kind)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "JPEG2000")
}


@hypothesis.given(
    kind=st.sampled_from(sorted(WHOLE)),
    cut=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.binary(min_size=1, max_size=8)), max_size=6),
)
@hypothesis.settings(max_examples=300)
def test_a_damaged_image_is_read_or_named(tmp_path_factory, kind, cut, changes):
    content = bytearray(WHOLE[kind])
    for where, replaced in changes:
        at = int(where * len(content))
        content[at : at + len(replaced)] = replaced
    file = tmp_path_factory.getbasetemp() / "damaged"
    file.write_bytes(content[: round(cut * len(content))] if not changes else content)
    results = []
    for quick in (False, True):
        try:
            found = read_image(file, quick=quick)
            results.append((found.dtype, found.ndim, found.size > 0))
        except ImageError as error:
            results.append("named" if str(file) in str(error) else str(error))
    assert results[0] == results[1], "the quick pass finds the same damage"
    assert results[0] in ("named", (np.uint8, 3, True))
