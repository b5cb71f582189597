"""The folder of a run: chooses it, locks it, and checks that it holds the same run."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from zoo import storage
from zoo.errors import UserError
from zoo.fields import ConfigError
from zoo.files import make_folder, write_atomically
from zoo.remote import IDENTITY, Spool
from zoo.reports.records import is_gone

Differences = Callable[[str], list[str]]
CONFIG = "config.json"
_LOCK = ".lock"
_WAY_OUT = "Bring it back from a copy"


class WorkdirError(UserError):
    """A folder that cannot be used for this run."""


class Workdir:
    """A folder that only this process writes to, until ``close``.

    The attribute ``spool`` is that of a run on an object store, whose local folder this is.

    The lock is the operating system's (flock). It ends with the process, even if the process is
    killed, so a lock file that was left behind locks nothing.
    """

    def __init__(self, path: Path) -> None:
        """Locks the folder and creates it if it is absent.

        Raises:
            WorkdirError: the folder cannot be made or written to, another process has locked it, or
                the file system cannot lock files.
        """
        self.path = path
        self.spool: Spool | None = None
        self._file = _opened(path)
        try:
            _lock(self._file)
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
        me = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.datetime.now().isoformat(timespec="seconds"),
        }
        try:
            self._file.truncate(0)
            self._file.write(json.dumps(me).encode())
            self._file.flush()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.close()
            raise storage.not_written(path, _about(error, path / _LOCK), 0) from error

    def save_config(self, description: str) -> None:
        """Saves the JSON description of the run in the folder."""
        with storage.named(self.path / CONFIG):
            write_atomically(self.path / CONFIG, description)

    def saved(self) -> None:
        """Copies what is new to the object store, if the run is on one."""
        if self.spool:
            self.spool.push()

    def check_shared(self) -> None:
        """Does nothing, as this process writes the folder; see ``SharedWorkdir``."""

    def check_there(self) -> None:
        """Raises WorkdirError if the folder has been deleted or renamed since it was locked."""
        if is_gone(self.path / _LOCK, self._file):
            raise WorkdirError(
                f"the work directory {self.path} was deleted or renamed during the run, so nothing "
                "more can be saved there: bring it back under this name and run the same command "
                "to resume, or give another --workdir"
            )

    def close(self) -> None:
        """Releases the folder; an empty lock file says that the holder has ended regularly.

        Raises:
            NotWritten: the run is on an object store, which could not be written.
        """
        try:
            if self.spool:
                self.spool.close()
        finally:
            self._release()

    def _release(self) -> None:
        # A disk that has failed keeps the words in the file; the lock ends in any case.
        with contextlib.suppress(OSError):
            self._file.truncate(0)
        with contextlib.suppress(OSError):
            self._file.close()


class SharedWorkdir:
    """The folder of a run for the processes that neither lock it nor write its records."""

    def __init__(self, path: Path) -> None:
        """Takes the folder that the first process has claimed."""
        self.path = path

    def save_config(self, description: str) -> None:
        """Does nothing, as the first process saves it."""

    def saved(self) -> None:
        """Does nothing, as only one process can write to an object store."""

    def check_there(self) -> None:
        """Does nothing, as the first process holds the lock file."""

    def check_shared(self) -> None:
        """Raises WorkdirError if the first process's ``config.json`` cannot be seen from here."""
        if not (self.path / CONFIG).is_file():
            raise WorkdirError(
                f"the work directory {self.path}, where process 0 has written {CONFIG}, does not "
                f"have it on {socket.gethostname()}: give a --workdir on a file system that all "
                "machines share"
            )

    def close(self) -> None:
        """Does nothing, as the first process holds the lock."""


