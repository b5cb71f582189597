"""What a disk holds after a power cut, worked out from the calls of a real process.

``record`` runs a program whose calls on the files below a folder are written down by
``power_cuts.c``. ``Disk`` repeats them and knows at each of them what has reached the disk: the
content of a file when the file was synced, a name when its folder was. ``Disk.cut`` writes what is
left.
"""

import dataclasses
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
TESTS = Path(__file__).parent


@dataclasses.dataclass
class Call:
    """A call that changed a file or folder, or brought it to the disk; ``data`` was written."""

    name: str
    path: str
    other: str
    offset: int
    data: bytes


def record(
    arguments: list[str],
    root: Path,
    scratch: Path,
    environment: Mapping[str, str] = os.environ,
    folder: Path | None = None,
) -> list[Call]:
    """Runs a Python program and returns its calls below ``root``, in their order.

    Args:
        arguments: of the interpreter.
        root: the folder whose calls are written down.
        scratch: a folder for the record.
        environment: of the program.
        folder: where it runs.
    """
    library, log = scratch / "power_cuts.so", scratch / "calls"
    compiler = shutil.which("cc") or shutil.which("gcc")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    environment = {
        **environment,
        "LD_PRELOAD": str(library), "POWER_LOG": str(log), "POWER_ROOT": str(root.resolve()),
        "PYTHONPATH": f"{TESTS.parent}:{TESTS}",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return list(_parsed(log.read_bytes()))


def _parsed(log: bytes) -> Iterator[Call]:
    at = 0
    while at < len(log):
        end = log.index(b"\n", at)
        name, path, other, offset, size = log[at:end].decode().split("\t")
        at = end + 1 + int(size)
        yield Call(name, path, other, int(offset), log[end + 1 : at])


@dataclasses.dataclass
class File:
    """What programs see, and what is on the disk."""

    seen: bytes = b""
    kept: bytes = b""


@dataclasses.dataclass
class Folder:
    """The names that programs see, and those on the disk."""

    seen: dict[str, "File | Folder"] = dataclasses.field(default_factory=dict)
    kept: dict[str, "File | Folder"] = dataclasses.field(default_factory=dict)


class Disk:
    """The folder ``root``, empty at first, while calls are repeated one by one."""

    def __init__(self, root: Path) -> None:
        self.root = str(root.resolve())
        self.top = Folder()

    def apply(self, call: Call) -> None:
        """Repeats a call."""
        if call.name == "sync":
            node = self._find(call.path)
            node.kept = dict(node.seen) if isinstance(node, Folder) else node.seen
            return
        parent, name = self._parent(call.path)
        if call.name == "create":
            parent.seen[name] = File()
        elif call.name == "mkdir":
            parent.seen[name] = Folder()
        elif call.name == "unlink":
            del parent.seen[name]
        elif call.name == "rename":
            target, other = self._parent(call.other)
            target.seen[other] = parent.seen.pop(name)
        elif call.name == "truncate":
            file = parent.seen[name]
            file.seen = file.seen[: call.offset].ljust(call.offset, b"\0")
        elif call.name == "write":
            file = parent.seen[name]
            before = file.seen[: call.offset].ljust(call.offset, b"\0")
            file.seen = before + call.data + file.seen[call.offset + len(call.data) :]
        else:
            raise ValueError(call.name)

    def cut(self, target: Path, choice: random.Random | str) -> None:
        """Writes what is there after a power cut into the new folder ``target``.

        Args:
            target: a folder that does not exist.
            choice: ``lost`` loses everything that was not synced, ``seen`` loses nothing, and a
                random generator loses by chance: each file and folder is old, new, or what was
                written to a file since it was synced is cut off.
        """
        _write(self.top, target, choice)

    def _parent(self, path: str) -> tuple[Folder, str]:
        folder, _, name = path.rpartition("/")
        return self._find(folder), name

    def _find(self, path: str) -> "File | Folder":
        node = self.top
        for name in path.removeprefix(self.root).split("/")[1:]:
            node = node.seen[name]
        return node


def _write(node: "File | Folder", path: Path, choice: random.Random | str) -> None:
    changed = node.seen != node.kept if isinstance(node, File) else True
    seen = choice.random() < 0.5 if isinstance(choice, random.Random) else choice == "seen"
    content = node.seen if seen else node.kept
    if isinstance(node, Folder):
        path.mkdir()
        for name, inner in content.items():
            _write(inner, path / name, choice)
        return
    if changed and seen and isinstance(choice, random.Random) and choice.random() < 0.5:
        # What was synced stays if the file has only grown since.
        safe = len(node.kept) if content.startswith(node.kept) else 0
        content = content[: choice.randint(safe, len(content))]
    path.write_bytes(content)
