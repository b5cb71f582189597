"""Translates sentences."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np

from zoo.data.pairs import END
from zoo.data.translations import encode_sentence
from zoo.data.vocabulary import Subwords
from zoo.tasks.loaded import Loaded
from zoo.tasks.wing import Answer, Say, Verb
from zoo.training.layout import jit


def encode(loaded: Loaded, given: str) -> dict[str, np.ndarray]:
    """Returns ``source``, the subwords of a sentence.

    Raises:
        UserError: the sentence is empty or too long.
    """
    length = loaded.config.data.max_source_length
    return {"source": encode_sentence(given, _subwords(loaded), length)}


def translate(
    loaded: Loaded, sentences: Sequence[str], *, num_beams: int | None = None
) -> list[str]:
    """Returns the translation of each sentence.

    Args:
        loaded: a run of ``configs/translate.py``.
        sentences: the sentences to translate.
        num_beams: the width of the beam search; 1 decodes greedily, None takes the run's own width.

    Raises:
        UserError: the run is of another task, or a sentence is empty or too long.
    """
    loaded.need("translation", "translate")
    task: Any = loaded.task
    encoded = np.stack([encode(loaded, sentence)["source"] for sentence in sentences])
    beams = num_beams or task.num_beams

    def make() -> Callable:
        length = loaded.config.data.max_target_length
        return jit(lambda params, source: task.decode(params, source, length, num_beams=beams))

    decode = loaded.compiled(f"translate {beams}", make)
    return [
        _subwords(loaded).decode_text([token for token in row if token > END])
        for row in np.asarray(decode(loaded.params, encoded))
    ]


def _subwords(loaded: Loaded) -> Subwords:
    return cast(Subwords, loaded.vocabularies["subwords"])


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", help="sentences to translate")
    parser.add_argument("--num-beams", type=int, default=None, help="default: the run's own")


def _answer(loaded: Loaded, options: argparse.Namespace, say: Say) -> Iterator[Answer]:
    made = translate(loaded, options.inputs, num_beams=options.num_beams)
    for source, target in zip(options.inputs, made, strict=True):
        yield Answer(source, target, (f"{source}\t{target}",))


VERBS = {"predict": Verb("the translations of sentences", _add_arguments, _answer)}
