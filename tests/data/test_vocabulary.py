"""Subwords against the definition of byte-pair encoding, and vocabularies on disk."""

import json

import numpy as np
import pytest

from zoo.data import DataError, vocabularies_from_json, vocabularies_to_json
from zoo.data.vocabulary import train_subwords

SPECIAL = ("<pad>", "<begin>", "<end>")
TEXTS = [
    "low low low low low",
    "lower lower newest newest",
    "newest newest widest",
    "widest widest",
]


def test_the_first_merges_are_of_the_pairs_that_occur_most():
    # After the bytes: in "newest" and "widest" e-s (7 times) and then es-t; then l-o-w (7, of
    # which the space is a part of its own pair).
    subwords = train_subwords(TEXTS, 3 + 256 + 4, SPECIAL)
    found = subwords.symbols[3 + 256 :]
    assert {"es", "est"} <= set(found)
    assert subwords.symbols[:3] == SPECIAL


def test_any_text_is_its_subwords():
    subwords = train_subwords(TEXTS, 300, SPECIAL)
    for text in ("low lowest", "日本 😀", "שלום עולם", "tab\tand\nline", "e\u0301"):
        numbers = subwords.encode_text(text)
        assert numbers.dtype == np.int32
        assert numbers.min() >= len(SPECIAL)
        # Accents are composed.
        assert subwords.decode_text(numbers) == text.replace("e\u0301", "\u00e9")
    assert len(subwords.encode_text("")) == 0
    assert len(subwords.encode_text("newest")) < len(subwords.encode_text("xyzxyz"))


def test_special_symbols_are_no_text_and_are_not_shown():
    subwords = train_subwords(TEXTS, 300, SPECIAL)
    low = subwords.encode_text("low").tolist()
    assert subwords.decode_text([1, *low, 2, 0, 0]) == "low"


def test_a_vocabulary_of_subwords_is_saved_and_read():
    subwords = train_subwords(TEXTS, 300, SPECIAL)
    saved = json.loads(vocabularies_to_json({"subwords": subwords}))
    again = vocabularies_from_json(saved)["subwords"]
    assert again == subwords
    assert len(again) == len(subwords) == 300 or len(subwords) < 300
    np.testing.assert_array_equal(again.encode_text("lowest"), subwords.encode_text("lowest"))


@pytest.mark.parametrize(
    "entry",
    [None, [], {}, {"kind": "subword"}, {"kind": "subword", "tokenizer": "{"}, {"symbols": ["a"]},
     {"kind": 3, "symbols": ["a"]}, {"kind": "word", "symbols": ["a", 3]}],
)  # fmt: skip
def test_what_is_no_vocabulary_is_refused(entry):
    with pytest.raises(DataError, match=r"no vocabulary|cannot be read"):
        vocabularies_from_json({"subwords": entry})


def test_a_vocabulary_has_room_for_all_bytes():
    with pytest.raises(DataError, match="data.vocabulary_size=258 must be at least 259"):
        train_subwords(TEXTS, 258, SPECIAL)
