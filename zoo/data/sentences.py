"""Sentences as sequences of words, each by itself."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from zoo.data.datasets import Dataset, token_array
from zoo.data.sources import DataError, Example, split_of
from zoo.data.text import embedded_text, load_text, read_text
from zoo.data.vocabulary import Vocabulary

NAMES = ("sentences", "tatoeba_german")
END, UNKNOWN = 0, 1
SPECIAL = ("<end>", "<unknown>")
# Marks that stand right after a word.
_CLOSING = frozenset(".,;:!?)\u2019\u201c")
_SHARES = {"test": 0.05, "validation": 0.1}


def load_language(name: str, *, vocabulary_size: int = 8000, **fields: Any) -> Dataset:
    """Describes a text of characters or sentences of words, by the name: see both.

    Raises:
        DataError: a field has no meaning for the other, or see there.
    """
    if name not in NAMES:
        return load_text(name, **fields)
    for field in ("eval_context", "stride"):
        if fields.pop(field, 0):
            raise DataError(f"data.{field} has no meaning for data.name={name!r}: leave it at 0")
    if (order := fields.pop("order", "shuffled")) != "shuffled":
        raise DataError(f"data.order={order!r} has no meaning for data.name={name!r}")
    return load_sentences(name, vocabulary_size=vocabulary_size, **fields)


def load_sentences(
    name: str, *, path: str = "", context: int = 24, vocabulary_size: int = 8000
) -> Dataset:
    """Describes sentences for a language model of words.

    A sentence is divided by a hash of its text: 5 % are ``test``, 5 % ``validation``, and none is
    in two parts. Words that are rare in the training part are one symbol, ``<unknown>``.

    Args:
        name: ``tatoeba_german`` comes with the package; ``sentences`` is a file of one's own.
        path: the file of ``sentences``, one a line, in UTF-8.
        context: most words of a sentence and its end; longer ones are left out.
        vocabulary_size: number of symbols in all.

    Raises:
        DataError: the file is absent, not UTF-8 or too short, or a field has no meaning.
    """
    if name == "sentences":
        if not path:
            raise DataError("data.name='sentences' needs data.path: a text file, a sentence a line")
        lines = read_text(path).splitlines()
    else:
        if path:
            raise DataError(
                f"data.path={path!r} has no meaning for data.name={name!r}: for sentences of your "
                "own take data.name='sentences'"
            )
        lines = embedded_text("tatoeba_german.txt.gz").splitlines()
    divided = divide(lines)
    for split, chosen in divided.items():
        if not chosen:
            raise DataError(f"the {split} split of data.name={name!r} is empty: give more text")
    vocabulary = frequent_words(divided["train"], vocabulary_size)
    sources = {
        split: Sentences(tuple(encode(sentence, vocabulary) for sentence in chosen), context)
        for split, chosen in (
            (split, [s for s in chosen if len(words_of(s)) < context])
            for split, chosen in divided.items()
        )
    }
    return Dataset(
        name=name,
        sizes={split: len(source) for split, source in sources.items()},
        vocabularies={"words": vocabulary},
        model_fields={"vocab_size": len(vocabulary)},
        open_split=lambda split: sources[split],
        transform=lambda train: lambda example, generator: example,
    )


def divide(sentences: Iterable[str]) -> dict[str, list[str]]:
    """Returns the sentences by split, each once, in their order."""
    divided: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for sentence in dict.fromkeys(line.strip() for line in sentences):
        if sentence:
            divided[split_of(sentence, _SHARES)].append(sentence)
    return divided


def words_of(sentence: str) -> list[str]:
    """Returns words and punctuation marks, as they are written."""
    return re.findall(r"\w+(?:[-'\u2019]\w+)*|[^\w\s]", sentence)


def frequent_words(texts: Iterable[str], size: int) -> Vocabulary:
    """Returns ``SPECIAL`` and the most frequent words, ``size`` symbols at most in all."""
    counts = Counter(word for text in texts for word in words_of(text))
    # Equally frequent ones by name.
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    return Vocabulary((*SPECIAL, *frequent[: size - len(SPECIAL)]), "word")


def encode(sentence: str, vocabulary: Vocabulary) -> list[int]:
    """Returns the numbers of a sentence's words; those that are not known are ``UNKNOWN``."""
    return [vocabulary.numbers.get(word, UNKNOWN) for word in words_of(sentence)]


def spaced(word: str) -> str:
    """Returns a word as it goes on after another: a space before it, but not before most marks."""
    return word if word in _CLOSING else f" {word}"


@dataclasses.dataclass(frozen=True)
class Sentences:
    """Examples ``{"tokens", "targets": Int32[length], "token_mask": Float32[length]}``.

    The tokens begin with ``END``: it stands between two sentences.
    """

    encoded: Sequence[Sequence[int]]
    length: int

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> Example:
        sentence = self.encoded[index]
        return {
            "tokens": token_array([END, *sentence], self.length, END),
            "targets": token_array([*sentence, END], self.length, END),
            "token_mask": (np.arange(self.length) <= len(sentence)).astype(np.float32),
        }
