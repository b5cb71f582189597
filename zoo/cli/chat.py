"""``zoo chat``: a conversation with a model that has published weights."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from zoo.cli.generate import add_model, read_model, text_model
from zoo.errors import UserError

HELP = """talk with a published model whose tokenizer has a chat template

Each line of the input is a question. The answer comes as it is decoded and stays part of the chat.
/new begins another chat; the end of the input (Ctrl-D) ends the command. When a chat has become too
long for the model's context, its oldest question and answer are left out, which is said."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    from zoo.tasks.generation import add_request

    add_model(parser)
    parser.add_argument("--system", help="what the model is told before the first question")
    add_request(parser, searches=False)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Answers questions until the input ends."""
    from zoo.tasks.generation import request_of

    request = request_of(options)
    loaded = read_model(options)
    tokenizer = loaded.tokenizer
    if tokenizer.chat_template is None:
        raise UserError(
            f"{options.model} has no chat template (chat_template.jinja, or chat_template in "
            "tokenizer_config.json): give a model that was trained on chats, or use "
            f"`zoo generate --model={options.model} --prompt …`"
        )
    model = text_model(loaded)
    system = [] if options.system is None else [{"role": "system", "content": options.system}]

    def encode(messages: Sequence[dict[str, str]]) -> list[int]:
        # The template has written the special tokens already.
        return tokenizer.encode(tokenizer.chat(messages), add_special_tokens=False)

    chat = list(system)
    for question in _questions():
        if question == "/new":
            chat = list(system)
            continue
        chat.append({"role": "user", "content": question})
        tokens = shortened(chat, len(system), model.context, encode)
        answer = []
        for piece in _answer(model, tokens, request):
            print(piece, end="", flush=True)
            answer.append(piece)
        print(flush=True)
        chat.append({"role": "assistant", "content": "".join(answer)})


def shortened(
    chat: list[dict[str, str]],
    kept: int,
    context: int | None,
    encode: Callable[[Sequence[dict[str, str]]], list[int]],
) -> list[int]:
    """Returns the tokens of a chat, after leaving out its oldest parts if it is too long.

    Args:
        chat: the messages, the last of which is a question; the oldest questions and their answers
            are removed from it.
        kept: the number of first messages that stay.
        context: the largest number of tokens, of which the answer needs one; None: any number.
        encode: makes tokens of messages.

    Raises:
        UserError: the last question alone is too long, or the template refuses the messages.
    """
    tokens = encode(chat)
    left_out = 0
    while context is not None and len(tokens) >= context:
        if len(chat) <= kept + 2:
            raise UserError(
                f"the question has {len(tokens)} tokens with what the template adds, and the "
                f"model's context of {context} leaves no room for an answer: shorten it"
            )
        del chat[kept : kept + 2]
        left_out += 1
        tokens = encode(chat)
    if left_out:
        print(
            f"(the chat is longer than the context of {context} tokens: the oldest "
            f"{left_out} questions and answers are left out)",
            file=sys.stderr,
        )
    return tokens


def _answer(model: Any, tokens: Sequence[int], request: Any) -> Iterator[str]:
    from zoo.tasks.generation import continue_texts

    if model.context is not None:
        # An answer ends at the context: half of a chat is no chat.
        room = min(request.max_new_tokens, model.context - len(tokens))
        request = dataclasses.replace(request, max_new_tokens=room)
    return (piece for _, piece in continue_texts(model, [tokens], request))


def _questions() -> Iterator[str]:
    """Yields the lines of the input that are not empty."""
    asks = sys.stdin.isatty()
    while True:
        if asks:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if question := line.strip():
            yield question
