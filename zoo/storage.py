"""Files of a run that cannot be read, and files that the system refuses to write.

Imports no jax. Every function here is used on the way to one line that a person can act on.
"""

import contextlib
import errno
import json
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo.errors import NotWritten, UserError

# What a file system answers when it cannot take more, or has itself failed.
REFUSALS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.ENXIO,
    errno.ENODEV,
    errno.ESTALE,
)
# TensorStore reports errors of the system as text alone.
_NUMBER = re.compile(r"os_error_code='(\d+)'")
_QUOTED_PATH = re.compile(r'"(/[^"]+)"')
# What orbax writes besides the arrays: names, shapes, shardings, and an index of the parts.
_ABOUT_ARRAYS = 128_000
# A checkpoint has such a name until it is complete, and while it is removed.
_UNFINISHED = "[0-9]*.*tmp*"


class DamagedFile(UserError):
    """A file that is absent or not what the zoo wrote; the message names it and the way out."""


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file; a pipe or a device, which might never end, is refused.

    Raises:
        OSError: the file cannot be read.
    """
    if not path.is_file():
        path.stat()
        code = errno.EISDIR if path.is_dir() else errno.EINVAL
        words = os.strerror(code) if path.is_dir() else "it is no regular file"
        raise OSError(code, words, str(path))
    return path.read_bytes()


def read_text(path: Path, way_out: str) -> str:
    """Returns the text of a file of a run.

    Args:
        path: the file.
        way_out: what the user can do if the file cannot be read; ends the message.

    Raises:
        DamagedFile: the file is absent, is no file, cannot be read or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{path} is damaged: it is not UTF-8. {way_out}") from error
    except (OSError, ValueError) as error:
        # A ValueError is about a path with a NUL character.
        reason = error.strerror if isinstance(error, OSError) else error
        raise DamagedFile(f"{path} cannot be read ({reason}). {way_out}") from error


def read_object(path: Path, way_out: str) -> dict[str, Any]:
    """Returns the JSON object that a file of a run holds.

    Args:
        path: the file.
        way_out: what the user can do if the file cannot be read; ends the message.

    Raises:
        DamagedFile: the file cannot be read, or holds something else.
    """
    text = read_text(path, way_out)
    if not text.strip("\0 \r\n\t"):
        raise DamagedFile(f"{path} is damaged: it is empty. {way_out}")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged: it is not JSON ({error}). {way_out}") from error
    if not isinstance(content, dict):
        raise DamagedFile(f"{path} is damaged: it is not a JSON object. {way_out}")
    return content


def move_aside(path: Path) -> Path:
    """Renames a damaged file or folder to the next free ``<name>.damaged``, ``….damaged-2``, ….

    Returns:
        The new path.
    """
    number, aside = 1, path.with_name(f"{path.name}.damaged")
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    path.rename(aside)
    return aside


@contextlib.contextmanager
def named(path: Path | str) -> Iterator[None]:
    """Adds a path to an ``OSError`` that does not say which file it is about."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def refusal(error: BaseException) -> OSError | None:
    """Returns why the file system refused to write, or None if an exception has another reason."""
    return next((found for found in system_errors(error) if found.errno in REFUSALS), None)


def system_errors(error: BaseException) -> Iterator[OSError]:
    """Returns the errors of the system that led to an exception, however deep they are buried.

    Looks through causes, contexts and groups, and also into the text of TensorStore's errors.
    """
    waiting, seen = [error], set()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, OSError):
            yield current
        elif match := _NUMBER.search(str(current)):
            path = _QUOTED_PATH.search(str(current))
            yield OSError(int(match[1]), os.strerror(int(match[1])), path[1] if path else None)
        waiting += [e for e in (current.__cause__, current.__context__) if e is not None]
        waiting += getattr(current, "exceptions", ())


def steps_saved(workdir: Path, name: str = "checkpoints") -> list[int]:
    """Returns the steps of the finished checkpoints in a run's folder, in order."""
    try:
        names = os.listdir(workdir / name)
    except OSError:
        return []
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def not_written(workdir: Path, refused: OSError, needed: int) -> NotWritten:
    """Returns the error for a run whose files the system refuses to write.

    Args:
        workdir: the run's folder.
        refused: the answer of the system.
        needed: the bytes of the arrays in a checkpoint of the run; 0: they are not known.
    """
    saved = steps_saved(workdir)
    needed = needed + _ABOUT_ARRAYS if needed else 0
    if saved:
        needed = max(needed, _size(workdir / "checkpoints" / str(saved[-1])))
        safe = (
            f"The checkpoint of step {saved[-1]} is safe: mend this, then run the same command to "
            "resume there"
        )
    else:
        safe = "No checkpoint has been finished: mend this, then run the same command to begin anew"
    return NotWritten(
        f"cannot write {_what(workdir, refused)}: {refused.strerror}. "
        f"{_space(workdir, refused, needed)}{safe}"
    )


