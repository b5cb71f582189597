"""Text files as people have them: their encodings, line ends and forms of characters."""

from __future__ import annotations

import codecs
import os
import unicodedata
from pathlib import Path

from zoo.data.files import check_file, reason_of, shown
from zoo.data.sources import DataError
from zoo.errors import did_you_mean

# The mark of UTF-32 begins with that of UTF-16, so it comes first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# What else people give in place of a text, by its first bytes, and the way out.
_NO_TEXT = (
    (b"\x1f\x8b", "is compressed by gzip: unpack it with `gunzip`"),
    (b"PK\x03\x04", "is a ZIP archive or an Excel workbook: unpack it, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "is an old Excel workbook: save the sheet as CSV"),
    (b"%PDF", "is a PDF file: save its text as UTF-8"),
)
_MARK = "\ufeff"
# Bytes from which the encoding of a file that is not UTF-8 is guessed.
_SAMPLE = 4096


def read_text(path: str | Path, field: str = "data.path") -> str:
    r"""Returns the text of a file; every line ends with ``\n``.

    The file is UTF-8, or UTF-16 or UTF-32 with a byte-order mark. Byte-order marks are left out,
    wherever they stand: programs that join files leave some in the middle. Line ends of Windows and
    of old Macs become ``\n``; other characters at which Python's ``splitlines`` would cut, such as
    U+2028, stay in their lines.

    Args:
        path: the file; ``~`` is the home folder.
        field: the config field that gives the path, for messages; empty if none does.

    Raises:
        DataError: the file is absent, is not a text file, or has another encoding; the message
            names the line, the byte and the fix.
    """
    file = Path(path).expanduser()
    name = f"{field}={shown(path)}" if field else shown(path)
    if not os.path.lexists(file):
        near = [str(other) for other in file.parent.glob("*") if other.is_file()]
        raise DataError(f"{name}: there is no such file.{did_you_mean(str(path), near)}")
    check_file(file, DataError, field)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read: {reason_of(error)}") from error
    for begin, what in _NO_TEXT:
        if content.startswith(begin):
            raise DataError(f"{name} {what}")
    mark, encoding = next((m for m in _MARKS if content.startswith(m[0])), (b"", "utf-8"))
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        at = len(mark) + error.start
        line = 1 + _plain(content[len(mark) : at].decode(encoding, "replace")).count("\n")
        raise DataError(
            f"{name} is not {encoding.upper()}: byte {at} is 0x{content[at]:02x}, in line {line} "
            f"({error.reason}). {_convert(content)}"
        ) from error
    text = _plain(text)
    if "\0" in text:
        line = 1 + text.count("\n", 0, text.index("\0"))
        fix = (
            _convert(content)
            if _wide(content)
            else "It is damaged or no text: NUL characters can be removed with `tr -d '\\000'`"
        )
        raise DataError(f"{name} has {text.count(chr(0))} NUL characters, in line {line}. {fix}")
    return text


def composed(text: str) -> str:
    """Returns a text in Unicode's form NFC, in which an accent and its letter are one character.

    The same text then has the same characters, whatever program wrote it. A Mac's names of files,
    for example, have their accents apart.
    """
    return unicodedata.normalize("NFC", text)


def _plain(text: str) -> str:
    return text.replace(_MARK, "").replace("\r\n", "\n").replace("\r", "\n")


def _wide(content: bytes) -> str:
    """Returns the name of UTF-16 if every other byte of a content is mostly 0, else nothing."""
    for first, encoding in ((1, "utf-16le"), (0, "utf-16be")):
        half = content[first:_SAMPLE:2]
        if half.count(0) > len(half) / 2:
            return encoding
    return ""


def _convert(content: bytes) -> str:
    # Most files of Windows in the west are windows-1252, which has all letters of Latin-1.
    encoding = _wide(content) or "windows-1252"
    return f"Convert it, for example with `iconv -f {encoding} -t utf-8 OLD > NEW`"
