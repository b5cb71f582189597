"""Continues texts with a language model."""

import argparse
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.data import sentences
from zoo.data.text import encode_characters
from zoo.decoding import beam_search, stream
from zoo.errors import UserError
from zoo.tasks.loaded import Loaded
from zoo.tasks.wing import Answer, Say, Verb, add_inputs, add_numbers, say_unknown, show_likeliest
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


def generate(
    loaded: Loaded,
    prompt: str,
    *,
    max_new_tokens: int = 200,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    num_beams: int = 1,
) -> Iterator[str]:
    """Continues a text with a run's language model; yields symbols one by one as they are drawn.

    Args:
        loaded: a run of ``configs/gpt.py``, ``configs/lstm.py`` or ``configs/word_lm.py``.
        prompt: the beginning of the text, at least one symbol. The result does not repeat it. A
            word model reads words that are not in its vocabulary as the unknown word.
        max_new_tokens: the number of symbols to add, at least 1; a sentence may end earlier.
        seed: the random seed; the same seed gives the same text.
        temperature: see ``zoo.decoding.filter_logits``; 0 always takes the likeliest symbol.
        top_k: see ``zoo.decoding.filter_logits``.
        top_p: see ``zoo.decoding.filter_logits``.
        num_beams: the width of the beam search. Above 1, the likeliest whole text that the search
            finds comes all at once, and ``temperature``, ``top_k`` and ``top_p`` have no meaning.

    Raises:
        UserError: the run is of another task, the prompt is empty or has unknown symbols, or a
            number is out of range.
    """
    loaded.need("language_modelling", "generate")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if not prompt:
        raise UserError("the prompt is empty: give at least one character")
    tokens = jnp.asarray(encode(loaded, prompt)["tokens"])[None]
    end, spelled = _spelling(loaded)
    # The context is None for a recurrent model, whose state has room for any text.
    context = loaded.config.model.get("context")
    model: Any = loaded.module
    # The weights are an argument of the compiled function, not a part of it.
    step = jax.tree_util.Partial(model.apply, loaded.variables)

    if num_beams > 1:
        length = tokens.shape[1] + max_new_tokens
        if context and length > context:
            raise UserError(
                f"beam search over {length} symbols is more than the model's context of "
                f"{context}: shorten the prompt or lower max_new_tokens"
            )

        def search(step: Any, tokens: Any) -> Any:
            return beam_search(
                step,
                model.initial_cache(1, length),
                tokens,
                num_beams=num_beams,
                max_new_tokens=max_new_tokens,
                end=-1 if end is None else end,
            )[0][0]

        name = f"generate {num_beams} {max_new_tokens}"
        found = loaded.compiled(name, lambda: jit(search))(step, tokens)
        return map(spelled, itertools.takewhile(lambda t: t != end, np.asarray(found).tolist()))
    new = stream(
        step,
        lambda: model.initial_cache(1, context or 0),
        tokens,
        jax.random.key(seed),
        max_new_tokens=max_new_tokens,
        context=context,
        end=end,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    return map(spelled, itertools.takewhile(lambda t: t != end, (int(token[0]) for token in new)))


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
    parser.add_argument("--prompt", required=True, help="the beginning of the text")
    add_numbers(
        parser,
        {
            "max-new-tokens": (200, "characters or words to add"),
            "temperature": (1.0, "below 1 favours likely symbols; 0 takes the likeliest"),
            "top-k": (0, "draw from this many of the likeliest symbols; 0: from all"),
            "top-p": (1.0, "draw from the likeliest symbols that together reach this probability"),
            "num-beams": (1, "above 1: a deterministic beam search of this width"),
            "seed": (0, "the same seed gives the same text"),
        },
    )


def _generate(loaded: Loaded, options: argparse.Namespace, say: Say) -> Iterator[Answer]:
    say_unknown(unknown_words(loaded, options.prompt), say)
    symbols = generate(
        loaded,
        options.prompt,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        num_beams=options.num_beams,
    )
    yield Answer(options.prompt, None, itertools.chain([options.prompt], symbols))


VERBS = {
    "predict": Verb(
        "the likeliest next symbols of texts", add_inputs("beginnings of texts"), _predict
    ),
    "generate": Verb("continue a text", _add_generation, _generate),
}
