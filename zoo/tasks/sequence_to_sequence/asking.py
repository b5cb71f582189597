"""Decodes the targets of sources, such as the phonemes of words."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from zoo.data.pairs import END, encode_source
from zoo.tasks.loaded import Loaded
from zoo.tasks.wing import Answer, Say, Verb
from zoo.training.layout import jit


def encode(loaded: Loaded, given: str) -> dict[str, np.ndarray]:
    """Returns ``source``, the characters of a source.

    Raises:
        UserError: the source is empty or too long, or has unknown characters.
    """
    length = loaded.config.data.max_source_length
    return {"source": encode_source(given, loaded.vocabularies["source"], length)}


def predict(
    loaded: Loaded, sources: Sequence[str], *, num_beams: int | None = None
) -> list[list[str]]:
    """Returns the target of each source, such as the phonemes of words.

    Args:
        loaded: a run of ``configs/transformer.py``.
        sources: the sources to read.
        num_beams: the width of the beam search; 1 decodes greedily, None takes the run's own width.

    Raises:
        UserError: the run is of another task, or a source is too long or has unknown characters.
    """
    loaded.need("sequence_to_sequence", "predict")
    task: Any = loaded.task
    encoded = np.stack([encode(loaded, source)["source"] for source in sources])
    beams = num_beams or task.num_beams

    def make() -> Callable:
        length = loaded.config.data.max_target_length
        return jit(lambda params, source: task.decode(params, source, length, num_beams=beams))

    decode = loaded.compiled(f"predict {beams}", make)
    targets = loaded.vocabularies["target"]
    return [
        targets.decode([token for token in row if token > END])
        for row in np.asarray(decode(loaded.params, encoded))
    ]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", help="sources, such as words to pronounce")
    parser.add_argument("--num-beams", type=int, default=None, help="default: the run's own")


def _answer(loaded: Loaded, options: argparse.Namespace, say: Say) -> Iterator[Answer]:
    made = predict(loaded, options.inputs, num_beams=options.num_beams)
    for source, target in zip(options.inputs, made, strict=True):
        yield Answer(source, target, (f"{source}\t{' '.join(target)}",))


VERBS = {"predict": Verb("the targets of sources", _add_arguments, _answer)}
