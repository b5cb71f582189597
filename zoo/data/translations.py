"""Pairs of sentences in two languages."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int32

from zoo.data.columns import read_columns
from zoo.data.datasets import Dataset, token_array
from zoo.data.pairs import BEGIN, END, SPECIAL
from zoo.data.reading import composed
from zoo.data.sources import DataError, Example, split_of
from zoo.data.text import tatoeba_pairs
from zoo.data.vocabulary import Subwords, train_subwords
from zoo.errors import did_you_mean

NAMES = ("tatoeba_german_english", "pairs")

# A sentence and its translation.
Pair = tuple[str, str]
# The subwords of both sides of each pair.
Encoded = Mapping[Pair, tuple[np.ndarray, np.ndarray]]
# The subwords of each source and of its targets.
Rows = tuple[tuple[np.ndarray, tuple[np.ndarray, ...]], ...]


def load_translations(
    name: str,
    *,
    path: str = "",
    source_column: str = "source",
    target_column: str = "target",
    vocabulary_size: int = 3000,
    max_source_length: int = 12,
    max_target_length: int = 10,
    validation_fraction: float = 0.02,
    test_fraction: float = 0.05,
) -> Dataset:
    """Describes sentences and their translations as subwords; both languages share one vocabulary.

    The hash of a target sentence chooses its split, whatever its case and punctuation. A source of
    ``validation`` or ``test`` is in no other split, and has all its translations of that split as
    references. So nothing that is evaluated was seen in training, on either side.

    The subwords are those of the training sentences; see ``zoo.data.vocabulary.train_subwords``.
    Pairs that exceed one of the largest lengths, or have nothing on one side, are left out; the
    notes of the data set say how many.

    Args:
        name: ``tatoeba_german_english`` comes with the package, short sentences from German to
            English; ``pairs`` is your own file.
        path: the file for ``pairs``: ``.csv`` or ``.tsv`` with a header, or ``.jsonl``; see
            ``zoo.data.columns.read_columns``.
        source_column: name of the column, or key, with the sentences to translate.
        target_column: name of the column, or key, with the translations.
        vocabulary_size: number of subwords.
        max_source_length: largest number of subwords in a source.
        max_target_length: largest number of subwords in a target.
        validation_fraction: share of the target sentences in ``validation``.
        test_fraction: share of the target sentences in ``test``.

    Raises:
        DataError: the file is absent, a line is wrong (the message names it), a field has no
            meaning, or no pair is left for a split.
    """
    if name not in NAMES:
        raise DataError(f"data.name={name!r} is unknown.{did_you_mean(name, NAMES)}")
    limits = {"test": test_fraction, "validation": test_fraction + validation_fraction}
    given = divided(_read(name, path, source_column, target_column), limits)
    # A source has many targets, so a sentence counts once for each of its pairs.
    subwords = train_subwords(
        (text for pair in given["train"] for text in pair), vocabulary_size, SPECIAL
    )
    rows: dict[str, Rows] = {}
    notes = []
    for split, pairs in given.items():
        encoded = {
            pair: (subwords.encode_text(pair[0]), subwords.encode_text(pair[1])) for pair in pairs
        }
        kept = {
            pair: numbers
            for pair, numbers in encoded.items()
            if 0 < len(numbers[0]) <= max_source_length and 0 < len(numbers[1]) <= max_target_length
        }
        if len(kept) < len(pairs):
            longest = [max(len(numbers[side]) for numbers in encoded.values()) for side in (0, 1)]
            notes.append(
                f"{len(pairs) - len(kept):,} of {len(pairs):,} pairs of the {split} split are left "
                f"out: they have nothing on one side, or more subwords than "
                f"data.max_source_length={max_source_length} or "
                f"data.max_target_length={max_target_length}; the longest have {longest[0]} and "
                f"{longest[1]}"
            )
        if not kept:
            raise DataError(
                f"the {split} split of data.name={name!r} is empty: "
                + "; ".join(("give more pairs", *notes))
            )
        # In training each pair is an example; in evaluation each source is one.
        rows[split] = _apart(kept) if split == "train" else _by_source(kept)
    # Evaluation has one program, and so one shape, for all of its splits.
    most = max(len(targets) for split in ("validation", "test") for _, targets in rows[split])
    splits = {
        split: _Translations(
            chosen, max_source_length, max_target_length, 1 if split == "train" else most
        )
        for split, chosen in rows.items()
    }
    return Dataset(
        name=name,
        sizes={split: len(source) for split, source in splits.items()},
        vocabularies={"subwords": subwords},
        # A model has a vocabulary for each language, or one for both.
        model_fields=dict.fromkeys(
            ("source_vocab_size", "target_vocab_size", "vocab_size"), len(subwords)
        ),
        open_split=lambda split: splits[split],
        transform=lambda train: lambda example, generator: example,
        notes=tuple(notes),
    )


def divided(pairs: list[Pair], limits: Mapping[str, float]) -> dict[str, list[Pair]]:
    """Returns the pairs of each split, without those whose source is in an evaluated split too.

    Args:
        pairs: the pairs.
        limits: see ``zoo.data.sources.split_of``.
    """
    names = ("test", "validation", "train")
    by_split: dict[str, list[Pair]] = {split: [] for split in names}
    for source, target in pairs:
        by_split[split_of(_words(target), limits)].append((source, target))
    evaluated: set[str] = set()
    for split in names:
        kept = [pair for pair in by_split[split] if _words(pair[0]) not in evaluated]
        evaluated |= {_words(source) for source, _ in kept}
        by_split[split] = kept
    return {split: by_split[split] for split in ("train", "validation", "test")}


def _words(sentence: str) -> str:
    """Returns a sentence without its case and punctuation."""
    return " ".join(re.findall(r"\w+", sentence.casefold())) or sentence


def _read(name: str, path: str, source_column: str, target_column: str) -> list[Pair]:
    """Returns the pairs, each once, in their order."""
    if name == "pairs":
        if not path:
            raise DataError("data.name='pairs' needs data.path: give a .csv, .tsv or .jsonl file")
        columns = (source_column, target_column)
        rows = read_columns(path, columns, ("source_column", "target_column"))
        pairs = [(row[source_column], row[target_column]) for _, row in rows]
    else:
        if path:
            raise DataError(
                f"data.path={path!r} has no meaning for data.name={name!r}: use data.name='pairs' "
                "for your own pairs"
            )
        pairs = tatoeba_pairs()
    return list(
        dict.fromkeys(
            (composed(source.strip()), composed(target.strip())) for source, target in pairs
        )
    )


def _apart(encoded: Encoded) -> Rows:
    """Returns a row of each pair."""
    return tuple((source, (target,)) for source, target in encoded.values())


def _by_source(encoded: Encoded) -> Rows:
    """Returns a row of each source, with all of its targets."""
    found: dict[str, tuple[np.ndarray, list[np.ndarray]]] = {}
    for (text, _), (source, target) in encoded.items():
        found.setdefault(text, (source, []))[1].append(target)
    return tuple((source, tuple(targets)) for source, targets in found.values())


@dataclasses.dataclass(frozen=True)
class _Translations:
    """Examples as arrays.

    ``source`` is Int32[source_length]. ``target`` is Int32[target_length + 2]: the first target
    between begin and end. ``references`` is Int32[targets, target_length]: all targets.
    """

    rows: Rows
    source_length: int
    target_length: int
    most_targets: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        source, targets = self.rows[index]
        references = np.zeros((self.most_targets, self.target_length), np.int32)
        for row, target in enumerate(targets):
            references[row, : len(target)] = target
        return {
            "source": token_array(source, self.source_length),
            "target": token_array([BEGIN, *targets[0], END], self.target_length + 2),
            "references": references,
        }


def encode_sentence(text: str, subwords: Subwords, length: int) -> Int32[np.ndarray, " length"]:
    """Returns the subwords of a sentence, padded to ``length``.

    Raises:
        DataError: the sentence is empty or too long.
    """
    numbers = subwords.encode_text(text.strip())
    if not len(numbers):
        raise DataError(f"the sentence {text!r} is empty")
    if len(numbers) > length:
        raise DataError(
            f"{text!r} has {len(numbers)} subwords, and this run reads data.max_source_length="
            f"{length}: divide the sentence"
        )
    return token_array(numbers, length)
