import re
import unicodedata

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

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
    ("text", "words"),
    [
        # Vowel signs belong to their letters.
        ("मौसम बहुत सुंदर है।", ["मौसम", "बहुत", "सुंदर", "है", "।"]),
        ("vie\u0302t nai\u0308ve e\u0301te\u0301", ["vi\xeat", "na\xefve", "\xe9t\xe9"]),
        # Joiners within a word (Persian, Sinhala) stay, those at its edge do not.
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \u200c\u06a9\u062a\u0627\u0628\u200d",
         ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u06a9\u062a\u0627\u0628"]),
        ("\u0dc1\u0dca\u200d\u0dbb\u0dd3", ["\u0dc1\u0dca\u200d\u0dbb\u0dd3"]),
        # Marks of direction, soft hyphens and marks of bytes are not seen.
        ("\u200f\u05e9\u05c1\u05dc\u05d5\u05dd\u200f! \u2067abc\u2069",
         ["\u05e9\u05c1\u05dc\u05d5\u05dd", "!", "abc"]),
        ("Zu\u00adcker\ufeff\u2060", ["Zucker"]),
        # What a reader sees as one is one: a family, a skin colour, flags, a keycap, a heart.
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f44d\U0001f3fd",
         ["\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd"]),
        ("\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7 1\ufe0f\u20e3 \u2764\ufe0f",
         ["\U0001f1e9\U0001f1ea", "\U0001f1eb\U0001f1f7", "1\ufe0f\u20e3", "\u2764\ufe0f"]),
        # Scripts without spaces: one character each.
        ("我爱北京。Tokyo タワー", ["我", "爱", "北", "京", "。", "Tokyo", "タワー"]),
        ("\u0e2a\u0e27\u0e31", ["\u0e2a", "\u0e27\u0e31"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("a\u2028b\x85c\u00a0d", ["a", "b", "c", "d"]),
    ],
)  # fmt: skip
def test_words_of_other_scripts(text, words):
    assert words_of(text) == words
    assert words_of(unicodedata.normalize("NFD", text)) == words


@hypothesis.given(st.text(st.characters(max_codepoint=0x52F, exclude_categories=["M", "C"])))
def test_words_of_scripts_with_spaces_are_what_they_were(text):
    text = unicodedata.normalize("NFC", text)
    hypothesis.assume(not any(unicodedata.category(c)[0] == "M" for c in text))
    assert words_of(text) == re.findall(r"\w+(?:[-'\u2019]\w+)*|[^\w\s]", text)


def test_words_are_joined_as_their_script_does():
    assert "".join(map(spaced, ["我", "爱", "。", "Tokyo", "है", "।"])) == "我爱。 Tokyo है।"


def test_accents_of_a_mac_give_the_same_data(tmp_path):
    lines = "".join(f"très élève {i} naïve\n" for i in range(200))
    made = []
    for form in ("NFC", "NFD"):
        file = tmp_path / form
        file.write_text(unicodedata.normalize(form, lines), encoding="utf-8")
        made.append(load(name="sentences", path=str(file), context=8))
    one, other = made
    assert one.vocabularies == other.vocabularies
    assert one.sizes == other.sizes
    assert one.open("test").encoded == other.open("test").encoded


def test_a_sentence_may_hold_what_python_takes_for_a_line_end(tmp_path):
    file = tmp_path / "own.txt"
    file.write_bytes("".join(f"eins\u2028zwei\x85drei {i}\r\n" for i in range(200)).encode())
    dataset = load(name="sentences", path=str(file), context=8)
    assert sum(dataset.sizes.values()) == 200
    assert {len(s) for s in dataset.open("train").encoded} == {4}


def test_what_the_context_leaves_out_is_said(tmp_path):
    file = tmp_path / "own.txt"
    lines = [f"kurz {i}" for i in range(150)] + [f"etwas länger ist Satz {i}" for i in range(50)]
    file.write_text("\n".join([*lines, *lines[:7], ""]), encoding="utf-8")
    dataset = load(name="sentences", path=str(file), context=5)
    assert sum(dataset.sizes.values()) == 150
    assert dataset.notes == (
        "7 of 207 sentences are left out: they repeat others",
        "data.context=5 leaves out 50 of 200 sentences, which have 5 words or more",
    )
    assert load(name="sentences", path=str(file), context=6).notes[1:] == ()
    with pytest.raises(DataError, match="data.context=2 leaves out every .* Give at least 3"):
        load(name="sentences", path=str(file), context=2)


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
