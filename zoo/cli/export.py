"""``zoo export``: writes the weights of a run for other libraries."""

import argparse
from collections.abc import Sequence

from zoo.cli.run_arguments import add_run

HELP = "write a run's weights under its reference's names"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_run(parser)
    parser.add_argument(
        "--out", default=None, help="output folder; default: export in the run's folder"
    )
    parser.add_argument(
        "--lora",
        action="store_true",
        help="write the low ranks of a run with lora.rank alone, for peft, to the folder adapter",
    )
    parser.add_argument("--format", choices=("safetensors",), default="safetensors")


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Exports the weights and prints the path of the file."""
    from zoo import inference

    print(
        inference.export(
            options.workdir, options.out, checkpoint=options.checkpoint, adapter=options.lora
        )
    )
