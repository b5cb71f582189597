"""The tables of speed: all rows in ``docs/speed.md``, ten of them in the README."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import machine, tables

DOCS = machine.ROOT / "docs" / "speed.md"
README = machine.ROOT / "README.md"
# The README's rows, by the name of the work: each beside PyTorch.
CHOSEN = (
    "cnn",
    "resnet",
    "resnet50-inference-1",
    "lstm-256",
    "gru-256",
    "gpt",
    "decoding-16",
    "unet",
    "loop-gpt",
    "loop-speech",
)

Row = dict[str, Any]
Results = dict[str, Any]
IsOlder = Callable[[str | None], bool]


def write(of_each: Sequence[Results], names: Mapping[str, str], is_older: IsOlder) -> None:
    """Writes both tables.

    Args:
        of_each: the results files, one for each machine.
        names: of the works, by the title of their rows.
        is_older: whether a row measured at a commit is older than its code.
    """
    full = "\n\n".join(as_markdown(results, names, is_older) for results in of_each)
    tables.write_between(DOCS, "benchmarks", full)
    tables.write_between(README, "speed", summary(of_each, names, is_older))


def as_markdown(results: Results, names: Mapping[str, str], is_older: IsOlder) -> str:
    """Lays out a results file."""
    used = results["versions"]
    header = (
        "work", "ours", "peer", "ratio", "spread", "goal", "share of limit", "rounds", "measured",
        "`--only`",
    )  # fmt: skip
    rows = [
        (
            row["work"],
            _duration(row["ours_ms"]),
            f"{_duration(row['peer_ms'])} ({row['peer']})" if row["peer"] else "-",
            f"{row['ratio']:.2f}" if row["peer"] else "-",
            f"{100 * row['spread']:.0f} %{', disturbed' if row['disturbed'] else ''}"
            if row["rounds"] > 1
            else "-",
            _goal(row),
            f"{100 * row['share_of_limit']:.0f} %" if row["share_of_limit"] else "-",
            str(row["rounds"]),
            _measured(row, is_older),
            f"`{names[row['work']]}`",
        )
        for row in results["rows"]
    ]
    return (
        f"{_machine(results)}; "
        f"jax {used['jax']}, PyTorch {used['torch']}:\n\n{tables.markdown(header, rows)}"
    )


def summary(of_each: Sequence[Results], names: Mapping[str, str], is_older: IsOlder) -> str:
    """Lays out the rows in ``CHOSEN``: ours, PyTorch's and their ratio on each machine."""
    titles = {name: title for title, name in names.items()}
    header = ["work"]
    for results in of_each:
        header += [f"{_machine(results)}: ours", "PyTorch", "ratio", "measured"]
    rows = []
    for name in CHOSEN:
        cells = [titles[name]]
        for results in of_each:
            found = [
                row
                for row in results["rows"]
                if row["work"] == titles[name] and row["peer"].startswith("PyTorch")
            ]
            cells += (
                [
                    _duration(found[0]["ours_ms"]),
                    _duration(found[0]["peer_ms"]),
                    f"{found[0]['ratio']:.2f}",
                    f"{found[0]['date']}{_mark(found[0], is_older)}",
                ]
                if found
                else 4 * ["-"]
            )
        rows.append(cells)
    return tables.markdown(header, rows)


def _machine(results: Results) -> str:
    of = results["machine"]
    return f"{of['processor']}, {of['cores']} cores"


def _measured(row: Row, is_older: IsOlder) -> str:
    at = f", {row['commit']}" if row.get("commit") else ""
    return f"{row['date']}{at}{_mark(row, is_older)}"


def _mark(row: Row, is_older: IsOlder) -> str:
    return tables.OLDER if is_older(row.get("commit")) else ""


def _goal(row: Row) -> str:
    if not row["goal"]:
        return "-"
    return f"≤ {row['goal'] if row['peer'] else _duration(row['goal'])}"


def _duration(milliseconds: float) -> str:
    if milliseconds < 10:
        return f"{milliseconds:.2g} ms"
    return f"{milliseconds:.0f} ms" if milliseconds < 10_000 else f"{milliseconds / 1000:.0f} s"
