"""Pairs of a source and a target sequence, such as spelling and pronunciation."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Int32

from zoo.data.columns import read_columns
from zoo.data.datasets import Dataset, token_array
from zoo.data.reading import composed
from zoo.data.sources import DataError, Example, split_of
from zoo.data.text import embedded_text
from zoo.data.vocabulary import Vocabulary
from zoo.errors import did_you_mean

NAMES = ("cmudict", "pairs")
PAD, BEGIN, END = 0, 1, 2
SPECIAL = ("<pad>", "<begin>", "<end>")

# source -> its targets, each a sequence of symbols
Pairs = Mapping[str, list[tuple[str, ...]]]


def load_pairs(
    name: str,
    *,
    path: str = "",
    source_column: str = "source",
    target_column: str = "target",
    target_symbols: str = "words",
    stress: bool = False,
    max_source_length: int = 20,
    max_target_length: int = 20,
    validation_fraction: float = 0.02,
    test_fraction: float = 0.05,
) -> Dataset:
    """Describes pairs of sequences; all targets of a source are in the same split.

    A source is read as characters. The tokens 0, 1 and 2 are padding, begin and end. Pairs that
    exceed one of the largest lengths, or have nothing on one side, are left out; the notes of the
    data set say how many.

    Args:
        name: ``cmudict``, English words and their phonemes, comes with the package; ``pairs`` is
            your own file.
        path: the file for ``pairs``: ``.csv`` or ``.tsv`` with a header, or ``.jsonl``; see
            ``zoo.data.columns.read_columns``.
        source_column: name of the column, or key, with the sources.
        target_column: name of the column, or key, with the targets.
        target_symbols: how a target of ``pairs`` is split: at spaces (``words``) or into
            ``characters``.
        stress: whether to keep the stress marks of the phonemes of ``cmudict``.
        max_source_length: largest number of characters in a source.
        max_target_length: largest number of symbols in a target.
        validation_fraction: share of the sources in ``validation``, chosen by their hash.
        test_fraction: share of the sources in ``test``.

    Raises:
        DataError: the file is absent, a line is wrong (the message names it), a field has no
            meaning, or no pair is left for a split; the message names the fields that left them
            out.
    """
    if name not in NAMES:
        raise DataError(f"data.name={name!r} is unknown.{did_you_mean(name, NAMES)}")
    if name == "cmudict":
        if path:
            raise DataError(
                f"data.path={path!r} has no meaning for data.name='cmudict': use data.name='pairs' "
                "for your own pairs"
            )
        pairs = read_cmudict(embedded_text("cmudict.dict.gz"), stress=stress)
    else:
        if not path:
            raise DataError("data.name='pairs' needs data.path: give a .csv, .tsv or .jsonl file")
        pairs = read_pairs(path, source_column, target_column, target_symbols)
    short, notes = _short(pairs, max_source_length, max_target_length)
    limits = {"test": test_fraction, "validation": test_fraction + validation_fraction}
    divided: dict[str, dict[str, list[tuple[str, ...]]]] = {
        "train": {}, "validation": {}, "test": {},
    }  # fmt: skip
    for source, targets in short.items():
        divided[split_of(source, limits)][source] = targets
    for split, chosen in divided.items():
        if not chosen:
            field = (
                f"data.{split}_fraction={test_fraction if split == 'test' else validation_fraction}"
            )
            fix = "give more pairs" if split == "train" else f"give more pairs, or raise {field}"
            raise DataError(
                f"the {split} split of data.name={name!r} is empty: " + "; ".join((fix, *notes))
            )
    # Symbols of all splits. A symbol that only a test source has is no error; it is never learnt.
    sources = Vocabulary((*SPECIAL, *_symbols(short)), "character")
    targets_ = Vocabulary(
        (*SPECIAL, *_symbols(t for targets in short.values() for t in targets)), "symbol"
    )
    most = max(len(targets) for targets in short.values())
    opened = {
        split: _Pairs(
            tuple(
                (source, targets)
                for source, all_targets in chosen.items()
                # In training each target is an example; in evaluation each source is one.
                for targets in ([[t] for t in all_targets] if split == "train" else [all_targets])
            ),
            sources,
            targets_,
            max_source_length,
            max_target_length,
            1 if split == "train" else most,
        )
        for split, chosen in divided.items()
    }
    return Dataset(
        name=name,
        sizes={split: len(source) for split, source in opened.items()},
        vocabularies={"source": sources, "target": targets_},
        model_fields={"source_vocab_size": len(sources), "target_vocab_size": len(targets_)},
        open_split=lambda split: opened[split],
        transform=lambda train: lambda example, generator: example,
        notes=notes,
    )


def _short(
    pairs: Pairs, max_source_length: int, max_target_length: int
) -> tuple[Pairs, tuple[str, ...]]:
    """Returns the pairs that are not too long, and how many are left out and why.

    Raises:
        DataError: no pair is left; the message names the field that leaves them out.
    """
    short: dict[str, list[tuple[str, ...]]] = {}
    empty, long_sources, long_targets = 0, [], []
    for source, targets in pairs.items():
        for target in targets:
            if not source or not target:
                empty += 1
            elif len(source) > max_source_length:
                long_sources.append(len(source))
            elif len(target) > max_target_length:
                long_targets.append(len(target))
            else:
                short.setdefault(source, []).append(target)
    notes = [f"{empty:,} pairs with an empty source or target are left out"] if empty else []
    count = sum(map(len, pairs.values()))
    for field, most, lengths, what in (
        ("max_source_length", max_source_length, long_sources, "source has {} to {} characters"),
        ("max_target_length", max_target_length, long_targets, "target has {} to {} symbols"),
    ):
        if lengths:
            notes.append(
                f"data.{field}={most} leaves out {len(lengths):,} of {count:,} pairs, whose "
                + what.format(min(lengths), max(lengths))
            )
    if not short:
        raise DataError(f"no pair is left: {'; '.join(notes)}")
    return short, tuple(notes)


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Examples as arrays.

    ``source`` is Int32[source_length]. ``target`` is Int32[target_length + 2]: the first target
    between begin and end. ``references`` is Int32[targets, target_length]: all targets.
    """

    pairs: tuple[tuple[str, list[tuple[str, ...]]], ...]
    sources: Vocabulary
    targets: Vocabulary
    source_length: int
    target_length: int
    most_targets: int

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        source, targets = self.pairs[index]
        encoded = [self.targets.encode(target) for target in targets]
        references = np.zeros((self.most_targets, self.target_length), np.int32)
        for row, target in enumerate(encoded):
            references[row, : len(target)] = target
        return {
            "source": token_array(self.sources.encode(source), self.source_length),
            "target": token_array([BEGIN, *encoded[0], END], self.target_length + 2),
            "references": references,
        }


