"""The report as one self-contained HTML file: no scripts, and nothing loaded from elsewhere."""

import base64
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from zoo import storage
from zoo.files import write_atomically
from zoo.reports.formats import number
from zoo.reports.plots import draw_curves
from zoo.reports.results import FAILURES
from zoo.reports.sections import Curve, Failure, Figure, Gallery, Numbers, Run, Section, Table


def write_page(
    path: Path,
    runs: Sequence[Run],
    *,
    comparison: Mapping[str, Sequence[str]] | None = None,
    figures: Sequence[tuple[str, Path]] = (),
) -> dict[str, str]:
    """Writes the page of one run or of several.

    Each run shows its numbers, ``curves.png``, its sections in their order, its parameters, its
    config and its environment. A picture whose file is missing is named as missing, and so is a
    section that cannot be shown.

    Args:
        path: the HTML file to write.
        runs: finished runs; their folders hold ``config.json`` and the pictures.
        comparison: rows of a table with one text for each run, by the row's name.
        figures: captions and PNG files that stand before those of the runs.

    Returns:
        Why a section cannot be shown, by the title of the section.
    """
    # Imported here because it takes a while. It escapes everything that it inserts.
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True).from_string(
        resources.files("zoo.reports").joinpath("page.html").read_text(encoding="utf-8")
    )
    shown = [_shown_run(run, several=len(runs) > 1) for run in runs]
    text = template.render(
        title=" · ".join(run.name for run in runs),
        subtitle=_subtitle(runs),
        mark=_mark(runs),
        runs=shown,
        comparison=comparison,
        figures=[_picture(caption, file, "chart") for caption, file in figures],
    )
    # A name with half a surrogate pair, from a file system that is not UTF-8, cannot be written.
    with storage.named(path):
        write_atomically(path, text.encode("utf-8", "replace").decode("utf-8"))
    return {
        section["title"]: section["reason"]
        for run in shown
        for section in run["sections"]
        if section["type"] == "failure"
    }


def shows(path: Path, runs: Sequence[Run]) -> bool:
    """Returns whether a file is a page of just these runs, in any order."""
    return path.is_file() and _mark(runs) in path.read_text(encoding="utf-8", errors="replace")


def numbers(run: Run) -> dict[str, str]:
    """Returns what a reader looks for first, as text: metrics, size, length, times and speed."""
    report = run.report
    metrics = {
        f"{split} {name}": number(value)
        for split in ("test", "validation")
        for name, value in report["metrics"].get(split, {}).items()
    }
    best = {
        f"best validation {name}": number(value)
        for name, value in report.get("best", {}).items()
        if name != "step" and value is not None
    }
    own = {
        name: text
        for section in run.sections
        if isinstance(section, Numbers)
        for name, text in section.values
    }
    return {
        **metrics,
        **best,
        "parameters": f"{report['parameters']:,}",
        "steps": f"{report['steps']:,}",
        "epochs": f"{report.get('epochs', 0):.2f}",
        "seconds of training": f"{report['train_seconds']:.0f}",
        "seconds of compiling": f"{report.get('compile_seconds', 0):.0f}",
        "examples per second": f"{report['examples_per_second']:.0f}",
        **own,
    }


def _shown_run(run: Run, *, several: bool) -> dict[str, Any]:
    """Returns what the template shows of a run; headings name it where there are several."""
    suffix = f": {run.name}" if several else ""
    sections: list[Section] = [Figure("Curves", "curves.png"), *run.sections]
    sections += [Failure(*failed) for failed in run.report.get(FAILURES, {}).items()]
    sections += made("Parameters", lambda: _parameters(run.report))
    return {
        "name": run.name,
        "suffix": suffix,
        "numbers": numbers(run),
        "sections": [
            _shown_or_failed(section, run.folder, suffix)
            for section in sections
            if not isinstance(section, Numbers)
        ],
        "config": _config(run.folder),
        "environment": run.report.get("environment", {}),
    }


def made(title: str, make: Callable[[], Sequence[Section]]) -> list[Section]:
    """Returns the sections that a function makes, or one that says why it cannot make them.

    A report that another version of the zoo wrote, or a task outside the zoo, may raise anything.
    Everything else on the page is still worth reading.
    """
    try:
        return list(make())
    except Exception as error:  # noqa: BLE001
        return [Failure(title, in_words(error))]


def in_words(error: Exception) -> str:
    """Returns the kind of an error and its message, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _parameters(report: Mapping[str, Any]) -> list[Section]:
    parameters = report.get("parameter_table")
    if not parameters:
        return []
    rows = tuple((layer, shapes, f"{count:,}") for layer, shapes, count in parameters)
    return [Table("Parameters", ("layer", "shapes", "parameters"), rows, prose=("shapes",))]


def _config(folder: Path) -> str:
    try:
        return storage.read_text(folder / "config.json", "").strip()
    except storage.DamagedFile as error:
        return str(error)


def _shown_or_failed(section: Section, folder: Path, suffix: str) -> dict[str, Any]:
    """Returns a section as ``_shown`` does, or says why it cannot be shown."""
    try:
        return _shown(section, folder, suffix)
    except Exception as error:
        if storage.refusal(error) is not None:
            raise
        title = getattr(section, "title", type(section).__name__)
        return {"type": "failure", "title": title + suffix, "reason": in_words(error)}


def _shown(section: Section, folder: Path, suffix: str) -> dict[str, Any]:
    """Returns a section as the template takes it, with its pictures inside."""
    if isinstance(section, Failure):
        return {"type": "failure", "title": section.title + suffix, "reason": section.reason}
    if isinstance(section, Figure):
        picture = _picture(section.title + suffix, folder / section.file, section.kind)
        return {"type": "picture", "picture": picture}
    if isinstance(section, Gallery):
        pictures = [_picture(caption, folder / file, "") for file, caption in section.items]
        return {"type": "gallery", "title": section.title + suffix, "pictures": pictures}
    if isinstance(section, Curve):
        file = io.BytesIO()
        draw_curves(file, {"": section})
        image = _embedded(file.getvalue())
        picture = {"caption": section.title + suffix, "image": image, "kind": "chart"}
        return {"type": "picture", "picture": picture}
    if isinstance(section, Table):
        columns = [(name, "text" if name in section.prose else "") for name in section.columns]
        return {
            "type": "table",
            "title": section.title + suffix,
            "columns": columns,
            "rows": [
                [(text, kind) for text, (_, kind) in zip(row, columns, strict=True)]
                for row in section.rows
            ],
        }
    raise TypeError(f"{section!r} is not a section of zoo.reports.sections")


def _picture(caption: str, file: Path, kind: str) -> dict[str, str]:
    if not file.is_file():
        return {"caption": f"{caption} ({file.name} is missing)", "image": "", "kind": kind}
    return {"caption": caption, "image": _embedded(file.read_bytes()), "kind": kind}


def _embedded(png: bytes) -> str:
    """Returns a PNG file's content as the address of an image."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _mark(runs: Sequence[Run]) -> str:
    """Returns a word that stands for these runs, without telling where their folders are."""
    folders = sorted(str(run.folder.resolve()) for run in runs)
    text = "\n".join(folders).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()


def _subtitle(runs: Sequence[Run]) -> str:
    devices = {
        run.report.get("environment", {}).get("device", run.report["platform"]) for run in runs
    }
    return f"trained on {' and '.join(sorted(map(str, devices)))}"
