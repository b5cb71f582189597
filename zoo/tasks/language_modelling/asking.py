"""Continues texts with a language model."""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from zoo.data import sentences
from zoo.data.text import encode_characters
from zoo.errors import UserError
from zoo.tasks.generation import (
    Request,
    TextModel,
    add_prompts,
    add_request,
    answers,
    continue_texts,
    prompts_of,
    request_of,
)
from zoo.tasks.loaded import Loaded
from zoo.tasks.wing import Answer, Say, Verb, add_inputs, say_unknown, show_likeliest
from zoo.training.layout import jit


def encode(loaded: Loaded, given: str) -> dict[str, np.ndarray]:
    """Returns ``tokens``: the characters of a text, or the end token followed by its words.

    Raises:
        UserError: a character model does not know some of the characters.
    """
    if "words" in loaded.vocabularies:
        numbers = [sentences.END, *sentences.encode(given, loaded.vocabularies["words"])]
        return {"tokens": np.asarray(numbers, np.int32)}
    return {"tokens": encode_characters(given, loaded.vocabularies["characters"])}


def generate(loaded: Loaded, prompt: str, **options: Any) -> Iterator[str]:
    """Continues a text with a run's language model; yields pieces of text as they are drawn.

    When the text has reached the context of a model that has one, decoding goes on with the newer
    half of it; a recurrent model has no such limit.

    Args:
        loaded: a run of ``configs/gpt.py``, ``configs/lstm.py`` or ``configs/word_lm.py``.
        prompt: the beginning of the text, at least one symbol. The result does not repeat it. A
            word model reads words that are not in its vocabulary as the unknown word.
        **options: the fields of ``zoo.tasks.generation.Request``, such as ``temperature=0.8``.

    Raises:
        UserError: the run is of another task, the prompt is empty, longer than the context or has
            unknown symbols, or a number is out of range.
    """
    loaded.need("language_modelling", "generate")
    request = Request(**options)
    return (piece for _, piece in continue_texts(text_model(loaded), [prompt], request))


def text_model(loaded: Loaded) -> TextModel:
    """Returns a run's language model as one that reads and writes texts.

    Raises:
        UserError: the run is of another task.
    """
    loaded.need("language_modelling", "text_model")
    module: Any = loaded.module
    end, spelled = _spelling(loaded)
    return TextModel(
        # The weights are an argument of the compiled function, not a part of it.
        step=jax.tree_util.Partial(module.apply, loaded.variables),
        initial_cache=module.initial_cache,
        context=None if module.recurrent else module.context,
        encode=lambda text: encode(loaded, text)["tokens"].tolist(),
        decode=lambda tokens: "".join(map(spelled, tokens)),
        ends=() if end is None else (end,),
    )


def next_words(loaded: Loaded, prompt: str, *, most: int = 10) -> list[tuple[str, float]]:
    """Returns the likeliest next symbols after the beginning of a text, with probabilities.

    Args:
        loaded: a run of a language model; the symbols of ``configs/word_lm.py`` are words.
        prompt: the beginning of the text. It may be empty for a word model, which then predicts
            how sentences begin.
        most: the number of symbols to return.

    Raises:
        UserError: the run is of another task, the prompt is longer than the model's context, or
            the prompt of a character model is empty.
    """
    loaded.need("language_modelling", "next_words")
    tokens = encode(loaded, prompt)["tokens"][None]
    if not tokens.size:
        raise UserError("the text is empty: give at least one character")
    (vocabulary,) = loaded.vocabularies.values()
    made: Any = loaded.compiled("next", lambda: jit(loaded.module.apply))(loaded.variables, tokens)
    shares = np.asarray(jax.nn.softmax(made[0][0, -1]))
    return [(vocabulary.symbols[i], float(shares[i])) for i in np.argsort(-shares)[:most]]


def unknown_words(loaded: Loaded, text: str) -> list[str]:
    """Returns the words of a text that a run reads as the unknown word; empty for characters."""
    words = loaded.vocabularies.get("words")
    return [] if words is None else sentences.unknown(text, words)


def _spelling(loaded: Loaded) -> tuple[int | None, Callable[[int], str]]:
    """Returns the token that ends a text, or None, and the function that spells tokens."""
    if "words" in loaded.vocabularies:
        symbols = loaded.vocabularies["words"].symbols
        return sentences.END, lambda token: sentences.spaced(symbols[token])
    return None, loaded.vocabularies["characters"].symbols.__getitem__


def _predict(loaded: Loaded, options: argparse.Namespace, say: Say) -> Iterator[Answer]:
    for text in options.inputs:
        say_unknown(unknown_words(loaded, text), say)
    return show_likeliest(options.inputs, [next_words(loaded, text) for text in options.inputs])


def _add_generation(parser: argparse.ArgumentParser) -> None:
    add_prompts(parser)
    add_request(parser)


def _generate(loaded: Loaded, options: argparse.Namespace, say: Say) -> Iterator[Answer]:
    prompts = prompts_of(options)
    for prompt in prompts:
        say_unknown(unknown_words(loaded, prompt), say)
    yield from answers(text_model(loaded), prompts, request_of(options))


VERBS = {
    "predict": Verb(
        "the likeliest next symbols of texts", add_inputs("beginnings of texts"), _predict
    ),
    "generate": Verb("continue a text", _add_generation, _generate),
}
