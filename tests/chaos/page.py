"""The table of the harness, on the terminal and in ``docs/reliability.md``."""

import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from chaos.kinds import Count

BEGIN, END = "<!-- written by python -m tests.chaos -->", "<!-- end -->"


def line(count: Count) -> str:
    """Returns a line for the terminal."""
    return f"{count.kind.name:10} {count.tried:6} tried, {len(count.broken)} broken: {_came(count)}"


def write(path: Path, counts: Sequence[Count], seed: int) -> None:
    """Puts the table between the two marks of a page.

    Raises:
        ValueError: the page has no such marks.
    """
    rows = [
        f"| {count.kind.injected} | {count.kind.promised} | {count.tried} | "
        f"{count.outcomes.total()} | {len(count.broken)} | {_came(count)} |"
        for count in counts
    ]
    table = [
        f"`python -m tests.chaos`, seed {seed}, {_where()}:",
        "",
        "| injected | must come out | tried | survived | broken | what came out |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
    ]
    replace(path, BEGIN, table)


def replace(path: Path, begin: str, lines: Sequence[str]) -> None:
    """Replaces what stands between a mark and the next ``END``."""
    text = path.read_text(encoding="utf-8")
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"{path} has no place for the table: {begin} and {END}")
    made = "\n".join([begin, "", *lines, "", END])
    path.write_text(before + made + after, encoding="utf-8")


def _came(count: Count) -> str:
    return ", ".join(f"{number} {outcome}" for outcome, number in count.outcomes.most_common())


def _where() -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    cpu = platform.processor() or platform.machine()
    for entry in Path("/proc/cpuinfo").read_text().splitlines():
        if entry.startswith("model name"):
            cpu = entry.partition(":")[2].strip()
            break
    return f"{cpu}, commit {commit}, {time.strftime('%Y-%m-%d')}"
