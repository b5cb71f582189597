"""The run's folder: which one, who may write to it, and whether it holds the same run."""

import datetime
import fcntl
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import IO

from ml_collections import ConfigDict

from zoo import config as configs
from zoo.errors import UserError
from zoo.reports.records import write_atomically

CONFIG = "config.json"
_LOCK = ".lock"


class WorkdirError(UserError):
    """A folder that cannot be used for this run."""


class Workdir:
    """A folder that this process alone writes to, until ``close``.

    The lock is the operating system's (flock): it ends with the process, however that ends, so a
    lock file that was left behind locks nothing.
    """

    def __init__(self, path: Path) -> None:
        """Locks the folder, making it where it is absent.

        Raises:
            WorkdirError: another process has it, or the file system cannot lock.
        """
        path.mkdir(parents=True, exist_ok=True)
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

    def saved_config(self) -> ConfigDict | None:
        """The config of the run in the folder, or None where there is none."""
        return _saved_config(self.path)

    def save_config(self, config: ConfigDict) -> None:
        """Keeps the config beside what it makes."""
        write_atomically(self.path / CONFIG, configs.to_json(config))

    def close(self) -> None:
        """Gives the folder back; a lock file without content says that the holder ended well."""
        self._file.truncate(0)
        self._file.close()


def claim(
    config: ConfigDict,
    *,
    default: Path,
    explicit: Path | None,
    restart: bool,
    extend: bool,
    steps_per_epoch: int,
    say: Callable[[str], None],
) -> Workdir:
    """Chooses the folder of a run and locks it; ``save_config`` then makes it that run's.

    An explicit folder that holds another run is refused with the differences. The default moves
    on to ``-2``, ``-3``, … instead and says so.

    Args:
        config: the checked config.
        default: the folder where none is given.
        explicit: the folder that the user gave, or None.
        restart: move what is there aside and begin anew.
        extend: continue although the learning rate depends on the length, which changed.
        steps_per_epoch: to compare lengths in steps.
        say: tells the user what was decided.

    Raises:
        WorkdirError: the folder is taken, or in use.
    """
    path = explicit or default
    if restart:
        workdir = _aside(path, say)
    else:
        reasons = _reasons(path, config, extend, steps_per_epoch)
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
            reasons = _reasons(path, config, extend, steps_per_epoch)
        workdir = Workdir(path)
    if workdir.stale_holder:
        say(f"taking over the lock of {workdir.stale_holder}, which ended without releasing it")
    return workdir


def _reasons(path: Path, config: ConfigDict, extend: bool, steps_per_epoch: int) -> list[str]:
    """Why the run in a folder is not this one; empty where it is, or where there is none."""
    if path.exists() and not path.is_dir():
        return ["it is a file"]
    if not path.exists() or not set(os.listdir(path)) - {_LOCK, CONFIG + ".tmp"}:
        return []
    try:
        saved = _saved_config(path)
    except configs.ConfigError as error:
        return [f"its {CONFIG} is not of this version of the zoo: {error}"]
    if saved is None:
        return [f"it has files, but no {CONFIG}"]
    return configs.differences(saved, config, extend=extend, steps_per_epoch=steps_per_epoch)


def _saved_config(path: Path) -> ConfigDict | None:
    file = path / CONFIG
    return configs.from_json(file.read_text(encoding="utf-8")) if file.exists() else None


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
