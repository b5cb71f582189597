"""Vocabularies: the classes, characters, subwords or words that the numbers of data stand for."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32

from zoo.data.sources import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The encoding has a symbol for each byte, so that it can write any text.
_BYTES = 256


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

    def to_json(self) -> dict[str, Any]:
        """Returns what ``vocabulary.json`` holds of it."""
        return {"kind": self.kind, "symbols": self.symbols}


@dataclasses.dataclass(frozen=True)
class Subwords(Vocabulary):
    """The subwords of a text, with the tokenizer that divides texts into them.

    Attributes:
        definition: the content of ``tokenizer.json``, as the library ``tokenizers`` writes it.
    """

    definition: str = ""

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.definition)

    def encode_text(self, text: str) -> Int32[np.ndarray, " length"]:
        """Returns the numbers of a text's subwords. Any text has some; an empty one has none."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode_text(self, numbers: Sequence[int] | Int32[np.ndarray, " length"]) -> str:
        """Returns the text of subwords, without padding and other special symbols.

        Bytes that make no character are shown as U+FFFD.
        """
        text: str = self._tokenizer.decode([int(number) for number in numbers])
        return text.strip()

    def to_json(self) -> dict[str, Any]:
        """Returns what ``vocabulary.json`` holds of it."""
        return {"kind": self.kind, "tokenizer": self.definition}


def subwords_of(definition: str, kind: str = "subword") -> Subwords:
    """Returns the vocabulary of a ``tokenizer.json``.

    Raises:
        DataError: the definition is not one that the library ``tokenizers`` reads.
    """
    from tokenizers import Tokenizer

    try:
        numbers = Tokenizer.from_str(definition).get_vocab()
    except Exception as error:  # the library raises no other type
        raise DataError(f"the tokenizer cannot be read: {error}") from error
    return Subwords(tuple(sorted(numbers, key=numbers.__getitem__)), kind, definition)


def train_subwords(texts: Iterable[str], size: int, special: Sequence[str]) -> Subwords:
    """Finds the subwords of texts by byte-pair encoding (Sennrich et al. 2016) of their bytes.

    Texts are composed (Unicode's NFC) and divided at spaces, and a word is its own with the space
    before it, as in GPT-2 (Radford et al. 2019, section 2.2). So no text is unknown. The result
    depends on the texts and the size alone.

    Args:
        texts: the training texts.
        size: the number of subwords, special ones included; fewer if the texts have fewer.
        special: symbols that stand for no text, such as padding; they are the first.

    Raises:
        DataError: the size has no room for the special symbols and the 256 bytes.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    least = len(special) + _BYTES
    if size < least:
        raise DataError(
            f"data.vocabulary_size={size} must be at least {least}: {len(special)} special symbols "
            f"and {_BYTES} bytes"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return subwords_of(tokenizer.to_str())


def vocabularies_to_json(vocabularies: Mapping[str, Vocabulary]) -> str:
    """Returns vocabularies by name as JSON, for ``vocabulary.json``."""
    content = {name: vocabulary.to_json() for name, vocabulary in vocabularies.items()}
    return json.dumps(content, ensure_ascii=False) + "\n"


def vocabularies_from_json(content: Mapping[str, Any]) -> dict[str, Vocabulary]:
    """Returns the vocabularies whose JSON ``vocabularies_to_json`` wrote.

    Raises:
        DataError: an entry is no vocabulary; the message names it.
    """
    made: dict[str, Vocabulary] = {}
    for name, entry in content.items():
        entry = entry if isinstance(entry, dict) else {}
        kind, symbols, definition = (entry.get(key) for key in ("kind", "symbols", "tokenizer"))
        if isinstance(kind, str) and isinstance(definition, str):
            made[name] = subwords_of(definition, kind)
        elif (
            isinstance(kind, str)
            and isinstance(symbols, list)
            and all(isinstance(symbol, str) for symbol in symbols)
        ):
            made[name] = Vocabulary(tuple(symbols), kind)
        else:
            raise DataError(f"{name!r} is no vocabulary")
    return made
