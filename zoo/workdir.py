"""The folder of a run: chooses it, locks it, and checks that it holds the same run."""

import datetime
import fcntl
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import IO

from zoo.errors import UserError
from zoo.fields import ConfigError
from zoo.files import make_folder, write_atomically

Differences = Callable[[str], list[str]]
CONFIG = "config.json"
_LOCK = ".lock"


class WorkdirError(UserError):
    """A folder that cannot be used for this run."""


class Workdir:
    """A folder that only this process writes to, until ``close``.

    The lock is the operating system's (flock). It ends with the process, even if the process is
    killed, so a lock file that was left behind locks nothing.
    """

    def __init__(self, path: Path) -> None:
        """Locks the folder and creates it if it is absent.

        Raises:
            WorkdirError: another process has locked it, or the file system cannot lock files.
        """
        make_folder(path)
        self.path = path
        self._file = (path / _LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(self._file)
            self._file.close()
            raise WorkdirError(
                f"the work directory {path} is in use by {holder}: wait for it, stop it, or give "
                "another --workdir"
            ) from error
        except OSError as error:
            self._file.close()
            raise WorkdirError(
                f"the file system of the work directory {path} cannot lock files ({error}): give "
                "a --workdir on another one"
            ) from error
        self.stale_holder = _holder(self._file) if self._file.tell() else None
        self._file.truncate(0)
        me = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.datetime.now().isoformat(timespec="seconds"),
        }
        self._file.write(json.dumps(me))
        self._file.flush()

    def save_config(self, description: str) -> None:
        """Saves the JSON description of the run in the folder."""
        write_atomically(self.path / CONFIG, description)

    def close(self) -> None:
        """Releases the folder; an empty lock file says that the holder has ended regularly."""
        self._file.truncate(0)
        self._file.close()


def claim(
    differences: Differences,
    *,
    default: Path,
    explicit: Path | None,
    restart: bool,
    say: Callable[[str], None],
) -> Workdir:
    """Chooses the folder of a run and locks it; ``save_config`` then claims it for the run.

    An explicit folder that holds another run is refused, and the message lists the differences. The
    default folder is replaced by ``-2``, ``-3``, … instead, and the user is told so.

    Args:
        differences: takes the text of a ``config.json`` and returns how that run differs from this
            one; empty if it is the same. May raise ConfigError.
        default: the folder if the user gives none.
        explicit: the folder that the user gave, or None.
        restart: whether to move the contents of the folder aside and begin anew.
        say: tells the user what was decided.

    Raises:
        WorkdirError: the folder holds another run, or is in use.
    """
    path = explicit or default
    if restart:
        workdir = _aside(path, say)
    else:
        reasons = _reasons(path, differences)
        if reasons and explicit:
            raise WorkdirError(
                f"the work directory {path} holds another run:\n  "
                + "\n  ".join(reasons)
                + "\nGive another --workdir, or --restart to move it aside and begin anew"
            )
        number = 2
        while reasons:
            following = default.with_name(f"{default.name}-{number}")
            say(f"{path} holds another run ({'; '.join(reasons)}): trying {following}")
            path, number = following, number + 1
            reasons = _reasons(path, differences)
        workdir = Workdir(path)
    if workdir.stale_holder:
        say(f"taking over the lock of {workdir.stale_holder}, which ended without releasing it")
    return workdir


def _reasons(path: Path, differences: Differences) -> list[str]:
    """Returns how the run in a folder differs from this one; empty if the run may use it."""
    if path.exists() and not path.is_dir():
        return ["it is a file"]
    if not path.exists() or not set(os.listdir(path)) - {_LOCK, CONFIG + ".tmp"}:
        return []
    file = path / CONFIG
    if not file.exists():
        return [f"it has files, but no {CONFIG}"]
    try:
        return differences(file.read_text(encoding="utf-8"))
    except ConfigError as error:
        return [f"its {CONFIG} is not of this version of the zoo: {error}"]


def _aside(path: Path, say: Callable[[str], None]) -> Workdir:
    workdir = Workdir(path)
    if set(os.listdir(path)) == {_LOCK}:
        return workdir
    number = 1
    while (old := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    path.rename(old)
    workdir.close()
    say(f"moved {path} to {old}")
    return Workdir(path)


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        holder = json.loads(file.read())
    except json.JSONDecodeError:  # empty or half-written
        return "another process"
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
