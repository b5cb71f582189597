import unicodedata

import numpy as np
import pytest

from zoo.data import DataError
from zoo.data.pairs import BEGIN, END, encode_source, load_pairs, read_cmudict


def load(**fields):
    return load_pairs(**{"name": "cmudict", **fields})


def test_the_dictionary_is_read_with_all_pronunciations():
    text = "read R EH1 D\nread(2) R IY1 D # a comment\na.m. EY2 EH1 M\nit's IH1 T S\n"
    assert read_cmudict(text) == {
        "read": [("R", "EH", "D"), ("R", "IY", "D")],
        "it's": [("IH", "T", "S")],
    }
    assert read_cmudict(text, stress=True)["it's"] == [("IH1", "T", "S")]


def test_no_word_is_in_two_splits_and_all_phonemes_are_there():
    dataset = load()
    letters = dataset.vocabularies["source"]
    words = {
        split: {
            "".join(letters.decode([t for t in source[i]["source"] if t]))
            for i in range(0, len(source), 7)
        }
        for split in dataset.sizes
        for source in [dataset.open(split)]
    }
    assert not words["train"] & words["test"]
    assert not words["train"] & words["validation"]
    assert len(dataset.vocabularies["target"]) == 39 + 3


def test_an_example_has_begin_end_and_all_references():
    dataset = load()
    source = dataset.open("test")
    index = next(i for i in range(len(source)) if len(source.pairs[i][1]) == 2)
    word, targets = source.pairs[index]
    example = source[index]
    phonemes = dataset.vocabularies["target"]
    length = len(targets[0])
    assert example["target"][0] == BEGIN
    assert example["target"][length + 1] == END
    assert not example["target"][length + 2 :].any()
    for row, target in zip(example["references"], targets, strict=False):
        assert tuple(phonemes.decode(row[row > 0])) == target
    np.testing.assert_array_equal(
        encode_source(word, dataset.vocabularies["source"], 20), example["source"]
    )


def test_files_of_ones_own(tmp_path):
    rows = [(f"w{chr(97 + i % 26)}{chr(97 + i // 26)}", f"x{i % 3} y") for i in range(200)]
    tsv, jsonl = tmp_path / "pairs.tsv", tmp_path / "pairs.jsonl"
    tsv.write_text("source\ttarget\n" + "".join(f"{a}\t{b}\n" for a, b in rows))
    jsonl.write_text("".join(f'{{"source": "{a}", "target": "{b}"}}\n' for a, b in rows))
    one, two = (
        load(name="pairs", path=str(file), test_fraction=0.2, validation_fraction=0.2)
        for file in (tsv, jsonl)
    )
    assert one.sizes == two.sizes
    assert sum(one.sizes.values()) == 200
    assert one.vocabularies["target"].symbols[3:] == ("x0", "x1", "x2", "y")
    letters = load(
        name="pairs", path=str(tsv), target_symbols="characters", test_fraction=0.2,
        validation_fraction=0.2,
    )  # fmt: skip
    assert letters.vocabularies["target"].symbols[3:] == (" ", "0", "1", "2", "x", "y")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("pairs.txt", "a,b", [".csv, .tsv or .jsonl"]),
        ("pairs.tsv", "", ["is empty"]),
        ("pairs.tsv", "source\ttarget\na\n", ["line 2", "1 columns"]),
        ("pairs.tsv", "sorce\ttarget\na\tb\n", ["'source'", "Did you mean 'sorce'"]),
        ("pairs.jsonl", '{"source": "a", "target": 3}\n', ["line 1", "'target'"]),
        ("pairs.jsonl", "{oops\n", ["line 1", "not JSON"]),
    ],
)
def test_a_wrong_line_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as refusal:
        load(name="pairs", path=str(tmp_path / name))
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_unknown_letters_and_long_words_are_named():
    letters = load().vocabularies["source"]
    with pytest.raises(DataError, match="'ï'"):
        encode_source("naïve", letters, 20)
    with pytest.raises(DataError, match="between 1 and 3"):
        encode_source("abcd", letters, 3)


def test_what_is_left_out_is_said_with_its_field(tmp_path):
    file = tmp_path / "pairs.tsv"
    words = [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(200)]
    rows = [f"{word}\tx y" for word in words] + [f"{word * 3}\tx y" for word in words[:20]]
    rows += [f"{word}\t{'z ' * 5}" for word in words[:10]] + ["\tx", "w\t "]
    file.write_text("source\ttarget\n" + "\n".join(rows))

    def own(**fields):
        return load(name="pairs", path=str(file), **fields)

    shares = {"test_fraction": 0.2, "validation_fraction": 0.2}
    assert own(**shares).notes == ("2 pairs with an empty source or target are left out",)
    dataset = own(max_source_length=8, max_target_length=4, **shares)
    assert sum(dataset.sizes.values()) == 200
    assert dataset.notes[1:] == (
        "data.max_source_length=8 leaves out 20 of 232 pairs, whose source has 9 to 9 characters",
        "data.max_target_length=4 leaves out 10 of 232 pairs, whose target has 5 to 5 symbols",
    )
    for fields, words in (
        ({"max_source_length": 2}, "no pair is left: .*data.max_source_length=2 leaves out 230"),
        ({"max_target_length": 1}, "no pair is left: .*data.max_target_length=1 leaves out 230"),
        ({"test_fraction": 0.0}, "the test split .* raise data.test_fraction=0.0"),
        ({"validation_fraction": 0.0}, "the validation split .* raise data.validation_fraction=0"),
        ({"test_fraction": 0.999, "max_source_length": 8},
         "the train split .* give more pairs; .*data.max_source_length=8 leaves out 20"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=words):
            own(**{**shares, **fields})


def test_a_source_is_the_same_however_its_accents_are_written(tmp_path):
    rows = "".join(f"na\xefve {i}\t\xe9\n" for i in range(200))
    file = tmp_path / "pairs.tsv"
    made = []
    for form in ("NFC", "NFD"):
        file.write_text("source\ttarget\n" + unicodedata.normalize(form, rows), encoding="utf-8")
        made.append(load(name="pairs", path=str(file), test_fraction=0.2, validation_fraction=0.2))
    assert made[0].vocabularies == made[1].vocabularies
    assert made[0].sizes == made[1].sizes
    letters = made[0].vocabularies["source"]
    np.testing.assert_array_equal(
        encode_source("nai\u0308ve 1", letters, 20), encode_source("na\xefve 1", letters, 20)
    )
