"""``zoo evaluate``: computes the metrics of a run on a split."""

import argparse
import json
import sys
from collections.abc import Sequence

from zoo import commands
from zoo.cli.run_arguments import add_run

HELP = """evaluate a run's checkpoint on a split of its data, or on other data

Other data are given with --config.data.name=NAME and further fields of the section data."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_run(parser)
    parser.add_argument(
        "--split",
        default="test",
        help="train, validation, test or another split of the data; several are joined by +, as "
        "in validation+test",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Evaluates the run and prints its metrics."""
    from zoo import building, inference, remote

    config = commands.override(building.read_config(remote.local(options.workdir)), overrides)
    result = inference.evaluate(
        options.workdir, config, split=options.split, checkpoint=options.checkpoint
    )
    for note in result.get("notes", ()):
        print(note, file=sys.stderr)
    if options.json:
        print(json.dumps({name: value for name, value in result.items() if name != "text"}))
        return
    print(f"{config.data.name} {result['split']}, {options.checkpoint} checkpoint, ", end="")
    print(f"step {result['step']}")
    for name, value in result["metrics"].items():
        print(f"{name} {value:.4f}")
    print(result.get("text", ""))
