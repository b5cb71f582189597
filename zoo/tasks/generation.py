"""Texts that go on: what a run's language model and one with published weights have in common."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from zoo.decoding import TextStream, check_filters, generate
from zoo.errors import UserError
from zoo.tasks.wing import Answer, add_numbers


@dataclasses.dataclass(frozen=True)
class TextModel:
    """A language model that reads and writes texts.

    Attributes:
        step: see ``zoo.decoding``; a ``jax.tree_util.Partial`` of the model and its weights.
        initial_cache: see ``zoo.decoding.generate``.
        context: the largest number of tokens that the model can see; None: it is recurrent.
        encode: makes tokens of a text.
        decode: makes a text of tokens.
        ends: the tokens that end a text.
    """

    step: Any
    initial_cache: Callable[..., Any]
    context: int | None
    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]
    ends: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Request:
    """How a text goes on.

    Attributes:
        max_new_tokens: the number of tokens to add, at least 1; a text may end earlier.
        temperature: below 1 favours likely tokens; 0 always takes the likeliest.
        top_k: draw from this many of the likeliest tokens; 0: from all.
        top_p: draw from the likeliest tokens that together reach this probability.
        min_p: draw from the tokens that are at least this share as likely as the likeliest.
        repetition_penalty: above 1, tokens that the text has become less likely.
        num_beams: above 1, a deterministic beam search of this width. The likeliest whole text that
            it finds comes all at once, and temperature, top_k, top_p and min_p have no meaning.
        length_penalty: above 0, a beam search prefers longer texts, below 0 shorter ones.
        stops: strings that end a text and are no part of it.
        seed: the same seed gives the same text.

    Raises:
        UserError: a number is out of range.
    """

    max_new_tokens: int = 200
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    stops: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_beams"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        check_filters(**self.filters, repetition_penalty=self.repetition_penalty)

    @property
    def filters(self) -> dict[str, Any]:
        """What decides how tokens are drawn."""
        names = ("temperature", "top_k", "top_p", "min_p")
        return {name: getattr(self, name) for name in names}


def continue_texts(
    model: TextModel, prompts: Sequence[str | Sequence[int]], request: Request
) -> Iterator[tuple[int, str]]:
    """Yields pieces of text that follow prompts, each with the number of its prompt.

    The prompts are decoded side by side, those of a recurrent model one after another.

    Args:
        model: the language model.
        prompts: the beginnings of texts, or their tokens; none is empty.
        request: how they go on.

    Raises:
        UserError: a prompt is empty, has unknown symbols or is longer than the context; or a beam
            search has no room.
    """
    names = [f"prompt {row + 1}" for row in range(len(prompts))] if prompts[1:] else ["the prompt"]
    encoded = [_encoded(model, *each) for each in zip(names, prompts, strict=True)]
    # A generator of its own, so that what is wrong with a prompt is said at once.
    return _continued(model, encoded, request)


def _continued(
    model: TextModel, encoded: Sequence[Sequence[int]], request: Request
) -> Iterator[tuple[int, str]]:
    rows = list(range(len(encoded)))
    for group in [rows] if model.context is not None else [[row] for row in rows]:
        texts = [
            TextStream(model.decode, after=encoded[row], ends=model.ends, stops=request.stops)
            for row in group
        ]
        columns = generate(
            model.step,
            model.initial_cache,
            [encoded[row] for row in group],
            # Texts that are decoded one after another must not be alike.
            jax.random.key(request.seed + group[0]),
            max_new_tokens=request.max_new_tokens,
            context=model.context,
            end=model.ends,
            num_beams=request.num_beams,
            length_penalty=request.length_penalty,
            repetition_penalty=request.repetition_penalty,
            **request.filters,
        )
        for column in columns:
            for row, text, token in zip(group, texts, column.tolist(), strict=True):
                if piece := text.add(token):
                    yield row, piece
            if all(text.ended for text in texts):
                break
        for row, text in zip(group, texts, strict=True):
            if piece := text.finish():
                yield row, piece


def answers(model: TextModel, prompts: Sequence[str], request: Request) -> Iterator[Answer]:
    """Answers with each prompt and the text that follows it, in the order of the prompts.

    A single text comes in pieces, several come when all have ended.
    """
    pieces = continue_texts(model, prompts, request)
    if len(prompts) == 1:
        (prompt,) = prompts
        yield Answer(prompt, None, itertools.chain([prompt], (piece for _, piece in pieces)))
        return
    texts = list(prompts)
    for row, piece in pieces:
        texts[row] += piece
    for prompt, text in zip(prompts, texts, strict=True):
        yield Answer(prompt, None, (text,))


def _encoded(model: TextModel, name: str, prompt: str | Sequence[int]) -> list[int]:
    if not len(prompt):
        raise UserError(f"{name} is empty: give at least one character")
    tokens = model.encode(prompt) if isinstance(prompt, str) else prompt
    if model.context is not None and len(tokens) > model.context:
        raise UserError(
            f"{name} has {len(tokens)} tokens, more than the model's context of {model.context}: "
            "shorten it"
        )
    return [int(token) for token in tokens]


def add_request(parser: argparse.ArgumentParser, *, searches: bool = True) -> None:
    """Adds the options that ``request_of`` reads.

    Args:
        parser: the parser of the command.
        searches: whether the command offers a beam search.
    """
    meanings = {
        "max_new_tokens": "tokens to add: characters, words or pieces of words",
        "temperature": "below 1 favours likely tokens; 0 takes the likeliest",
        "top_k": "draw from this many of the likeliest tokens; 0: from all",
        "top_p": "draw from the likeliest tokens that together reach this probability",
        "min_p": "draw from tokens that are at least this share as likely as the likeliest",
        "repetition_penalty": "above 1 makes tokens that the text has less likely",
        "seed": "the same seed gives the same text",
    }
    if searches:
        meanings |= {
            "num_beams": "above 1: a deterministic beam search of this width",
            "length_penalty": "above 0, a beam search prefers longer texts",
        }
    defaults = Request()
    add_numbers(
        parser,
        {
            name.replace("_", "-"): (getattr(defaults, name), meaning)
            for name, meaning in meanings.items()
        },
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help=r"ends the text and is no part of it; \n is a line break; may be given several times",
    )


def add_prompts(parser: argparse.ArgumentParser) -> None:
    """Adds ``--prompt`` and ``--prompts``, of which ``prompts_of`` wants one."""
    parser.add_argument("--prompt", help="the beginning of the text")
    parser.add_argument("--prompts", metavar="FILE", help="a text file with a prompt on each line")


def request_of(options: argparse.Namespace) -> Request:
    """Returns what the options of ``add_request`` ask for.

    Raises:
        UserError: a number is out of range.
    """
    given = vars(options)
    named = {
        field.name: given[field.name]
        for field in dataclasses.fields(Request)
        if field.name in given
    }
    # A shell hands "\n" on as two characters.
    stops = tuple(text.replace("\\n", "\n").replace("\\t", "\t") for text in options.stop)
    return Request(**named, stops=stops)


def prompts_of(options: argparse.Namespace) -> list[str]:
    """Returns the prompts that ``--prompt`` or ``--prompts`` gives.

    Raises:
        UserError: neither or both are given, or the file cannot be read or has an empty line.
    """
    if (options.prompt is None) == (options.prompts is None):
        raise UserError("give either --prompt TEXT or --prompts FILE")
    if options.prompt is not None:
        if not options.prompt:
            raise UserError("the prompt is empty: give at least one character")
        return [options.prompt]
    from zoo.data.reading import read_text

    # Not splitlines(), which cuts at more than the ends of lines.
    lines = read_text(options.prompts, "--prompts").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            raise UserError(f"--prompts={options.prompts}: line {number} is empty, not a prompt")
    return lines
