"""Writes ``docs/api/``: the public functions and classes, from their source and docstrings.

    python scripts/make_api.py --out=docs/api

Signatures are shown as they are written in the source, so that shapes stay readable:
``Float[Array, "batch time"]``. The attributes that flax adds to every module, ``parent`` and
``name``, are left out.

A program of our own, because pdoc and Sphinx show the annotations as Python evaluates them, at the
length of several lines for each array.
"""

import argparse
import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

# By page: the modules on it. A star stands for the modules of a package.
PAGES: dict[str, tuple[str, ...]] = {
    "zoo": ("zoo", "zoo.runner"),
    "layers": ("zoo.layers",),
    "models": ("zoo.models", "zoo.families", "zoo.families.family"),
    "losses": ("zoo.losses",),
    "metrics": ("zoo.metrics",),
    "tasks": ("zoo.tasks", "zoo.tasks.*"),
    "training": ("zoo.training", "zoo.training.*"),
    "decoding": ("zoo.decoding",),
    "diffusion": ("zoo.diffusion",),
    "data": ("zoo.data",),
    "weights": ("zoo.pretrained", "zoo.tokenizers", "zoo.weights.files", "zoo.weights.tables"),
    "inference": ("zoo.inference",),
}
_WIDTH = 100
_SECTIONS = ("Args", "Attributes", "Raises", "Returns", "Yields")
# Special methods that are part of an interface.
_CALLED = ("__call__", "__getitem__", "__len__")

Definition = ast.FunctionDef | ast.ClassDef


def modules_of(names: Sequence[str]) -> Iterator[ModuleType]:
    """Imports the modules of a page."""
    for name in names:
        package = importlib.import_module(name.removesuffix(".*"))
        if not name.endswith(".*"):
            yield package
            continue
        for found in pkgutil.iter_modules(package.__path__):
            if not found.name.startswith("_"):
                yield importlib.import_module(f"{package.__name__}.{found.name}")


def public_names(module: ModuleType) -> list[str]:
    """Returns what a module offers: ``__all__``, or what it defines without an underscore."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
    return sorted(names, key=str.lower)


class Source:
    """The source of a module, from which signatures are quoted."""

    def __init__(self, module: ModuleType) -> None:
        """Reads and parses it."""
        self.text = inspect.getsource(module)
        self.body = ast.parse(self.text).body

    def definition(self, name: str) -> Definition | None:
        """Returns the function or class of a name."""
        for node in self.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
                return node
        return None

    def quote(self, node: ast.AST) -> str:
        """Returns the text of a node on one line."""
        text = " ".join((ast.get_source_segment(self.text, node) or "").split())
        # What a formatter broke into lines.
        return re.sub(r",?\s*([\])}])", r"\1", re.sub(r"([\[({])\s+", r"\1", text))

    def signature(self, function: ast.FunctionDef) -> str:
        """Returns ``def name(...) -> result``, on several lines if it is long."""
        arguments = function.args
        positional = [*arguments.posonlyargs, *arguments.args]
        defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
        parts = [
            self._argument(one, default) for one, default in zip(positional, defaults, strict=True)
        ]
        if arguments.posonlyargs:
            parts.insert(len(arguments.posonlyargs), "/")
        if arguments.vararg:
            parts.append("*" + self._argument(arguments.vararg, None))
        elif arguments.kwonlyargs:
            parts.append("*")
        parts += [
            self._argument(one, default)
            for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        ]
        if arguments.kwarg:
            parts.append("**" + self._argument(arguments.kwarg, None))
        result = f" -> {self.quote(function.returns)}" if function.returns else ""
        line = f"def {function.name}({', '.join(parts)}){result}"
        if len(line) <= _WIDTH:
            return line
        inner = "".join(f"    {part},\n" for part in parts)
        return f"def {function.name}(\n{inner}){result}"

    def _argument(self, argument: ast.arg, default: ast.expr | None) -> str:
        text = argument.arg
        if argument.annotation:
            text += f": {self.quote(argument.annotation)}"
        if default is not None:
            text += (
                f" = {self.quote(default)}" if argument.annotation else f"={self.quote(default)}"
            )
        return text

    def fields(self, node: ast.ClassDef) -> list[str]:
        """Returns the attributes of a dataclass or a linen module, with their defaults."""
        return [
            self.quote(line)
            for line in node.body
            if isinstance(line, ast.AnnAssign)
            and isinstance(line.target, ast.Name)
            and not line.target.id.startswith("_")
        ]

    def aliases(self, code: str) -> list[str]:
        """Returns the definitions of the names of shapes and types that a signature uses."""
        words = set(re.findall(r"\b[A-Z]\w+", code))
        return [
            self.quote(node)
            for node in self.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id in words
            and isinstance(node.value, ast.Subscript | ast.BinOp)
        ]


def methods_of(node: ast.ClassDef) -> list[ast.FunctionDef]:
    """Returns the public methods of a class."""
    return [
        method
        for method in node.body
        if isinstance(method, ast.FunctionDef)
        and (not method.name.startswith("_") or method.name in _CALLED)
    ]


def entry(module: ModuleType, name: str) -> str:
    """Returns the text about one name."""
    value = getattr(module, name)
    defined_in = getattr(value, "__module__", None)
    node = None
    if isinstance(defined_in, str) and defined_in.startswith("zoo"):
        source = Source(importlib.import_module(defined_in))
        node = source.definition(getattr(value, "__name__", name))
    if node is None:
        return f"### `{name}`\n\n{_constant(value)}\n"
    if isinstance(node, ast.FunctionDef):
        code = source.signature(node)
        documented = prose(ast.get_docstring(node))
    else:
        bases = ", ".join(source.quote(base) for base in node.bases)
        head = f"class {node.name}({bases})" if bases else f"class {node.name}"
        lines = source.fields(node)
        for method in methods_of(node):
            lines += [""] if lines else []
            if any(source.quote(one) == "property" for one in method.decorator_list):
                lines.append("@property")
            lines += source.signature(method).splitlines()
        code = "\n".join(
            [f"{head}:" if lines else head, *(textwrap.indent(line, "    ") for line in lines)]
        )
        documented = prose(ast.get_docstring(node))
        for method in methods_of(node):
            if text := prose(ast.get_docstring(method)):
                documented += f"\n\n**`{method.name}`** {text}"
    aliases = source.aliases(code)
    code = "\n".join([*aliases, "", code]) if aliases else code
    return f"### `{name}`\n\n```text\n{code}\n```\n\n{documented}\n"


def _constant(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, dict | tuple | list | frozenset):
        return f"A {kind} of {len(value)} entries."
    return f"A {kind}."


def prose(docstring: str | None) -> str:
    """Returns a docstring in Google's style as Markdown."""
    if not docstring:
        return ""
    written: list[str] = []
    section = ""
    for paragraph in re.split(r"\n\s*\n", docstring.replace("``", "`")):
        first, _, rest = paragraph.partition("\n")
        if first.rstrip(":") in _SECTIONS and first.endswith(":"):
            section = first.rstrip(":")
            written.append(f"{section}:\n\n{_items(rest, section)}")
        elif re.match(r"\s{2,}\S", first) and not section:
            # A block of code, or of figures.
            written.append(f"```text\n{textwrap.dedent(paragraph)}\n```")
        elif re.match(r"\s{2,}\S", first):
            written.append(_items(paragraph, section))
        else:
            section = ""
            written.append(paragraph)
    return "\n\n".join(written)


