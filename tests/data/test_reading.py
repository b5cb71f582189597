import codecs
import unicodedata

import pytest

from zoo.data import DataError
from zoo.data.reading import composed, read_text

TEXT = "première ligne\nदूसरी\u2028ligne\x85\x0b😀\n"


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_same_text_in_every_form(tmp_path, mark, encoding, end):
    file = tmp_path / "a.txt"
    file.write_bytes(mark + TEXT.replace("\n", end).encode(encoding))
    assert read_text(file) == TEXT


def test_marks_within_a_text_are_left_out(tmp_path):
    file = tmp_path / "joined.txt"
    file.write_bytes(2 * (codecs.BOM_UTF8 + b"a\r\n"))
    assert read_text(file) == "a\na\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("Käse\nGrün\n".encode("latin1"), ["byte 1 is 0xe4, in line 1", "iconv -f windows-1252"]),
        (b"a\r\nb\rc\xff", ["byte 6 is 0xff, in line 3"]),
        (codecs.BOM_UTF8 + b"a\n\x80", ["byte 5 is 0x80, in line 2"]),
        ("abc\ndef".encode("utf-16-le"), ["NUL characters, in line 1", "iconv -f utf-16le"]),
        ("grün\n".encode("utf-16-be"), ["iconv -f utf-16be"]),
        (codecs.BOM_UTF16_LE + b"a\0\n\0b\0\x00\xd8", ["UTF-16-LE", "in line 2"]),
        (codecs.BOM_UTF16_LE + b"a\0b", ["UTF-16-LE", "truncated"]),
        (b"one\ntwo\0\0\0\n", ["3 NUL characters, in line 2", "tr -d"]),
        (b"\x1f\x8b\x08rest", ["gzip", "gunzip"]),
        (b"PK\x03\x04rest", ["Excel", "as CSV"]),
    ],
)
def test_what_is_no_text_is_named_with_its_line_and_the_fix(tmp_path, content, words):
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    with pytest.raises(DataError) as refusal:
        read_text(file)
    text = str(refusal.value)
    assert all(word in text for word in [f"data.path={file}", *words]), text


def test_paths_that_are_no_file(tmp_path):
    (tmp_path / "book.txt").write_text("a")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "boook.txt", "there is no such file. Did you mean"),
        (tmp_path / "lost", "there is no such file"),
        (tmp_path / "loop", "cannot be opened"),
        (tmp_path / "book.txt" / "x", "there is no such file"),
        (tmp_path / ("x" * 300), "there is no such file"),
        ("/dev/null", "is a device"),
        ("a\0b", "there is no such file"),
    ):
        with pytest.raises(DataError, match=words):
            read_text(path)


def test_composed_is_what_the_standard_says():
    for text in ("e\u0301", "\u0915\u093c", "\u0958", "\u212b", "한"):
        assert composed(unicodedata.normalize("NFD", text)) == composed(text)
    assert composed("e\u0301") == "\xe9"
