"""Separate sentences as sequences of words."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized

import numpy as np
import regex

from zoo.data.datasets import Dataset, token_array
from zoo.data.reading import composed, read_text
from zoo.data.sources import DataError, Example, split_of
from zoo.data.text import load_text, tatoeba_pairs
from zoo.data.vocabulary import Vocabulary

NAMES = ("sentences", "tatoeba_german")
END, UNKNOWN = 0, 1
SPECIAL = ("<end>", "<unknown>")
# Marks that follow a word without a space: of the Latin script, of Arabic, Devanagari, Chinese.
_CLOSING = frozenset(
    ".,;:!?)\u2019\u201c"
    "\u060c\u061b\u061f\u0964\u0965"
    "\u3001\u3002\uff0c\uff0e\uff01\uff1f\uff1a\uff1b\uff09\u300d\u300f\u3011\u300b"
)
# Scripts without spaces between words: Chinese and Japanese, and those of south-east Asia.
_UNSPACED = r"[[\p{Han}&&\p{L}]\p{Hiragana}\p{Line_Break=Complex_Context}]"
# Letters with their marks (a vowel sign of Hindi is one), numbers, and the joiners of Persian.
_LETTER = rf"[[\w\p{{M}}\p{{N}}\u200c\u200d]--{_UNSPACED}]"
_WORD = regex.compile(
    rf"(?={_UNSPACED})\X|{_LETTER}+(?:[-'\u2019]{_LETTER}+)*|(?=[^\s\x1c-\x1f])\X", regex.V1
)
_BEGINS_UNSPACED = regex.compile(_UNSPACED, regex.V1)
# Characters that are not seen and do not part words: marks of direction, soft hyphens and others.
_UNSEEN = dict.fromkeys(
    (0xAD, 0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF)
)
_JOINERS = "\u200c\u200d"
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
        path: the text file for ``sentences``, with one sentence a line; see
            ``zoo.data.reading.read_text``.
        context: largest number of words in a sentence, its end included; longer sentences are left
            out.
        vocabulary_size: largest number of symbols.

    Raises:
        DataError: the file is absent, no text file or too short, or a field has no meaning.
    """
    if name == "sentences":
        if not path:
            raise DataError("data.name='sentences' needs data.path: a file with a sentence a line")
        lines = composed(read_text(path)).split("\n")
    else:
        if path:
            raise DataError(
                f"data.path={path!r} has no meaning for data.name={name!r}: use "
                "data.name='sentences' for your own sentences"
            )
        lines = list(dict.fromkeys(german for german, _ in tatoeba_pairs()))
    divided = divide(lines)
    for split, chosen in divided.items():
        if not chosen:
            raise DataError(f"the {split} split of data.name={name!r} is empty: give more text")
    vocabulary = frequent_words(divided["train"], vocabulary_size)
    encoded = {
        split: [tuple(encode(sentence, vocabulary)) for sentence in chosen]
        for split, chosen in divided.items()
    }
    sources = {
        split: Sentences(tuple(s for s in chosen if len(s) < context), context)
        for split, chosen in encoded.items()
    }
    for split, source in sources.items():
        if not len(source):
            shortest = min(map(len, encoded[split]))
            raise DataError(
                f"data.context={context} leaves out every sentence of the {split} split: the "
                f"shortest has {shortest} words, and its end takes one more place. Give at least "
                f"{shortest + 1}"
            )
    return Dataset(
        name=name,
        sizes={split: len(source) for split, source in sources.items()},
        vocabularies={"words": vocabulary},
        model_fields={"vocab_size": len(vocabulary)},
        open_split=lambda split: sources[split],
        transform=lambda train: lambda example, generator: example,
        notes=_left_out(lines, divided, sources, context),
    )


def _left_out(
    lines: Sequence[str],
    divided: Mapping[str, Sequence[str]],
    sources: Mapping[str, Sized],
    context: int,
) -> tuple[str, ...]:
    """Returns how many sentences are left out, and why."""
    given, once = sum(1 for line in lines if line.strip()), sum(map(len, divided.values()))
    kept = sum(map(len, sources.values()))
    notes = []
    if given > once:
        notes.append(f"{given - once:,} of {given:,} sentences are left out: they repeat others")
    if once > kept:
        notes.append(
            f"data.context={context} leaves out {once - kept:,} of {once:,} sentences, which have "
            f"{context} words or more"
        )
    return tuple(notes)


def divide(sentences: Iterable[str]) -> dict[str, list[str]]:
    """Returns the sentences by split in their order, without duplicates."""
    divided: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for sentence in dict.fromkeys(line.strip() for line in sentences):
        if sentence:
            divided[split_of(sentence, _SHARES)].append(sentence)
    return divided


def words_of(sentence: str) -> list[str]:
    """Returns the words and punctuation marks of a sentence, as they are written.

    A word is a run of letters, marks, digits and joiners, as Unicode defines them (UTS #18), which
    hyphens and apostrophes may continue. In scripts without spaces each character with its marks
    is a word, as in Unicode's default rule (UAX #29). Anything else that is seen is one symbol for
    each character as a reader sees it, such as an emoji of several code points. Texts are composed
    (NFC), and characters that are not seen, such as marks of direction, are left out.
    """
    seen = composed(sentence).translate(_UNSEEN)
    # Joiners at the edge of a word join nothing.
    return [stripped for word in _WORD.findall(seen) if (stripped := word.strip(_JOINERS))]


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
    """Returns a word as it follows another.

    It has a space before it, except for closing marks and characters of scripts without spaces.
    """
    return word if word in _CLOSING or _BEGINS_UNSPACED.match(word) else f" {word}"


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
