"""The ``zoo`` command, one file a command. A task defines the commands that ask its runs."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

from zoo import commands
from zoo.cli import (
    ask,
    chat,
    evaluate,
    export,
    generate,
    launch,
    listing,
    plan,
    prepare,
    report,
    transcribe,
)
from zoo.errors import UserError

# Each module has HELP, add_arguments(parser) and run(options, overrides).
COMMANDS: Mapping[str, ModuleType] = {
    "list": listing,
    "evaluate": evaluate,
    "export": export,
    "report": report,
    "plan": plan,
    "prepare": prepare,
    "launch": launch,
}
# Commands that ask a published model where ``--model`` names its folder, and a run otherwise.
OF_MODELS: Mapping[str, ModuleType] = {
    "generate": generate,
    "chat": chat,
    "transcribe": transcribe,
}
# The commands that take fields of a config.
_TAKE_FIELDS = ("evaluate", "plan")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line ``zoo COMMAND …`` and ends the program."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands.run_to_exit(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["launch"] and "--" in arguments:
        # What follows -- is the command line of another program.
        end = arguments.index("--")
        arguments, command_line = arguments[:end], arguments[end + 1 :]
    else:
        command_line = []
    others, overrides = commands.split_overrides(arguments)
    name = next(iter(others), "--help")
    if name in ("-h", "--help"):
        print(_help())
        return
    if name.startswith("-"):
        raise UserError(f"{name}: the first word is a command, as in `zoo list`; see `zoo --help`")
    if overrides and name not in _TAKE_FIELDS:
        raise UserError(f"zoo {name} takes no {overrides[0]}")
    if name in OF_MODELS and not _names(others, "--model"):
        if not _names(others, "--workdir") and {"-h", "--help"} & {*others}:
            print(f"For a published model:\n\n{_parser(name, OF_MODELS[name]).format_help()}")
        ask.run(name, others[1:])
        return
    command = COMMANDS.get(name) or OF_MODELS.get(name)
    if command is None:
        ask.run(name, others[1:])
        return
    parser = _parser(name, command)
    run: Callable[[argparse.Namespace, Sequence[str]], None] = command.run
    run(parser.parse_args(others[1:]), command_line if name == "launch" else overrides)


def _names(arguments: Sequence[str], flag: str) -> bool:
    return any(word == flag or word.startswith(f"{flag}=") for word in arguments)


def _parser(name: str, command: ModuleType) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"zoo {name}",
        description=command.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    return parser


def _help() -> str:
    """Returns the list of commands, including those that ask a run."""

    def listed(commands: Mapping[str, ModuleType]) -> list[str]:
        return [f"  {name:<12}{module.HELP.splitlines()[0]}" for name, module in commands.items()]

    lines = ["usage: zoo COMMAND …", "", "A functional model zoo for JAX.", "", "Any run:"]
    lines += listed(COMMANDS)
    lines += ["", "Runs of some tasks:"]
    lines += [f"  {name:<12}{purpose}" for name, purpose in ask.purposes().items()]
    lines += ["", "Published models, with --model FOLDER:", *listed(OF_MODELS)]
    return "\n".join([*lines, "", "`zoo COMMAND --help` says what a command takes."])