def _items(text: str, section: str) -> str:
    lines = textwrap.dedent(text).splitlines()
    if section in ("Returns", "Yields"):
        return " ".join(line.strip() for line in lines)
    items: list[str] = []
    for line in lines:
        if line.startswith(" ") and items:
            items[-1] += f" {line.strip()}"
        else:
            name, colon, meaning = line.partition(":")
            items.append(f"- `{name}`:{meaning}" if colon else f"- {line}")
    return "\n".join(items)


def summary_of(module: ModuleType, name: str) -> str:
    """Returns the first sentence about a name."""
    documented = inspect.getdoc(getattr(module, name)) or ""
    value = getattr(module, name)
    if not inspect.isclass(value) and not callable(value):
        return _constant(value)
    return " ".join(documented.split("\n\n")[0].split()).replace("``", "`").replace("|", "\\|")


def page(title: str, modules: Sequence[ModuleType]) -> str:
    """Returns the text of one page; a name is on it once."""
    name = title if title == "zoo" else f"zoo.{title}"
    parts = [f"# {name}", "Written by `python scripts/make_api.py`. [All pages](index.md)"]
    seen: set[int] = set()
    for module in modules:
        names = [name for name in public_names(module) if id(getattr(module, name)) not in seen]
        seen |= {id(getattr(module, name)) for name in names}
        if not names:
            continue
        parts += [f"## `{module.__name__}`", prose(inspect.getdoc(module))]
        parts += [entry(module, name).rstrip() for name in names]
    return "\n\n".join(parts) + "\n"


def index(modules: Mapping[str, Sequence[ModuleType]]) -> str:
    """Returns the page that lists all names."""
    parts = [
        "# API",
        "The public functions and classes, with the first sentence about each. Signatures are "
        'quoted from the source: `Float[Array, "batch time"]` is an array with two axes of these '
        "names.\n\nWritten by `python scripts/make_api.py --out=docs/api` from the docstrings.",
    ]
    for title, of_page in modules.items():
        parts.append(f"## [{title}]({title}.md)")
        rows = {
            name: summary_of(module, name)
            for module in reversed(of_page)
            for name in public_names(module)
        }
        lines = [f"| `{name}` | {text} |" for name, text in sorted(rows.items())]
        parts.append("\n".join(["| name | |", "| --- | --- |", *lines]))
    return "\n\n".join(parts) + "\n"


def write(out: Path) -> None:
    """Writes all pages, and removes those of pages that are no more."""
    out.mkdir(parents=True, exist_ok=True)
    modules = {title: list(modules_of(names)) for title, names in PAGES.items()}
    pages = {title: page(title, of_page) for title, of_page in modules.items()}
    pages["index"] = index(modules)
    for old in out.glob("*.md"):
        if old.stem not in pages:
            old.unlink()
    for title, text in pages.items():
        (out / f"{title}.md").write_text(text, encoding="utf-8")


def main() -> None:
    """Writes the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    out = parser.parse_args().out
    write(out)
    print(f"{out}: {len(list(out.glob('*.md')))} pages")


if __name__ == "__main__":
    main()
