"""Transcribes recordings."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from zoo.data.speech import SAMPLE_RATE, read_wav
from zoo.tasks.loaded import Loaded
from zoo.tasks.wing import Answer, Say, Verb, add_inputs, read_each
from zoo.training.layout import jit


def encode(loaded: Loaded, given: str | Path) -> dict[str, np.ndarray]:
    """Returns ``samples``, padded to a multiple of training's length, and ``length``, of a file.

    Raises:
        UserError: the file cannot be read.
    """
    sound = read_wav(Path(given))
    # Multiples of one length keep the number of compilations small.
    step = round(loaded.config.data.max_seconds * SAMPLE_RATE)
    return {
        "samples": np.pad(sound, (0, -len(sound) % step)),
        "length": np.asarray(len(sound), np.int32),
    }


def transcribe(loaded: Loaded, files: Sequence[str | Path]) -> list[str]:
    """Returns what is said in recordings.

    Args:
        loaded: a run of ``configs/speech.py``.
        files: recordings of any length and sample rate; they are resampled to the run's own rate.

    Raises:
        UserError: the run is of another task, or files cannot be read; the message names them all.
    """
    loaded.need("transcription", "transcribe")
    predict = loaded.compiled("transcribe", lambda: jit(loaded.task.predict))
    symbols = loaded.vocabularies["symbols"]
    texts = []
    for example in read_each(files, lambda file: encode(loaded, file)):
        batch = {name: array[None] for name, array in example.items()}
        made = predict(loaded.params, loaded.model_state, batch, jax.random.key(0))
        texts.append("".join(symbols.decode([t for t in np.asarray(made["text"])[0] if t])))
    return texts


def _answer(loaded: Loaded, options: argparse.Namespace, say: Say) -> Iterator[Answer]:
    for file, text in zip(options.inputs, transcribe(loaded, options.inputs), strict=True):
        yield Answer(file, text, (f"{file}\t{text}",))


VERBS = {
    "transcribe": Verb(
        "write down what is said in sound files", add_inputs("sound files"), _answer
    ),
    "predict": Verb("what is said in sound files", add_inputs("sound files"), _answer),
}
