"""Compares every model with its reference, and writes down how far they are apart.

    python -m benchmarks.verified

runs the tests that compare, writes ``zoo/families/verified.json``, which ``zoo list`` reads, and
the table of ``docs/models.md``. Models at full size are compared by ``./test.sh -m long``.
"""

import argparse
import json
import subprocess
import sys
from typing import Any

from benchmarks import machine, tables

STATUS = machine.ROOT / "zoo" / "families" / "verified.json"
DOCUMENT = machine.ROOT / "docs" / "models.md"
TESTS = ("tests/models", "tests/layers/test_recurrence.py", "-m", "not long", "-k", "computes")
KINDS = ("forward", "gradient")


def as_markdown(status: dict[str, dict[str, Any]]) -> str:
    """Lays out the file that ``pytest --status`` writes."""
    header = (
        "model", "verified against", "arrays", "forward, float64", "float32", "gradient, float64",
        "float32", "in training too",
    )  # fmt: skip
    rows = [
        (
            f"`{name}`",
            one["reference"],
            str(one["arrays"]),
            *(f"{one[kind][dtype]:.0e}" for kind in KINDS for dtype in ("float64", "float32")),
            "yes" if one["training"] else "-",
        )
        for name, one in status.items()
    ]
    return tables.markdown(header, rows)


def main() -> None:
    """Runs the tests and writes both files."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.verified", description="How far models are from references."
    ).parse_args()
    pytest = (sys.executable, "-m", "pytest", "-q", *TESTS, f"--status={STATUS}")
    done = subprocess.run(pytest, cwd=machine.ROOT, check=False)
    if done.returncode:
        raise SystemExit("error: not every model computes what its reference does: see above")
    status = json.loads(STATUS.read_text(encoding="utf-8"))
    tables.write_between(DOCUMENT, "verified", as_markdown(status))


if __name__ == "__main__":
    main()
