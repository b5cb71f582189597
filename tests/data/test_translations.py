"""Pairs of sentences: what is divided how, and how it becomes arrays."""

import json
import re

import numpy as np
import pytest

from zoo.data import DataError
from zoo.data.pairs import BEGIN, END
from zoo.data.translations import divided, encode_sentence, load_translations

LIMITS = {"test": 0.3, "validation": 0.6}


def words(sentence):
    return re.sub(r"\W+", " ", sentence.lower()).strip()


@pytest.fixture(scope="module")
def shipped():
    return load_translations("tatoeba_german_english", vocabulary_size=300, max_source_length=40,
                             max_target_length=30)  # fmt: skip


def texts(dataset, split):
    subwords = dataset.vocabularies["subwords"]
    source = dataset.open(split)
    for index in range(0, len(source), 1 if split != "train" else 7):
        row = source[index]
        targets = [subwords.decode_text(target) for target in row["references"] if target[0]]
        yield subwords.decode_text(row["source"]), targets


def test_no_sentence_is_in_two_splits(shipped):
    seen = {}
    for split in ("train", "validation", "test"):
        for source, targets in texts(shipped, split):
            for sentence in (("de", source), *(("en", target) for target in targets)):
                key = sentence[0], words(sentence[1]) or sentence[1]
                assert seen.setdefault(key, split) == split, key


def test_the_shipped_pairs_are_what_the_files_say(shipped):
    assert sum(shipped.sizes.values()) > 48_000
    assert shipped.sizes["test"] == pytest.approx(0.05 * 50_001, rel=0.15)
    everything = dict(texts(shipped, "test")) | dict(texts(shipped, "validation"))
    assert len(everything) == shipped.sizes["test"] + shipped.sizes["validation"]


def test_equal_words_are_in_one_split_and_a_source_has_all_its_targets():
    pairs = [("Lauf!", "Run!"), ("Lauf.", "run."), ("Renn!", "RUN"), ("Lauf!", "Go!")]
    for limits in ({"test": 0.0, "validation": 0.0}, {"test": 1.0, "validation": 1.0}):
        (split,) = [name for name, kept in divided(pairs, limits).items() if kept]
        assert divided(pairs, limits)[split] == pairs
    # Whatever split "run" and "go" are in, a source is in one of them only.
    for made in (divided(pairs, LIMITS), divided([("a", f"t{i}") for i in range(50)], LIMITS)):
        sources = [{words(source) for source, _ in kept} for kept in made.values()]
        assert sum(map(len, sources)) == len(set().union(*sources))


def own(path, **fields):
    return load_translations(
        "pairs", path=str(path), vocabulary_size=300, **{"validation_fraction": 0.3,
        "test_fraction": 0.3, **fields},
    )  # fmt: skip


def test_own_pairs_become_arrays(tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [{"source": f"eins {i}", "target": f"one {i}"} for i in range(40)]
    rows += [{"source": "viele", "target": f"many {i}"} for i in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = own(file)
    subwords = dataset.vocabularies["subwords"]
    train = dataset.open("train")[0]
    length = int((train["target"] > 0).sum())
    assert train["target"][0] == BEGIN
    assert train["target"][length - 1] == END
    np.testing.assert_array_equal(
        train["target"][1 : length - 1], train["references"][0][: length - 2]
    )
    assert train["references"].shape[0] == 1
    assert subwords.decode_text(train["source"]).startswith(("eins", "viele"))
    # The evaluated splits have one shape, since they share a program.
    shapes = {split: dataset.open(split)[0]["references"].shape for split in ("validation", "test")}
    assert len(set(shapes.values())) == 1
    most = max(sum(r[0] > 0 for r in row["references"]) for row in dataset.open("test"))
    assert most > 1


def test_what_is_too_long_is_left_out_and_said(tmp_path):
    file = tmp_path / "pairs.tsv"
    rows = [(f"eins {i}", f"one {i}") for i in range(60)] + [
        ("sehr " * 30, f"very long {i}") for i in range(9)
    ]
    file.write_text("source\ttarget\n" + "".join(f"{a}\t{b}\n" for a, b in rows))
    notes = " ".join(own(file).notes)
    assert "left out" in notes
    assert "data.max_source_length=12" in notes


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "tatoeba_german_englisch"}, "Did you mean 'tatoeba_german_english'"),
        ({"name": "pairs"}, "needs data.path"),
        ({"name": "tatoeba_german_english", "path": "a.tsv"}, "has no meaning"),
        ({"name": "tatoeba_german_english", "test_fraction": 0.0}, "test split .* is empty"),
    ],
)  # fmt: skip
def test_fields_without_a_meaning_are_refused(fields, said):
    with pytest.raises(DataError, match=said):
        load_translations(**{"vocabulary_size": 260, **fields})


def test_a_sentence_that_does_not_fit_is_refused(shipped):
    subwords = shipped.vocabularies["subwords"]
    assert len(encode_sentence(" Guten Morgen. ", subwords, 40)) == 40
    for text, said in (("  ", "is empty"), ("Donaudampfschiff " * 9, "data.max_source_length=40")):
        with pytest.raises(DataError, match=said):
            encode_sentence(text, subwords, 40)
