"""Writes ``docs/dependencies.md``: what is installed with the package, why, under which licence.

    python scripts/make_dependencies.py --out=docs/dependencies.md

The licences are those that the installed packages state. Versions are those of
``requirements.lock``.
"""

import argparse
import re
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Dependencies

What `pip install -e .` installs, as tested (`requirements.lock`), with the licence that each
package states. `python scripts/make_dependencies.py --out=docs/dependencies.md` writes this page;
a test compares them.

All licences are permissive but MPL-2.0 (certifi, tqdm) and the LGPL-2.1 of libsndfile, a library of
its own in the wheel of soundfile. Neither asks anything of a program that uses the library.

Known weaknesses are looked up with `pip-audit --requirement requirements.lock`, which needs the
internet.
"""


def write(path: Path) -> None:
    """Writes the page."""
    versions = locked()
    reasons = direct()
    needed = _needed_by(versions)
    lines = [HEAD, "## Used by our code", "", "| package | version | licence | for |"]
    lines.append("| --- | --- | --- | --- |")
    lines += [
        f"| {name} | {version} | {licence(name)} | {reasons[name]} |"
        for name, version in versions.items()
        if name in reasons
    ]
    lines += ["", "## Used by those", "", "| package | version | licence | needed by |"]
    lines.append("| --- | --- | --- | --- |")
    lines += [
        f"| {name} | {version} | {licence(name)} | {', '.join(needed[name])} |"
        for name, version in versions.items()
        if name not in reasons
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def locked() -> dict[str, str]:
    """Returns the versions of what the package needs, by normalised name."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    found = re.findall(r"^([\w.-]+)==([\w.+]+)$", text.partition("\n# For tests")[0], re.MULTILINE)
    return {
        normalised(name): version for name, version in sorted(found, key=lambda x: x[0].lower())
    }


def direct() -> dict[str, str]:
    """Returns why our own code needs a package, from the comments in ``pyproject.toml``."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = text.partition("\ndependencies = [")[2].partition("\n]")[0]
    found = re.findall(r'^ +"([\w.-]+)[^"]*", *# (.+)$', listed, re.MULTILINE)
    return {normalised(name): why for name, why in found}


def normalised(name: str) -> str:
    """Returns a package's name as PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(name: str) -> str:
    """Returns the licence that an installed package states, as short as it states it.

    Raises:
        ValueError: it states none.
    """
    about = distribution(name).metadata
    stated = "".join((about.get_all("License-Expression") or about.get_all("License") or [])[:1])
    if stated and len(stated.splitlines()) == 1 and len(stated) < 60:
        return stated
    found = [
        kind.rpartition("::")[2].strip()
        for kind in about.get_all("Classifier", [])
        if kind.startswith("License :: OSI Approved ::")
    ]
    if found:
        return ", ".join(found)
    # The text of the licence itself, whose first words name it.
    words = " ".join(stated.split())
    for name_of, sign in (("Apache-2.0", "Apache License"), ("MIT", "MIT"), ("BSD", "BSD")):
        if sign in words[:400]:
            return name_of
    raise ValueError(f"{name} states no licence: {words[:80]!r}")


def _needed_by(names: Iterable[str]) -> dict[str, list[str]]:
    """Returns which of the packages need each of them."""
    asked = {extra for name in names for need in _needs(name, ()) for extra in need.extras}
    needs = {name: {normalised(need.name) for need in _needs(name, asked)} for name in names}
    return {name: [other for other in names if name in needs[other]] for name in names}


def _needs(name: str, extras: Iterable[str]) -> list[Requirement]:
    here = default_environment()
    environments: list[dict[str, Any]] = [{**here, "extra": extra} for extra in ("", *extras)]
    needs = [Requirement(text) for text in distribution(name).requires or []]
    return [
        need
        for need in needs
        if need.marker is None or any(need.marker.evaluate(given) for given in environments)
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    write(parser.parse_args().out)
