"""Files that outlast a power cut, and checksums that tell a damaged file from a whole one."""

import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zoo.errors import UserError

CHECKSUMS = "checksums.json"
_HASH = "xxh3_128"
_CHUNK = 1 << 20


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that readers see whole or not at all, whenever the process or the power ends.

    The file is on the disk when this returns.
    """
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    rename(temporary, path)


def make_folder(path: Path) -> None:
    """Makes a folder with its parents; their names are on the disk when this returns."""
    missing = []
    path = path.absolute()
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def rename(source: Path, target: Path) -> None:
    """Gives a file or folder another name; an existing file of that name is replaced.

    The new name is on the disk when this returns.
    """
    os.replace(source, target)
    # A power cut between the two leaves both names rather than none.
    sync(target.parent)
    if source.parent != target.parent:
        sync(source.parent)


def sync(path: Path) -> None:
    """Returns when the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems of a network store names at once and know no fsync of a folder.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def seal(folder: Path, names: Iterable[str] | None = None) -> None:
    """Brings files to the disk, and then writes ``checksums.json`` with their sizes and checksums.

    The checksum is the 128-bit XXH3 of xxHash, as ``xxh128sum`` prints it.

    Args:
        folder: the folder of the files, whose own name is the caller's matter.
        names: the files, relative to the folder; None takes all files in it and below it, and
            brings the names of its folders to the disk too.
    """
    if names is None:
        names = sorted(
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        )
        for inner in folder.rglob("*"):
            if inner.is_dir():
                sync(inner)
    files = {}
    for name in names:
        with (folder / name).open("rb", buffering=0) as file:
            size, digest = _digest(file)
            os.fsync(file.fileno())
        files[name] = {"bytes": size, _HASH: digest}
    content = {"files": files, _HASH: _digest_of_entries(files)}
    # This also brings the names of the files to the disk.
    write_atomically(folder / CHECKSUMS, json.dumps(content, indent=1) + "\n")


def damage(folder: Path) -> str | None:
    """Returns which sealed file of a folder is damaged and how, or None if all are whole.

    Files that were not there when the folder was sealed are not looked at.

    Raises:
        UserError: a file may not be read.
    """
    try:
        entries = _entries(folder)
    except FileNotFoundError:
        return f"{CHECKSUMS} is missing"
    except ValueError as error:
        return str(error)
    for name, entry in entries.items():
        if found := _damage(folder / name, entry):
            return f"{name} {found}"
    return None


def damage_of_file(path: Path) -> str | None:
    """Returns how a file differs from what was sealed, or None.

    A file in a folder without ``checksums.json``, or one that is not listed there, is taken as it
    is.

    Raises:
        UserError: a file may not be read.
    """
    try:
        entry = _entries(path.parent).get(path.name)
    except FileNotFoundError:
        return None
    except ValueError as error:
        return f"cannot be checked, because {error}"
    return _damage(path, entry) if entry else None


def _entries(folder: Path) -> dict[str, dict[str, Any]]:
    """Reads ``checksums.json``; raises ValueError with what is wrong with it."""
    try:
        content = json.loads((folder / CHECKSUMS).read_bytes())
        entries, digest = content["files"], content[_HASH]
    except PermissionError as error:
        raise _not_allowed(folder / CHECKSUMS) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{CHECKSUMS} is not what was written") from error
    if digest != _digest_of_entries(entries):
        raise ValueError(f"{CHECKSUMS} is not what was written")
    return entries


def _damage(path: Path, entry: dict[str, Any]) -> str | None:
    wanted = entry["bytes"]
    try:
        size = path.stat().st_size
        if size != wanted:
            return f"is {'empty' if not size else f'{size} bytes long'}, not {wanted} bytes long"
        with path.open("rb", buffering=0) as file:
            _, digest = _digest(file)
    except FileNotFoundError:
        return "is missing"
    except PermissionError as error:
        raise _not_allowed(path) from error
    except OSError as error:  # a bad sector, or a folder in the file's place
        return f"cannot be read ({error.strerror})"
    return None if digest == entry[_HASH] else "has other content than was written"


def _not_allowed(path: Path) -> UserError:
    return UserError(f"{path} may not be read: change its permissions, or run as its owner")


def _digest(file: Any) -> tuple[int, str]:
    """Returns the number of bytes to the end of an unbuffered file, and their checksum."""
    import xxhash

    state, size, buffer = xxhash.xxh3_128(), 0, bytearray(_CHUNK)
    while count := file.readinto(buffer):
        state.update(memoryview(buffer)[:count])
        size += count
    return size, state.hexdigest()


def _digest_of_entries(entries: Any) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(json.dumps(entries, sort_keys=True).encode())
