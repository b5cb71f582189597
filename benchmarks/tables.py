"""Tables in the README, written between markers."""

from collections.abc import Sequence
from pathlib import Path


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays out a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_between(path: Path, name: str, content: str) -> None:
    """Replaces what stands between ``<!-- name:begin -->`` and ``<!-- name:end -->``.

    Raises:
        ValueError: the file does not have each marker once, in this order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = path.read_text(encoding="utf-8")
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end) or text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{path} must have {begin} and, after it, {end}, once each")
    path.write_text(f"{before}{begin}\n{content}\n{end}{after}", encoding="utf-8")
