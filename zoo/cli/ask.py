"""The commands that ask a finished run, such as ``zoo predict``. Each task defines its own."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from zoo.cli.run_arguments import add_run
from zoo.errors import UserError, did_you_mean


def purposes() -> dict[str, str]:
    """Returns what each verb does in the tasks that have it, by the name of the verb."""
    from zoo.tasks import WINGS

    found: dict[str, list[str]] = {}
    for wing in WINGS:
        for name, verb in wing.verbs.items():
            found.setdefault(name, []).append(verb.purpose)
    return {name: "; ".join(dict.fromkeys(texts)) for name, texts in sorted(found.items())}


def run(name: str, arguments: Sequence[str]) -> None:
    """Asks a run.

    Raises:
        UserError: the verb is unknown, or the task of the run does not have it.
    """
    from zoo import building, inference, remote

    given, _ = _workdir_alone().parse_known_args(arguments)
    if given.workdir is None:
        _without_run(name, helps=given.help)
        return
    wing = building.wing_of(building.read_config(remote.local(given.workdir)))
    if name not in wing.verbs:
        _refuse(name, wing.name, list(wing.verbs), given.workdir)
    verb = wing.verbs[name]
    parser = _parser(name, verb.purpose)
    verb.add_arguments(parser)
    options = parser.parse_args(arguments)
    loaded = inference.load(options.workdir, checkpoint=options.checkpoint)
    show(
        verb.answer(loaded, options, lambda text: print(text, file=sys.stderr)),
        as_json=options.json,
    )


def show(answers: Iterable[Any], *, as_json: bool) -> None:
    """Prints answers: as they come, or one JSON object a line."""
    for answer in answers:
        if as_json:
            output = "".join(answer.shown) if answer.output is None else answer.output
            print(json.dumps({"input": answer.given, "output": output}, ensure_ascii=False))
            continue
        for piece in answer.shown:
            print(piece, end="", flush=True)
        print()


def _workdir_alone() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workdir")
    parser.add_argument("-h", "--help", action="store_true")
    return parser


def _parser(name: str, purpose: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"zoo {name}", description=purpose)
    add_run(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    return parser


def _without_run(name: str, *, helps: bool) -> None:
    """Prints the help of a verb for each task that has it."""
    from zoo.cli import COMMANDS, OF_MODELS
    from zoo.tasks import WINGS

    having = [wing for wing in WINGS if name in wing.verbs]
    if not having and name not in OF_MODELS:
        known = {*COMMANDS, *OF_MODELS, *(verb for wing in WINGS for verb in wing.verbs)}
        raise UserError(
            f"there is no command {name!r}.{did_you_mean(name, known)} A command of a task of "
            "your own needs --workdir"
        )
    if not helps:
        if not having:
            raise UserError(f"zoo {name}: --model is missing: give a folder of published weights")
        instead = ", or --model and a folder of published weights" if name in OF_MODELS else ""
        raise UserError(f"zoo {name}: --workdir is missing: give the run's folder{instead}")
    for wing in having:
        verb = wing.verbs[name]
        parser = _parser(name, f"For a run with task.name={wing.name!r}: {verb.purpose}.")
        verb.add_arguments(parser)
        print(parser.format_help())
    if name in OF_MODELS:
        command = OF_MODELS[name]
        parser = argparse.ArgumentParser(prog=f"zoo {name}", description=command.HELP)
        command.add_arguments(parser)
        print(parser.format_help())


def _refuse(name: str, task: str, verbs: Sequence[str], workdir: str) -> None:
    from zoo.cli import OF_MODELS
    from zoo.tasks import WINGS

    having = [wing.name for wing in WINGS if name in wing.verbs]
    if not having and name in OF_MODELS:
        raise UserError(
            f"zoo {name} needs published weights: give --model and their folder, not --workdir"
        )
    if not having:
        raise UserError(
            f"there is no command {name!r} for a run with task.name={task!r}."
            f"{did_you_mean(name, verbs)}"
        )
    instead = " or ".join(f"`zoo {verb} --workdir={workdir}`" for verb in verbs)
    raise UserError(
        f"zoo {name} needs a run with task.name={' or '.join(map(repr, having))}; this one has "
        f"{task!r}: use {instead}"
    )
