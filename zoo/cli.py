"""The ``zoo`` command."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from zoo import commands
from zoo.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line ``zoo COMMAND …`` and ends the program."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands.run_to_exit(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> None:
    others, overrides = commands.split_overrides(arguments)
    options = _parser().parse_args(others)
    if overrides and options.command != "evaluate":
        raise UserError(f"zoo {options.command} takes no {overrides[0]}")
    if options.command == "list":
        _list(options.pattern)
    elif options.command == "evaluate":
        _evaluate(options, overrides)
    else:
        from zoo.data.prepare import prepare

        prepare(options.name, options.data_dir)


def _list(pattern: str) -> None:
    from zoo.models import list_models

    for name in list_models(pattern):
        print(name)


def _evaluate(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from zoo import building, inference

    config = commands.override(building.read_config(Path(options.workdir)), overrides)
    result = inference.evaluate(
        options.workdir, config, split=options.split, checkpoint=options.checkpoint
    )
    if options.json:
        print(json.dumps({name: value for name, value in result.items() if name != "text"}))
        return
    print(f"{config.data.name} {result['split']}, {options.checkpoint} checkpoint, ", end="")
    print(f"step {result['step']}")
    for name, value in result["metrics"].items():
        print(f"{name} {value:.4f}")
    print(result.get("text", ""))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="zoo", description="A functional model zoo for JAX.")
    subparsers = parser.add_subparsers(dest="command", required=True)

    lister = subparsers.add_parser("list", help="the names of the models")
    lister.add_argument("pattern", nargs="?", default="*", help="such as 'resnet*'")

    evaluate = subparsers.add_parser(
        "evaluate",
        help="evaluate a run's checkpoint",
        description="Evaluates a run's checkpoint on a split of its data, or of other data given "
        "with --config.data.name=NAME --config.data.data_dir=DIR.",
    )
    evaluate.add_argument("--workdir", required=True, help="the run's folder")
    evaluate.add_argument("--split", default="test", help="train, validation or test")
    evaluate.add_argument("--checkpoint", choices=("latest", "best"), default="latest")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")

    prepare = subparsers.add_parser(
        "prepare", help="download a data set and write it as a TFDS folder"
    )
    prepare.add_argument("name", help="name of the data set, such as mnist")
    prepare.add_argument("--data_dir", default=None, help="where to; default: TFDS's own folder")
    return parser


if __name__ == "__main__":
    main()
