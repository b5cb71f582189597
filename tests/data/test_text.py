import itertools
import json
import unicodedata

import numpy as np
import pytest

from zoo import data
from zoo.data import DataError, Vocabulary, vocabularies_from_json, vocabularies_to_json
from zoo.data.sentences import load_language
from zoo.data.text import Windows, encode_characters


def load(**fields):
    return load_language(**{"name": "tiny_shakespeare", **fields})


def test_splits_are_tfds_splits():
    dataset = load(context=1, stride=1)
    sizes = {split: size + 1 for split, size in dataset.sizes.items()}
    assert sizes == {"train": 1_003_854, "validation": 55_770, "test": 55_770}
    assert dataset.model_fields == {"vocab_size": 65}


def test_evaluation_predicts_every_character_but_the_first_once():
    source = Windows(np.arange(23, dtype=np.int32), 5, 5, 5)
    counted = [
        int(target)
        for index in range(len(source))
        for target in source[index]["targets"][source[index]["token_mask"] > 0]
    ]
    assert counted == list(range(1, 23))


def test_a_row_of_a_lane_goes_on_where_it_ended():
    dataset = load(context=16, order="lanes")
    batches = data.train_batches(
        dataset.open("train"), dataset.transform(True), batch_size=4, seed=0, stop=4, order="lanes"
    )
    rows = list(batches)
    assert [row["start"].tolist() for row in rows] == [[1.0] * 4, [0.0] * 4, [0.0] * 4, [0.0] * 4]
    for before, after in itertools.pairwise(rows):
        np.testing.assert_array_equal(before["targets"][:, -1], after["tokens"][:, 0])
    batches.close()


def test_lanes_begin_anew_with_every_epoch():
    text = np.arange(41, dtype=np.int32)
    source, steps = Windows(text, 5, 5, 8), 4
    rows = list(
        data.train_batches(
            source, lambda e, g: e, batch_size=2, seed=0, start=3, stop=5, order="lanes"
        )
    )
    assert rows[0]["tokens"][:, 0].tolist() == [15, 35]
    assert rows[1]["tokens"][:, 0].tolist() == [0, 20]
    assert rows[1]["start"].tolist() == [1, 1]
    assert data.steps_per_epoch(data.examples_per_epoch(8, 2, "lanes"), 2) == steps


def test_a_file_of_ones_own(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("äbc " * 100, encoding="utf-8")
    dataset = load(name="text", path=str(file), context=4)
    assert dataset.vocabularies["characters"].symbols == (" ", "b", "c", "ä")
    window = dataset.open("train")[0]
    assert "".join(dataset.vocabularies["characters"].decode(window["tokens"])) == "äbc "


@pytest.mark.parametrize(
    ("fields", "content", "words"),
    [
        ({"name": "text"}, None, ["needs data.path"]),
        ({"name": "text", "path": "/nowhere.txt"}, None, ["/nowhere.txt", "no such file"]),
        ({"name": "text"}, b"abc\xff def", ["byte 3", "0xff", "iconv"]),
        ({"name": "text", "context": 50}, b"abc" * 10, ["train split", "27", "51"]),
        ({"path": "book.txt"}, None, ["no meaning", "data.name='text'"]),
        ({"name": "tiny_shakespear"}, None, ["Did you mean 'tiny_shakespeare'"]),
        ({"order": "lanes", "stride": 3}, None, ["data.stride=3", "lanes"]),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, fields, content, words):
    if content is not None:
        (tmp_path / "book.txt").write_bytes(content)
        fields = fields | {"path": str(tmp_path / "book.txt")}
    with pytest.raises(DataError) as refusal:
        load(**fields)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_vocabularies_survive_json_and_name_what_they_lack():
    vocabulary = Vocabulary(("<pad>", "ä", "\n"), "character")
    saved = vocabularies_from_json(json.loads(vocabularies_to_json({"characters": vocabulary})))
    assert saved == {"characters": vocabulary}
    assert vocabulary.decode(vocabulary.encode("ä\nä")) == ["ä", "\n", "ä"]
    with pytest.raises(DataError, match=r"3 characters: 'x', 'y'"):
        vocabulary.encode("xäy")


def test_a_file_of_windows_has_the_symbols_of_its_text(tmp_path):
    lines = ["great was we", "älter na\xefve", "old \u2028 nice"] * 40
    plain, windows, mac = (tmp_path / name for name in ("plain.txt", "windows.txt", "mac.txt"))
    plain.write_bytes("\n".join(lines).encode())
    windows.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    mac.write_bytes(unicodedata.normalize("NFD", "\r".join(lines)).encode())
    one, *others = (load(name="text", path=str(file), context=8) for file in (plain, windows, mac))
    for other in others:
        assert other.vocabularies == one.vocabularies
        np.testing.assert_array_equal(other.open("train").text, one.open("train").text)
    known = one.vocabularies["characters"]
    np.testing.assert_array_equal(encode_characters("nai\u0308ve", known), known.encode("na\xefve"))
    # A run on the text of a Mac, made when texts were not composed.
    old = Vocabulary(("a", "e", "i", "n", "v", "\u0308"), "character")
    assert old.decode(encode_characters("nai\u0308ve", old)) == list("nai\u0308ve")
