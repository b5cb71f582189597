"""The classes of texts."""

import argparse
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from zoo.data.messages import encode_message, unknown_words
from zoo.tasks.loaded import Loaded
from zoo.tasks.wing import (
    Answer,
    Likeliest,
    Say,
    Verb,
    add_inputs,
    likeliest,
    say_unknown,
    show_likeliest,
)
from zoo.training.layout import jit


def encode(loaded: Loaded, given: str) -> dict[str, np.ndarray]:
    """Returns ``tokens`` and ``length`` of a text, in the form of the run's data."""
    return encode_message(given, loaded.vocabularies["words"], loaded.config.data.max_length)


def predict(loaded: Loaded, texts: Sequence[str], *, most: int = 5) -> list[Likeliest]:
    """Returns the likeliest classes of texts, each with its probability.

    Args:
        loaded: a run of ``configs/classify_text.py``.
        texts: the texts to classify.
        most: the number of classes to return for each text.
    """
    loaded.need("text_classification", "predict")
    examples = [encode(loaded, text) for text in texts]
    batch = {name: np.stack([one[name] for one in examples]) for name in examples[0]}
    compiled = loaded.compiled("predict", lambda: jit(loaded.task.predict))
    made = compiled(loaded.params, loaded.model_state, batch, jax.random.key(0))
    return likeliest(loaded.labels, np.asarray(made["probability"]), most)


def _answer(loaded: Loaded, options: argparse.Namespace, say: Say) -> Iterator[Answer]:
    for text in options.inputs:
        say_unknown(unknown_words(text, loaded.vocabularies["words"]), say)
    return show_likeliest(options.inputs, predict(loaded, options.inputs))


VERBS = {"predict": Verb("the classes of texts", add_inputs("texts to classify"), _answer)}
