"""``zoo prepare``: writes a data set as a TFDS folder."""

import argparse
from collections.abc import Sequence

HELP = "download a data set and write it as a TFDS folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("name", help="name of the data set, such as mnist")
    parser.add_argument("--data_dir", default=None, help="output folder; default: TFDS's own")


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Prepares the data set."""
    from zoo.data.prepare import prepare

    prepare(options.name, options.data_dir)
