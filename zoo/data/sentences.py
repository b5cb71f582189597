"""Separate sentences as sequences of words."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from zoo.data.datasets import Dataset, token_array
from zoo.data.sources import DataError, Example, split_of
from zoo.data.text import embedded_text, load_text, read_text
from zoo.data.vocabulary import Vocabulary

NAMES = ("sentences", "tatoeba_german")
END, UNKNOWN = 0, 1
SPECIAL = ("<end>", "<unknown>")
# Marks that follow a word without a space.
_CLOSING = frozenset(".,;:!?)\u2019\u201c")
_SHARES = {"test": 0.05, "validation": 0.1}


def load_language(
    name: str,
    *,
    path: str = "",
    context: int = 64,
    eval_context: int = 0,
    stride: int = 0,
    order: str = "shuffled",
    vocabulary_size: int = 8000,
) -> Dataset:
    """Describes a text of characters or sentences of words, depending on the name.

    Args:
        name: see ``zoo.data.text.load_text`` and ``load_sentences``.
        path: see ``load_text`` and ``load_sentences``.
        context: see ``load_text`` and ``load_sentences``.
        eval_context: see ``load_text``.
        stride: see ``load_text``.
        order: see ``load_text``.
        vocabulary_size: see ``load_sentences``.

    Raises:
        DataError: a field has no meaning for sentences, or see ``load_text`` and
            ``load_sentences``.
    """
    if name not in NAMES:
        return load_text(
            name,
            path=path,
            context=context,
            eval_context=eval_context,
            stride=stride,
            order=order,
        )
    for field, value in (("eval_context", eval_context), ("stride", stride)):
        if value:
            raise DataError(f"data.{field} has no meaning for data.name={name!r}: leave it at 0")
    if order != "shuffled":
        raise DataError(f"data.order={order!r} has no meaning for data.name={name!r}")
    return load_sentences(name, path=path, context=context, vocabulary_size=vocabulary_size)


def load_sentences(name: str, *, path: str, context: int, vocabulary_size: int) -> Dataset:
    """Describes sentences for a language model of words.

    The hash of a sentence chooses its split: 5 % are ``test`` and 5 % ``validation``. No sentence
    is in two splits. Words that are rare in the training split share one symbol, ``<unknown>``.

    Args:
        name: ``tatoeba_german`` comes with the package; ``sentences`` is your own file.
        path: the UTF-8 file for ``sentences``, with one sentence a line.
        context: largest number of words in a sentence, its end included; longer sentences are left
            out.
        vocabulary_size: largest number of symbols.

    Raises:
        DataError: the file is absent, not UTF-8 or too short, or a field has no meaning.
    """
    if name == "sentences":
        if not path:
            raise DataError("data.name='sentences' needs data.path: a file with a sentence a line")
        lines = read_text(path).splitlines()
    else:
        if path:
            raise DataError(
                f"data.path={path!r} has no meaning for data.name={name!r}: use "
                "data.name='sentences' for your own sentences"
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
    """Returns the sentences by split in their order, without duplicates."""
    divided: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for sentence in dict.fromkeys(line.strip() for line in sentences):
        if sentence:
            divided[split_of(sentence, _SHARES)].append(sentence)
    return divided


def words_of(sentence: str) -> list[str]:
    """Returns the words and punctuation marks of a sentence, as they are written."""
    return re.findall(r"\w+(?:[-'\u2019]\w+)*|[^\w\s]", sentence)


def frequent_words(texts: Iterable[str], size: int) -> Vocabulary:
    """Returns ``SPECIAL`` and the most frequent words, at most ``size`` symbols together."""
    counts = Counter(word for text in texts for word in words_of(text))
    # Equally frequent words are sorted by name.
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    return Vocabulary((*SPECIAL, *frequent[: size - len(SPECIAL)]), "word")


def encode(sentence: str, vocabulary: Vocabulary) -> list[int]:
    """Returns the numbers of a sentence's words; unknown words become ``UNKNOWN``."""
    return [vocabulary.numbers.get(word, UNKNOWN) for word in words_of(sentence)]


def unknown(text: str, vocabulary: Vocabulary) -> list[str]:
    """Returns the words of a text that are not in the vocabulary."""
    return [word for word in words_of(text) if word not in vocabulary.numbers]


def spaced(word: str) -> str:
    """Returns a word as it follows another: with a space, except before closing marks."""
    return word if word in _CLOSING else f" {word}"


@dataclasses.dataclass(frozen=True)
class Sentences:
    """Examples ``{"tokens", "targets": Int32[length], "token_mask": Float32[length]}``.

    The tokens begin with ``END``, which separates two sentences.
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