def clear_unfinished(workdir: Path) -> None:
    """Removes the checkpoints that were begun and not finished, so that their space is free."""
    import shutil

    for name in ("checkpoints", "best"):
        for folder in (workdir / name).glob(_UNFINISHED):
            shutil.rmtree(folder, ignore_errors=True)


def said(error: OSError) -> str:
    """Returns an error of the system in words, with the file that it is about."""
    about = f"{error.filename}: " if error.filename else ""
    return f"{about}{error.strerror or error}"


def _what(workdir: Path, refused: OSError) -> str:
    """Returns a name for what could not be written: a checkpoint, or a file."""
    name = refused.filename
    if name is None:
        # Only orbax's threads raise errors without the name of the file.
        unfinished = [
            folder
            for part in ("checkpoints", "best")
            for folder in (workdir / part).glob(_UNFINISHED)
        ]
        if not unfinished:
            return f"a file in {workdir}"
        name = str(unfinished[0])
    path = Path(os.fsdecode(name))
    with contextlib.suppress(ValueError):
        parts = path.absolute().relative_to(workdir.absolute()).parts
        if len(parts) > 1 and parts[0] in ("checkpoints", "best"):
            step = parts[1].partition(".")[0]
            return f"the checkpoint {workdir / parts[0] / step}"
    return str(path)


def _space(workdir: Path, refused: OSError, needed: int) -> str:
    """Returns a sentence on the room that there is and that is missing, or nothing."""
    takes = f"a checkpoint of this run takes about {amount(needed)}" if needed else ""
    if refused.errno == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit == resource.RLIM_INFINITY:
            return ""
        return f"A file may have at most {amount(limit)} here (ulimit -f){and_(takes)}. "
    if refused.errno == errno.EDQUOT:
        return f"The quota of this user is used up{and_(takes)}. "
    if refused.errno != errno.ENOSPC:
        return ""
    try:
        system = os.statvfs(workdir)
    except OSError:
        return ""
    if system.f_files and not system.f_favail:
        return "The file system has room for no more files (no free inodes). "
    # What an unfinished checkpoint holds is free again when the run is opened the next time.
    free = system.f_bavail * system.f_frsize + sum(
        _size(folder)
        for part in ("checkpoints", "best")
        for folder in (workdir / part).glob(_UNFINISHED)
    )
    missing = max(needed - free, 0)
    lacks = f", so at least {amount(missing)} are missing" if missing else ""
    return f"Its file system has {amount(free)} free{and_(takes)}{lacks}. "


def and_(words: str) -> str:
    """Returns the words with an "and" before them; nothing for no words."""
    return f", and {words}" if words else ""


def amount(count: float) -> str:
    """Returns a number of bytes for reading, such as ``1.5 GB``; 1 kB is 1000 bytes."""
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.3g} {unit}"
    return f"{count:.3g} PB" if count < 1e6 else f"{count:.1e} PB"


def _size(folder: Path) -> int:
    """Returns the bytes in the files of a folder."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size
    return total