def encode_source(text: str, vocabulary: Vocabulary, length: int) -> Int32[np.ndarray, " length"]:
    """Returns the tokens of a source, padded to ``length``.

    Raises:
        DataError: the source is empty or too long, or has characters outside the vocabulary.
    """
    text = composed(text)
    if not 0 < len(text) <= length:
        raise DataError(f"{text!r} must have between 1 and {length} characters")
    return token_array(vocabulary.encode(text), length)


def read_cmudict(text: str, *, stress: bool = False) -> Pairs:
    """Returns words and their pronunciations from the text of the dictionary.

    Args:
        text: lines like ``abalone AE2 B AH0 L OW1 N IY0``; ``word(2)`` is another pronunciation.
        stress: whether to keep the numbers after vowels: 0 none, 1 primary, 2 secondary.
    """
    pairs: dict[str, list[tuple[str, ...]]] = {}
    for line in text.split("\n"):
        if not line:
            continue
        word, *phonemes = line.partition(" #")[0].split()
        word = re.sub(r"\(\d+\)$", "", word)
        # Leave out abbreviations and compounds, which are not ordinary spelling.
        if not re.fullmatch(r"[a-z']+", word):
            continue
        target = tuple(p if stress else p.rstrip("012") for p in phonemes)
        known = pairs.setdefault(word, [])
        if target not in known:
            known.append(target)
    return pairs


def read_pairs(path: str, source_column: str, target_column: str, target_symbols: str) -> Pairs:
    """Returns the pairs of a ``.csv`` or ``.tsv`` file with a header, or of a ``.jsonl`` file.

    Raises:
        DataError: see ``read_columns``.
    """
    pairs: dict[str, list[tuple[str, ...]]] = {}
    for _, row in read_columns(
        path, (source_column, target_column), ("source_column", "target_column")
    ):
        source, target = composed(row[source_column]), composed(row[target_column])
        symbols = tuple(target.split()) if target_symbols == "words" else tuple(target)
        known = pairs.setdefault(source, [])
        if symbols not in known:
            known.append(symbols)
    return pairs


def _symbols(sequences: Iterable[Iterable[str]]) -> list[str]:
    return sorted({symbol for sequence in sequences for symbol in sequence})
