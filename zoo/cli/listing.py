"""``zoo list``: lists the models."""

import argparse
from collections.abc import Sequence

HELP = "list the models: sizes, arithmetic, and what they were verified against"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("pattern", nargs="?", default="*", help="such as 'resnet*'")
    parser.add_argument("--names", action="store_true", help="print only the names, one a line")


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Prints the models."""
    if options.names:
        from zoo.families import list_models

        for name in list_models(options.pattern):
            print(name)
        return
    from rich.console import Console
    from rich.table import Table

    from zoo.inference import describe_models

    table = Table()
    for title in ("model", "parameters", "GFLOP forward", "input", "verified against"):
        table.add_column(title, justify="left" if title in ("model", "input") else "right")
    for row in describe_models(options.pattern):
        table.add_row(
            row["name"], f"{row['parameters']:,}", f"{row['gflop']:.3g}", row["input"],
            row["verified"],
        )  # fmt: skip
    Console(soft_wrap=True).print(table)
