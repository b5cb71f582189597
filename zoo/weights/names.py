"""How the names in a file go with those of a model: by which table, and what does not fit."""

import collections
import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from zoo.weights.files import shown

# Counters that PyTorch keeps beside the weights, in batch normalisations and in averaged models.
COUNTER = re.compile(r"(?:^|\.)(?:num_batches_tracked|n_averaged)$")
# Parts of names that come from a wrapper around a module, or around a part of it.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# How many names a message shows of each kind.
FEW = 5


@dataclasses.dataclass(frozen=True)
class Fit:
    """The table for a file, and the file's names by the table's.

    Attributes:
        library: the name of the table, which is the library whose names the file has.
        names: the name in the file of each array, by the name in the table. Counters are left out.
        said: what was left out of the names, for people; empty: nothing.
        hint: why the rest may not fit, if it does not: a line or more, or empty.
    """

    library: str
    names: dict[str, str]
    said: str
    hint: str


def fit(found: Iterable[str], tables: Mapping[str, Collection[str]]) -> Fit:
    """Chooses the table that has the most of a file's names, and what to leave out of them.

    The names of wrappers (``module.``, ``_orig_mod.``) are left out wherever they stand, and other
    beginnings, such as ``model.``, if all names share them; each only where more names fit then.

    Args:
        found: the names in the file.
        tables: the names of each table, by its library, in the table's order.
    """
    given = [name for name in found if not COUNTER.search(name)]
    best: tuple[int, str, dict[str, str], str] = (-1, "", {}, "")
    for names, said in _spellings(given):
        for library, known in tables.items():
            count = sum(name in known for name in names)
            if count > best[0]:
                best = (count, library, names, said)
    count, library, names, said = best
    hint = _half_prefix(names, tables[library], count)
    if not hint and not count and given:
        hint = _strangers(given, tables)
    return Fit(library, names, said, hint)


def differences(found: Collection[str], wanted: Sequence[str], known: Collection[str]) -> list[str]:
    """Returns lines that say which names are missing and which are too many; few, with counts.

    Args:
        found: the names that there are.
        wanted: the names that there must be.
        known: the names that there may be.
    """
    there = set(found)
    wanted = list(dict.fromkeys(wanted))
    missing = [name for name in wanted if name not in there]
    extra = [name for name in found if name not in known]
    lines = []
    if len(missing) > FEW:
        lines.append(
            f"{len(missing)} of {len(wanted)} arrays are missing{_grouped(missing, wanted)}:"
        )
    lines += _few([f"{name} is missing" for name in missing])
    if len(extra) > FEW:
        lines.append(
            f"{len(extra)} of {len(found)} arrays are not in the table{_grouped(extra, found)}:"
        )
    lines += _few([f"{shown(name)} is not in the table" for name in extra])
    return lines


def few(lines: Sequence[str]) -> str:
    """Returns the first lines, each on a line of its own, and how many more there are."""
    return "".join(f"\n  {line}" for line in _few(lines))


def _few(lines: Sequence[str]) -> list[str]:
    more = len(lines) - FEW
    return [*lines[:FEW], *([f"... and {more} more"] if more > 0 else [])]


def _spellings(names: Sequence[str]) -> Iterable[tuple[dict[str, str], str]]:
    """Yields ways to read a file's names, each with what was left out; the plain one first."""
    shared, rest = [""], list(names)
    while all("." in name for name in rest) and len({n.partition(".")[0] for n in rest}) == 1:
        shared.append(shared[-1] + rest[0].partition(".")[0] + ".")
        rest = [name.partition(".")[2] for name in rest]
    beginnings = [
        (prefix, f"all {len(names)} names begin with {shown(repr(prefix))}, which is left out")
        for prefix in shared
    ]
    for prefix, said in beginnings:
        yield {name.removeprefix(prefix): name for name in names}, said if prefix else ""
    for prefix, said in beginnings:
        bare, wrapped, wrappers = {}, 0, set()
        for name in names:
            *branch, leaf = name.removeprefix(prefix).split(".")
            kept = [part for part in branch if part not in _WRAPPERS]
            wrapped += len(kept) < len(branch)
            wrappers |= set(branch) - set(kept)
            bare[".".join([*kept, leaf])] = name
        if wrapped and len(bare) == len(names):  # no two names have become one
            found = " and ".join(repr(f"{part}.") for part in sorted(wrappers))
            inner = f"{found} is left out of {wrapped} of {len(names)} names"
            yield bare, f"{said}; {inner}" if prefix else inner


def _half_prefix(names: Mapping[str, str], known: Collection[str], count: int) -> str:
    """Says which beginning some of the names share, if more of them fit without it."""
    firsts = collections.Counter(name.partition(".")[0] for name in names if "." in name)
    for first, number in firsts.most_common(FEW):
        prefix = f"{first}."
        with_it = [name for name in names if name.startswith(prefix)]
        fitting = sum(name.removeprefix(prefix) in known for name in with_it)
        if number < len(names) and fitting > count:
            other = next(name for name in names if not name.startswith(prefix))
            more = f" and {len(names) - number - 1} more" if len(names) - number > 1 else ""
            return (
                f"{number} of {len(names)} names begin with {shown(repr(prefix))}, and without it "
                f"{fitting} of them are the model's; the rest ({shown(other)}{more}) begins "
                "otherwise. Write a file with the former alone: safetensors.numpy.load_file reads "
                "the arrays by name, and save_file writes them"
            )
    return ""


def _strangers(given: Sequence[str], tables: Mapping[str, Collection[str]]) -> str:
    theirs = ", ".join(map(shown, given[:3]))
    ours = "; ".join(
        f"{', '.join(list(known)[:3])} ({library})" for library, known in tables.items()
    )
    return (
        f"none of the file's {len(given)} names is the model's: the file has {theirs}"
        f"{_and_so_on(given)} and the model {ours}, ... Is it the file of another model?"
    )


def _and_so_on(names: Sequence[str]) -> str:
    return ", ...," if len(names) > 3 else ""


def _grouped(names: Sequence[str], of: Collection[str]) -> str:
    """Says which whole branches of ``of`` the names are: ``, all 12 of transformer.h.2``."""
    chosen = set(names)
    partly = {branch for name in of if name not in chosen for branch in _branches(name)}
    whole: collections.Counter[str] = collections.Counter()
    for name in names:
        for branch in _branches(name):
            if branch not in partly:
                whole[branch] += 1
                break
    several = [f"all {count} of {shown(b)}" for b, count in whole.items() if count > 1 and b]
    if not several:
        return ""
    more = f" and of {len(several) - 3} more" if len(several) > 3 else ""
    return f", {', '.join(several[:3])}{more}"


def _branches(name: str) -> list[str]:
    """Returns the branches that a name is on, from the root: ``""``, ``layer1``, ``layer1.0``."""
    return ["", *(name[: match.start()] for match in re.finditer(r"[./]", name))]
