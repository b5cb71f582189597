import numpy as np
import pytest

from zoo.data import DataError
from zoo.data.messages import encode_message, load_messages


def load(**fields):
    return load_messages(**{"name": "sms_spam", **fields})


def test_the_shipped_messages_are_divided_with_their_classes():
    dataset = load()
    assert sum(dataset.sizes.values()) == 5574
    assert dataset.vocabularies["classes"].symbols == ("ham", "spam")
    labels = {
        split: np.array([source[i]["label"] for i in range(len(source))])
        for split in dataset.sizes
        for source in [dataset.open(split)]
    }
    assert sum(int(part.sum()) for part in labels.values()) == 747
    for split, part in labels.items():
        assert 0.10 < part.mean() < 0.17, split


def test_equal_texts_are_in_one_part():
    dataset = load()
    texts = {split: {t for t, _ in dataset.open(split).messages} for split in dataset.sizes}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]


def test_long_texts_are_cut_and_empty_ones_are_one_unknown_word():
    words = load().vocabularies["words"]
    cut = encode_message("hello " * 100, words, 8)
    assert cut["length"] == 8
    assert (cut["tokens"] == words.numbers["hello"]).all()
    np.testing.assert_array_equal(encode_message("HELLO", words, 2)["tokens"][0], cut["tokens"][0])
    empty = encode_message("  ", words, 8)
    assert empty["length"] == 1
    np.testing.assert_array_equal(empty["tokens"], [1, 0, 0, 0, 0, 0, 0, 0])


def test_messages_of_ones_own(tmp_path):
    file = tmp_path / "own.csv"
    rows = "".join(f'"note, number {i}",{"ab"[i % 2]}\n' for i in range(200))
    file.write_text("body,kind\n" + rows)
    dataset = load(name="messages", path=str(file), text_column="body", label_column="kind")
    assert sum(dataset.sizes.values()) == 200
    assert dataset.model_fields["num_classes"] == 2
    file.write_text("body,kind\nhello,\n")
    with pytest.raises(DataError, match="line 2: the column 'kind' is empty"):
        load(name="messages", path=str(file), text_column="body", label_column="kind")
    with pytest.raises(DataError, match="needs data.path"):
        load(name="messages")
    with pytest.raises(DataError, match="has no meaning for data.name='sms_spam'"):
        load(path=str(file))
    with pytest.raises(DataError, match="Did you mean 'sms_spam'"):
        load(name="sms_spm")


def test_classes_of_json_are_named_as_json_writes_them(tmp_path):
    file = tmp_path / "own.jsonl"
    for values in (("0", "1"), ("false", "true"), ("-1", "0.5"), ('"no"', "null")):
        file.write_text(
            "".join(f'{{"text": "note {i}", "label": {values[i % 2]}}}\n' for i in range(100))
        )
        if "null" in values:
            with pytest.raises(DataError, match="line 2: the column 'label' is empty"):
                load(name="messages", path=str(file))
        else:
            dataset = load(name="messages", path=str(file))
            assert dataset.vocabularies["classes"].symbols == tuple(sorted(values))
            source = dataset.open("train")
            assert {source[i]["label"].item() for i in range(len(source))} == {0, 1}
