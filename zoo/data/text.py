"""Continuous text, cut into windows of characters."""

from __future__ import annotations

import dataclasses
import gzip
import importlib.resources

import numpy as np
from jaxtyping import Int32

from zoo.data.datasets import Dataset, token_array
from zoo.data.reading import composed, read_text
from zoo.data.sources import DataError, Example
from zoo.data.vocabulary import Vocabulary
from zoo.errors import did_you_mean

NAMES = ("text", "tiny_shakespeare")
_SHARES = {"train": 0.9, "validation": 0.05, "test": 0.05}


def load_text(
    name: str,
    *,
    path: str,
    context: int,
    eval_context: int,
    stride: int,
    order: str,
) -> Dataset:
    """Describes a text as windows of characters, each with the characters that follow.

    The first 90 % of the text are ``train``, the next 5 % ``validation`` and the rest ``test``, as
    TFDS divides ``tiny_shakespeare``. Evaluation predicts every character of a split once, except
    the first. Accents and their letters are one character; see ``zoo.data.reading.composed``.

    Args:
        name: ``tiny_shakespeare`` comes with the package; ``text`` is your own file.
        path: the text file for ``text``; see ``zoo.data.reading.read_text``.
        context: number of characters in a window, at least 1.
        eval_context: number of characters in a window of evaluation; 0 means ``context``.
        stride: number of characters from the beginning of a training window to that of the next; 0
            means ``context``, so that windows do not overlap.
        order: ``shuffled`` or ``lanes``; see ``Dataset``.

    Raises:
        DataError: the file is absent, no text file or too short, or a field has no meaning.
    """
    text = _read(name, path)
    stride, eval_context = stride or context, eval_context or context
    if order == "lanes" and stride != context:
        raise DataError(
            f"data.stride={stride} with data.order='lanes': every window of a lane continues the "
            "previous one; leave the stride at 0"
        )
    vocabulary = Vocabulary(tuple(sorted(set(text))), "character")
    splits = {split: vocabulary.encode(part) for split, part in _divide(text).items()}
    for split, tokens in splits.items():
        shortest = context + 1 if split == "train" else 2
        if len(tokens) < shortest:
            raise DataError(
                f"the {split} split of data.name={name!r} has {len(tokens)} characters, fewer than "
                f"the {shortest} that a window of data.context={context} needs: lower it or give a "
                "longer text"
            )
    windows = {
        split: (
            Windows(tokens, context, stride, (len(tokens) - 1 - context) // stride + 1)
            if split == "train"
            else Windows(tokens, eval_context, eval_context, -(-(len(tokens) - 1) // eval_context))
        )
        for split, tokens in splits.items()
    }
    return Dataset(
        name=name,
        sizes={split: len(source) for split, source in windows.items()},
        vocabularies={"characters": vocabulary},
        model_fields={"vocab_size": len(vocabulary)},
        open_split=lambda split: windows[split],
        transform=lambda train: lambda example, generator: example,
        order=order,
    )


def encode_characters(text: str, vocabulary: Vocabulary) -> Int32[np.ndarray, " length"]:
    """Returns the numbers of a text's characters.

    Raises:
        DataError: characters are not in the vocabulary; the message names all of them.
    """
    symbols = vocabulary.numbers.keys()
    # A run that was made before texts were composed may know accents only apart from letters.
    as_it_is = set(text) <= symbols and not set(composed(text)) <= symbols
    return vocabulary.encode(text if as_it_is else composed(text))


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of a text: ``{"tokens", "targets": Int32[length], "token_mask": Float32[length]}``.

    A target is the next token. The last window may be shorter; ``token_mask`` is 1 for the tokens
    that count.

    Attributes:
        text: the tokens.
        length: number of tokens in a window.
        stride: number of tokens from the beginning of a window to that of the next.
        count: number of windows.
    """

    text: Int32[np.ndarray, " tokens"]
    length: int
    stride: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        begin = index * self.stride
        window = self.text[begin : begin + self.length + 1]
        mask = np.arange(self.length) < len(window) - 1
        return {
            "tokens": token_array(window[:-1], self.length),
            "targets": token_array(window[1:], self.length),
            "token_mask": mask.astype(np.float32),
        }


def embedded_text(name: str) -> str:
    """Returns the text of a compressed file that comes with the package."""
    file = importlib.resources.files("zoo.data") / "embedded" / name
    return gzip.decompress(file.read_bytes()).decode("utf-8")


def tatoeba_pairs() -> list[tuple[str, str]]:
    """Returns the German sentences that come with the package, each with a translation."""
    lines = embedded_text("tatoeba_english_german.tsv.gz").split("\n")
    columns = [line.split("\t") for line in lines if line]
    return [(german, english) for english, german in columns]


def _read(name: str, path: str) -> str:
    if name == "text":
        if not path:
            raise DataError("data.name='text' needs data.path: give a text file in UTF-8")
        return composed(read_text(path))
    if name not in NAMES:
        raise DataError(f"data.name={name!r} is unknown.{did_you_mean(name, NAMES)}")
    if path:
        raise DataError(
            f"data.path={path!r} has no meaning for data.name={name!r}: use data.name='text' "
            "for your own text"
        )
    return embedded_text(f"{name}.txt.gz")


def _divide(text: str) -> dict[str, str]:
    parts, begin, share = {}, 0, 0.0
    for split, fraction in _SHARES.items():
        share += fraction
        end = int(len(text) * share)
        parts[split], begin = text[begin:end], end
    return parts
