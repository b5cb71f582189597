"""Vocabularies: the classes, characters, words or phonemes that the numbers of data stand for."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int32

from zoo.data.sources import DataError


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Symbols by number.

    Attributes:
        symbols: the symbol of each number, without duplicates.
        kind: what a symbol is, for messages, such as ``character`` or ``word``.
    """

    symbols: tuple[str, ...]
    kind: str = "symbol"

    def __len__(self) -> int:
        return len(self.symbols)

    @functools.cached_property
    def numbers(self) -> Mapping[str, int]:
        """The number of each symbol."""
        return {symbol: number for number, symbol in enumerate(self.symbols)}

    def encode(self, symbols: Iterable[str]) -> Int32[np.ndarray, " length"]:
        """Returns the numbers of symbols.

        Raises:
            DataError: symbols are not in the vocabulary; the message names all of them.
        """
        symbols = list(symbols)
        unknown = sorted({symbol for symbol in symbols if symbol not in self.numbers})
        if unknown:
            raise DataError(
                f"not in the vocabulary of {len(self)} {self.kind}s: "
                f"{', '.join(map(repr, unknown))}"
            )
        return np.array([self.numbers[symbol] for symbol in symbols], np.int32)

    def decode(self, numbers: Sequence[int] | Int32[np.ndarray, " length"]) -> list[str]:
        """Returns the symbols of numbers."""
        return [self.symbols[number] for number in numbers]


def vocabularies_to_json(vocabularies: Mapping[str, Vocabulary]) -> str:
    """Returns vocabularies by name as JSON, for ``vocabulary.json``."""
    content = {
        name: {"kind": vocabulary.kind, "symbols": vocabulary.symbols}
        for name, vocabulary in vocabularies.items()
    }
    return json.dumps(content, ensure_ascii=False) + "\n"


def vocabularies_from_json(text: str) -> dict[str, Vocabulary]:
    """Returns the vocabularies that ``vocabularies_to_json`` wrote."""
    return {
        name: Vocabulary(tuple(entry["symbols"]), entry["kind"])
        for name, entry in json.loads(text).items()
    }
