import numpy as np
import pytest

from zoo.data import DataError
from zoo.data.sentences import (
    END,
    UNKNOWN,
    Sentences,
    divide,
    encode,
    load_language,
    spaced,
    words_of,
)


def load(**fields):
    return load_language(**{"name": "tatoeba_german", **fields})


def test_no_sentence_is_in_two_parts():
    dataset = load(context=100, vocabulary_size=100_000)
    parts = {split: {tuple(s) for s in dataset.open(split).encoded} for split in dataset.sizes}
    assert min(map(len, parts.values())) > 1500
    # A test word that training never shows is unknown: sentences with one may look alike.
    known = {split: {s for s in found if UNKNOWN not in s} for split, found in parts.items()}
    assert not known["train"] & known["test"]
    assert not known["train"] & known["validation"]
    assert not known["validation"] & known["test"]


def test_the_same_sentence_is_always_in_the_same_part():
    sentences = [f"Satz {i}." for i in range(300)]
    whole, half = divide(sentences), divide([*sentences[::2], *sentences[:50]])
    assert sum(map(len, whole.values())) == 300
    for split, found in half.items():
        assert set(found) <= set(whole[split])


def test_words_and_marks_as_they_are_written():
    text = "Geht's gut, O-Ton \u201eja\u201c?"
    words = words_of(text)
    assert words == ["Geht's", "gut", ",", "O-Ton", "\u201e", "ja", "\u201c", "?"]
    assert "".join(map(spaced, ["Komm", ",", "bald", "!"])) == " Komm, bald!"


def test_an_example_predicts_every_word_and_the_end():
    example = Sentences(((5, 6, 7),), 6)[0]
    np.testing.assert_array_equal(example["tokens"], [END, 5, 6, 7, END, END])
    np.testing.assert_array_equal(example["targets"][:4], [5, 6, 7, END])
    np.testing.assert_array_equal(example["token_mask"], [1, 1, 1, 1, 0, 0])


def test_the_vocabulary_is_the_frequent_words_of_the_training_part():
    dataset = load(vocabulary_size=500)
    words = dataset.vocabularies["words"]
    assert len(words) == 500
    assert words.symbols[:2] == ("<end>", "<unknown>")
    assert words.symbols[2] == "."
    assert encode("Tom Xyzzy .", words)[1] == UNKNOWN
    assert encode("Tom Xyzzy .", words)[2] == 2


def test_sentences_of_ones_own(tmp_path):
    file = tmp_path / "own.txt"
    file.write_text("".join(f"Das ist Satz {i} .\n" for i in range(200)))
    dataset = load(name="sentences", path=str(file), context=8)
    assert sum(dataset.sizes.values()) == 200
    file.write_bytes(b"Das ist gut.\n\xff\n")
    with pytest.raises(DataError, match="byte 13 is 0xff"):
        load(name="sentences", path=str(file))
    file.write_text("Nur einer.\n")
    with pytest.raises(DataError, match="split of data.name='sentences' is empty"):
        load(name="sentences", path=str(file))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "sentences"}, "needs data.path"),
        ({"path": "a.txt"}, "has no meaning for data.name='tatoeba_german'"),
        ({"stride": 3}, "data.stride has no meaning"),
        ({"order": "lanes"}, "data.order='lanes' has no meaning"),
        ({"name": "tiny_shakespear"}, "Did you mean 'tiny_shakespeare'"),
    ],
)
def test_what_has_no_meaning_is_refused(fields, words):
    with pytest.raises(DataError, match=words):
        load(**fields)
