"""Atomic writes, and checksums of a folder's files."""

import json
import os

import pytest

from zoo import files
from zoo.errors import UserError
from zoo.weights.files import check_export, read_weights, write_weights


@pytest.fixture
def sealed(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "numbers").write_bytes(bytes(range(256)) * 20_000)
    (tmp_path / "empty").write_bytes(b"")
    files.seal(tmp_path)
    return tmp_path


def test_the_checksum_is_that_of_xxhash(sealed):
    entries = json.loads((sealed / files.CHECKSUMS).read_text())["files"]
    # The published value for no input (xxHash's own test).
    assert entries["empty"] == {"bytes": 0, "xxh3_128": "99aa06d3014798d86001c324468d497f"}
    assert entries["inner/numbers"]["bytes"] == 5_120_000
    assert entries.keys() == {"empty", "inner/numbers"}
    assert files.damage(sealed) is None


def flip(path, at, bit=0):
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda path: flip(path, 3_000_000), "has other content than was written"),
        (lambda path: os.truncate(path, 100), "is 100 bytes long, not 5120000 bytes long"),
        (lambda path: path.write_bytes(b""), "is empty, not 5120000 bytes long"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: (path.unlink(), path.mkdir()), "is 4096 bytes long|cannot be read|is empty"),
    ],
)
def test_damage_is_named(sealed, change, found):
    change(sealed / "inner" / "numbers")
    assert files.damage(sealed).startswith("inner/numbers ")
    match = files.damage(sealed).removeprefix("inner/numbers ")
    assert any(match.startswith(one) for one in found.split("|"))


def test_damaged_checksums_vouch_for_nothing(sealed):
    path = sealed / files.CHECKSUMS
    whole = path.read_bytes()
    for at in range(len(whole)):
        flip(path, at, bit=at % 8)
        if json.loads(whole) != _parsed(path):
            assert "checksums.json is not what was written" in files.damage(sealed), at
        path.write_bytes(whole)
    path.unlink()
    assert files.damage(sealed) == "checksums.json is missing"


def _parsed(path):
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def test_a_file_that_may_not_be_read_is_not_called_damaged(sealed, monkeypatch):
    def refuse(path, *arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(sealed), "open", refuse)
    with pytest.raises(UserError, match="may not be read: change its permissions"):
        files.damage(sealed)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a" / "b" / "text"
    files.make_folder(path.parent)
    files.make_folder(path.parent)
    files.write_atomically(path, "one")
    with pytest.raises(UnicodeEncodeError):
        files.write_atomically(path, "two\ud800")
    assert path.read_text() == "one"


def test_exported_weights_are_compared_with_their_checksum(tmp_path):
    import numpy as np

    arrays = {"w": np.arange(6.0, dtype=np.float32)}
    path = write_weights(tmp_path / "export", arrays, {"step": 3})
    np.testing.assert_array_equal(read_weights(path)["w"], arrays["w"])
    flip(path, -3)
    with pytest.raises(UserError, match="has other content than was written: export it anew"):
        read_weights(path)
    flip(path.with_name("config.json"), 1)
    with pytest.raises(UserError, match="config.json has other content"):
        check_export(path.with_name("config.json"))
    # A file that came without checksums is read as it is.
    path.with_name(files.CHECKSUMS).unlink()
    assert read_weights(path)["w"].shape == (6,)
    # A second export replaces the first.
    assert write_weights(tmp_path / "export", {"v": arrays["w"]}, {}) == path
    assert read_weights(path).keys() == {"v"}
    assert {file.name for file in path.parent.iterdir()} == {
        "model.safetensors", "config.json", "checksums.json",
    }  # fmt: skip
