"""Pairs of sequences: what is read and what is written, such as spelling and pronunciation."""

import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Int32

from zoo.data.columns import read_columns
from zoo.data.datasets import Dataset, token_array
from zoo.data.sources import DataError, Example, split_of
from zoo.data.text import embedded_text
from zoo.data.vocabulary import Vocabulary
from zoo.errors import did_you_mean

NAMES = ("cmudict", "pairs")
PAD, BEGIN, END = 0, 1, 2
_SPECIAL = ("<pad>", "<begin>", "<end>")

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
    """Describes pairs of sequences, divided by source: all targets of one are in one split.

    A source is read as characters. The tokens 0, 1 and 2 are padding, begin and end. Pairs that
    are longer than the largest lengths are left out.

    Args:
        name: ``cmudict``: English words and their phonemes, comes with the package; ``pairs``: a
            file of one's own.
        path: the file of ``pairs``: ``.csv`` or ``.tsv`` with a header, or ``.jsonl``; in UTF-8.
        source_column: name of the column, or key, of the sources.
        target_column: name of the column, or key, of the targets.
        target_symbols: of ``pairs``: ``words``: a target is divided at spaces; ``characters``.
        stress: of ``cmudict``: keep the phonemes' stress marks.
        max_source_length: largest number of characters in a source.
        max_target_length: largest number of symbols in a target.
        validation_fraction: share of the sources in ``validation``, chosen by their hash.
        test_fraction: share of the sources in ``test``.

    Raises:
        DataError: the file is absent or wrong in a named line, or a field has no meaning.
    """
    if name not in NAMES:
        raise DataError(f"data.name={name!r} is unknown.{did_you_mean(name, NAMES)}")
    if name == "cmudict":
        if path:
            raise DataError(
                f"data.path={path!r} has no meaning for data.name='cmudict': for pairs of your own "
                "take data.name='pairs'"
            )
        pairs = read_cmudict(embedded_text("cmudict.dict.gz"), stress=stress)
    else:
        if not path:
            raise DataError("data.name='pairs' needs data.path: give a .csv, .tsv or .jsonl file")
        pairs = read_pairs(path, source_column, target_column, target_symbols)
    short = {
        source: kept
        for source, targets in pairs.items()
        if 0 < len(source) <= max_source_length
        and (kept := [target for target in targets if 0 < len(target) <= max_target_length])
    }
    limits = {"test": test_fraction, "validation": test_fraction + validation_fraction}
    divided: dict[str, dict[str, list[tuple[str, ...]]]] = {
        "train": {}, "validation": {}, "test": {},
    }  # fmt: skip
    for source, targets in short.items():
        divided[split_of(source, limits)][source] = targets
    for split, chosen in divided.items():
        if not chosen:
            raise DataError(f"the {split} split of data.name={name!r} is empty: give more pairs")
    # Of all splits: a symbol that only a test source has is not an error, only never learnt.
    sources = Vocabulary((*_SPECIAL, *_symbols(short)), "character")
    targets_ = Vocabulary(
        (*_SPECIAL, *_symbols(t for targets in short.values() for t in targets)), "symbol"
    )
    most = max(len(targets) for targets in short.values())
    opened = {
        split: _Pairs(
            tuple(
                (source, targets)
                for source, all_targets in chosen.items()
                # Each target is an example of its own in training, a source one in evaluation.
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
    )


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Examples as arrays.

    ``source: Int32[source_length]``; ``target: Int32[target_length + 2]``, the first of the
    targets between begin and end; ``references: Int32[targets, target_length]``, all of them.
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
    """Returns a source's tokens, filled up with padding.

    Raises:
        DataError: it is empty or too long, or has characters that no source had.
    """
    if not 0 < len(text) <= length:
        raise DataError(f"{text!r} must have between 1 and {length} characters")
    return token_array(vocabulary.encode(text), length)


def read_cmudict(text: str, *, stress: bool = False) -> Pairs:
    """Returns words and their pronunciations from the dictionary's text.

    Args:
        text: lines like ``abalone AE2 B AH0 L OW1 N IY0``; ``word(2)`` is another pronunciation.
        stress: keep the numbers after vowels: 0 none, 1 primary, 2 secondary.
    """
    pairs: dict[str, list[tuple[str, ...]]] = {}
    for line in text.splitlines():
        word, *phonemes = line.partition(" #")[0].split()
        word = re.sub(r"\(\d+\)$", "", word)
        # Abbreviations and compounds are not spelling.
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
    for _, row in read_columns(path, (source_column, target_column)):
        target = row[target_column]
        symbols = tuple(target.split()) if target_symbols == "words" else tuple(target)
        known = pairs.setdefault(row[source_column], [])
        if symbols not in known:
            known.append(symbols)
    return pairs


def _symbols(sequences: Iterable[Iterable[str]]) -> list[str]:
    return sorted({symbol for sequence in sequences for symbol in sequence})
