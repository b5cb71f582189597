"""Short texts with one class for each."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from zoo.data.columns import read_columns
from zoo.data.datasets import Dataset, token_array
from zoo.data.reading import composed
from zoo.data.sentences import UNKNOWN, encode, frequent_words, unknown
from zoo.data.sources import DataError, Example, split_of
from zoo.data.text import embedded_text
from zoo.data.vocabulary import Vocabulary
from zoo.errors import did_you_mean

NAMES = ("messages", "sms_spam")
_SHARES = {"test": 0.2, "validation": 0.3}

Messages = Sequence[tuple[str, str]]


def load_messages(
    name: str,
    *,
    path: str = "",
    text_column: str = "text",
    label_column: str = "label",
    max_length: int = 64,
    vocabulary_size: int = 4000,
) -> Dataset:
    """Describes texts and their classes.

    The hash of a text chooses its split: 20 % are ``test`` and 10 % ``validation``. Equal texts are
    in the same split. Words are lower-cased; words that are rare in the training split share one
    symbol.

    Args:
        name: ``sms_spam`` comes with the package; ``messages`` is your own file.
        path: the file for ``messages``: ``.csv`` or ``.tsv`` with a header, or ``.jsonl``; see
            ``zoo.data.columns.read_columns``.
        text_column: name of the column, or key, with the texts.
        label_column: name of the column, or key, with the classes. A number, ``true`` or ``false``
            of JSON is a class of that name.
        max_length: number of words that are read of a text; the rest is ignored.
        vocabulary_size: largest number of symbols.

    Raises:
        DataError: the file is absent, a line is wrong (the message names it), or a field has no
            meaning.
    """
    if name not in NAMES:
        raise DataError(f"data.name={name!r} is unknown.{did_you_mean(name, NAMES)}")
    if name == "sms_spam":
        if path:
            raise DataError(
                f"data.path={path!r} has no meaning for data.name='sms_spam': use "
                "data.name='messages' for your own texts"
            )
        lines = embedded_text("sms_spam.tsv.gz").rstrip("\n").split("\n")
        pairs: Messages = [
            (text, label) for label, _, text in (line.partition("\t") for line in lines)
        ]
    else:
        if not path:
            raise DataError("data.name='messages' needs data.path: a .csv, .tsv or .jsonl file")
        pairs = read_messages(path, text_column, label_column)
    divided = divide(pairs)
    for split, chosen in divided.items():
        if not chosen:
            raise DataError(f"the {split} split of data.name={name!r} is empty: give more texts")
    classes = Vocabulary(tuple(sorted({label for _, label in pairs})), "class name")
    words = frequent_words((text.lower() for text, _ in divided["train"]), vocabulary_size)
    sources = {
        split: Texts(chosen, words, classes, max_length) for split, chosen in divided.items()
    }
    return Dataset(
        name=name,
        sizes={split: len(source) for split, source in sources.items()},
        vocabularies={"classes": classes, "words": words},
        model_fields={"vocab_size": len(words), "num_classes": len(classes)},
        open_split=lambda split: sources[split],
        transform=lambda train: lambda example, generator: example,
    )


@dataclasses.dataclass(frozen=True)
class Texts:
    """Examples ``{"tokens": Int32[length], "length": Int32[], "label": Int32[]}``."""

    messages: Messages
    words: Vocabulary
    classes: Vocabulary
    length: int

    def __len__(self) -> int:
        return len(self.messages)

    def __getitem__(self, index: int) -> Example:
        text, label = self.messages[index]
        return encode_message(text, self.words, self.length) | {
            "label": np.asarray(self.classes.numbers[label], np.int32)
        }


def encode_message(text: str, words: Vocabulary, length: int) -> Example:
    """Returns the ``tokens`` and ``length`` of a text; an empty text is one unknown word."""
    tokens = (encode(text.lower(), words) or [UNKNOWN])[:length]
    return {
        "tokens": token_array(tokens, length),
        "length": np.asarray(len(tokens), np.int32),
    }


def unknown_words(text: str, words: Vocabulary) -> list[str]:
    """Returns the words of a text that are not in the vocabulary."""
    return unknown(text.lower(), words)


def divide(pairs: Messages) -> dict[str, Messages]:
    """Returns the texts and classes by split."""
    divided: dict[str, list[tuple[str, str]]] = {"train": [], "validation": [], "test": []}
    for text, label in pairs:
        divided[split_of(text, _SHARES)].append((text, label))
    return {split: tuple(chosen) for split, chosen in divided.items()}


def read_messages(path: str, text_column: str, label_column: str) -> Messages:
    """Returns the texts and classes of a file.

    Raises:
        DataError: see ``read_columns``, or a cell is empty.
    """
    rows = read_columns(
        path, (text_column, label_column), ("text_column", "label_column"), values=(label_column,)
    )
    for number, row in rows:
        for column, cell in row.items():
            if not cell.strip():
                raise DataError(f"{path}, line {number}: the column {column!r} is empty")
    return [(composed(row[text_column]), composed(row[label_column])) for _, row in rows]
