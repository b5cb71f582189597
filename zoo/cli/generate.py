"""``zoo generate --model``: continues texts with a model that has published weights.

``zoo generate --workdir`` asks a run; see ``zoo.cli.ask``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import UserError

if TYPE_CHECKING:
    from zoo.pretrained import Pretrained
    from zoo.tasks.generation import TextModel

HELP = """continue texts with a published model

The text comes as it is decoded. When it has reached the model's context, decoding goes on with the
newer half of it. A beam search prints its result at the end."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    from zoo.tasks.generation import add_prompts, add_request

    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    add_prompts(parser)
    add_request(parser)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Prints the prompts and the texts that follow them."""
    from zoo.cli import ask
    from zoo.tasks.generation import answers, prompts_of, request_of

    # What is wrong with the options is said before the weights are read.
    prompts, request = prompts_of(options), request_of(options)
    model = text_model(read_model(options))
    ask.show(answers(model, prompts, request), as_json=options.json)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds ``--model``, for ``read_model``."""
    parser.add_argument(
        "--model",
        help="folder of published weights with config.json and a tokenizer, or its name on the hub",
    )
    # Known here so that the one who gives both hears what to do.
    parser.add_argument("--workdir", help=argparse.SUPPRESS)


def read_model(options: argparse.Namespace) -> "Pretrained":
    """Reads the model that ``--model`` names.

    Raises:
        UserError: ``--workdir`` is given too, ``--model`` is missing, or there is no such model.
    """
    if options.workdir is not None and options.model is not None:
        raise UserError("give either --workdir (a run) or --model (published weights), not both")
    if options.model is None:
        raise UserError("--model is missing: give the folder of a model with published weights")
    import zoo
    from zoo import pretrained

    zoo.use_kernels()
    return pretrained.from_pretrained(options.model)


def text_model(model: "Pretrained") -> "TextModel":
    """Returns a model with published weights as one that reads and writes texts.

    Raises:
        UserError: the model does not continue texts, or has no tokenizer.
    """
    import jax

    from zoo.families import find
    from zoo.tasks.generation import TextModel

    family = find(model.name)
    if family.kind != "causal_lm":
        raise UserError(
            f"{model.name!r} is of the kind {family.kind!r} and does not continue texts: give a "
            "model of the kind 'causal_lm', such as GPT-2"
        )
    module: Any = model.module
    tokenizer = model.tokenizer
    return TextModel(
        step=jax.tree_util.Partial(module.apply, model.variables),
        initial_cache=module.initial_cache,
        context=None if module.recurrent else module.context,
        encode=tokenizer.encode,
        decode=lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True),
        ends=end_tokens(model.folder, tokenizer.token("eos")),
    )


def end_tokens(folder: Path, usual: int | None) -> tuple[int, ...]:
    """Returns the tokens that end a text.

    Args:
        folder: the folder of a model. Its ``generation_config.json`` names one token or several;
            where it does not, ``config.json`` does.
        usual: the token that the tokenizer names; None: it names none.

    Raises:
        UserError: a file cannot be read, or names something else than tokens.
    """
    from zoo.weights.files import read_json

    for name in ("generation_config.json", "config.json"):
        file = folder / name
        content: Any = read_json(file) if file.is_file() else {}
        if not isinstance(content, dict):
            raise UserError(f"{file} is not a JSON object")
        given = content.get("eos_token_id")
        if given is None:
            continue
        tokens = given if isinstance(given, list) else [given]
        if not all(type(token) is int and token >= 0 for token in tokens):
            raise UserError(f"{file}: eos_token_id={given!r} must be a token or a list of tokens")
        return tuple(tokens)
    return () if usual is None else (usual,)