def is_running(path: Path) -> bool:
    """Returns whether a process holds the folder of a run; nothing is written."""
    try:
        with (path / _LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # Without a lock file, or with one that cannot be locked, no run of the zoo holds it.
        return False
    return False


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
        if explicit:
            _check_usable(path)
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


def _check_usable(path: Path) -> None:
    """Raises WorkdirError if a path is a file, or its ``config.json`` is damaged."""
    if os.path.isfile(path):
        raise _unusable(path, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    if os.path.lexists(path / CONFIG):
        try:
            storage.read_object(path / CONFIG, _WAY_OUT)
        except storage.DamagedFile as error:
            raise WorkdirError(
                f"{error}, give another --workdir, or --restart to move {path} aside and begin anew"
            ) from error


def _reasons(path: Path, differences: Differences) -> list[str]:
    """Returns how the run in a folder differs from this one; empty if the run may use it.

    Raises:
        WorkdirError: the path cannot be the folder of any run.
    """
    try:
        names = set(os.listdir(path))
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise _unusable(path, error) from error
        return []
    except (OSError, ValueError) as error:
        if os.path.isfile(path):
            return ["it is a file"]
        raise _unusable(path, error) from error
    if not names - {_LOCK, CONFIG + ".tmp", IDENTITY}:
        return []
    file = path / CONFIG
    if CONFIG not in names:
        return [f"it has files, but no {CONFIG}"]
    try:
        storage.read_object(file, _WAY_OUT)
        return differences(storage.read_text(file, _WAY_OUT))
    except storage.DamagedFile as error:
        return [str(error)]
    except ConfigError as error:
        return [f"its {CONFIG} is not of this version of the zoo: {error}"]


def _aside(path: Path, say: Callable[[str], None]) -> Workdir:
    workdir = Workdir(path)
    if set(os.listdir(path)) == {_LOCK}:
        return workdir
    number = 1
    while os.path.lexists(old := path.with_name(f"{path.name}.old-{number}")):
        number += 1
    try:
        path.rename(old)
    except OSError as error:
        workdir.close()
        raise WorkdirError(f"cannot move {path} to {old} ({error.strerror})") from error
    workdir.close()
    say(f"moved {path} to {old}")
    return Workdir(path)


def _opened(path: Path) -> IO[bytes]:
    """Makes the folder and opens its lock file."""
    lock = path / _LOCK
    try:
        make_folder(path)
        # Opening a pipe would wait for its other end.
        if os.path.lexists(lock) and not lock.is_file():
            raise WorkdirError(
                f"{lock} is no file, so the work directory cannot be locked: remove it, or give "
                "another --workdir"
            )
        return lock.open("a+b")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise storage.not_written(path, _about(error, lock), 0) from error
        raise _unusable(path, error) from error
    except ValueError as error:
        raise _unusable(path, error) from error


def _lock(file: IO[bytes]) -> None:
    """Locks a file, or raises BlockingIOError if another process keeps it locked."""
    for last in (False, False, True):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if last:
                raise
            # ``is_running`` holds a lock for a moment.
            time.sleep(0.05)


def _unusable(path: Path, reason: OSError | ValueError) -> WorkdirError:
    """Returns the error for a path that no run can use."""
    words = str(reason)
    if isinstance(reason, OSError):
        words = reason.strerror or words
        for part in (path, *path.parents):
            if os.path.lexists(part) and not os.path.isdir(part):
                kind = "is a link that leads nowhere" if part.is_symlink() else "is no folder"
                words = f"{'it' if part == path else part} {kind}"
    # A NUL in a path would end the message in a terminal.
    shown = str(path).replace("\0", "\\0")
    if len(shown) > 200:
        shown = f"{shown[:200]}…"
    return WorkdirError(
        f"the work directory {shown} cannot be used ({words}): give another --workdir"
    )


def _about(error: OSError, path: Path) -> OSError:
    return OSError(error.errno, error.strerror, str(path))


def _holder(file: IO[bytes]) -> str:
    file.seek(0)
    try:
        holder = json.loads(file.read())
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, RecursionError, TypeError, KeyError):  # empty, half-written or damaged
        return "another process"
