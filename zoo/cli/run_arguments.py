"""The arguments of every command that opens a run."""

import argparse


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds ``--workdir`` and ``--checkpoint``."""
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--checkpoint", choices=("latest", "best"), default="latest")
