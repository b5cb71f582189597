"""Tables in the README and in docs, written between markers."""

from collections.abc import Sequence
from pathlib import Path

# Follows the date of what was measured before the last change of the code that it measures.
OLDER = "†"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays out a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_between(path: Path, name: str, content: str) -> None:
    """Replaces what stands between ``<!-- name:begin -->`` and ``<!-- name:end -->``.

    Raises:
        ValueError: the file does not have each marker once, in this order.
    """
    before, _, after = _parts(path, name)
    begin, end = _markers(name)
    path.write_text(f"{before}{begin}\n{content}\n{end}{after}", encoding="utf-8")


def read_between(path: Path, name: str) -> str:
    """Returns what ``write_between`` wrote.

    Raises:
        ValueError: the file does not have each marker once, in this order.
    """
    return _parts(path, name)[1].strip("\n")


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def _parts(path: Path, name: str) -> tuple[str, str, str]:
    begin, end = _markers(name)
    text = path.read_text(encoding="utf-8")
    before, found_begin, rest = text.partition(begin)
    content, found_end, after = rest.partition(end)
    if not (found_begin and found_end) or text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{path} must have {begin} and, after it, {end}, once each")
    return before, content, after
