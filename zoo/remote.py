"""Runs and data on an object store, such as ``gs://bucket/run``.

A store has no locks, no folders, and no renaming. So a run writes to a local folder, its spool, and
what it saves is copied to the store: after each checkpoint and at the end. A checkpoint counts in
the store when its ``checksums.json`` is there, which is copied last. On another machine the run
goes on from the newest whole checkpoint in the store.

The lock of a run is an object that only one process can create. Its holder renews it; one that has
not been renewed for long enough belongs to a process that is gone.

Spools and copies lie in the folder that the variable ``ZOO_SPOOL`` names, else in the user's cache.

Stores are opened by fsspec: ``gs://`` with gcsfs, ``s3://`` with s3fs, ``file://`` and ``memory://``
by itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zoo import files, process
from zoo.errors import NotWritten, UserError, did_you_mean

_LOCK = ".lock"
# The name of the run, whatever its folder is called: a spool of another run is not gone on with.
IDENTITY = ".run"
_STEPS = ("best", "checkpoints")
_EXTRAS = {"gs": "gcs", "gcs": "gcs"}
_TRIES = 4

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Lease:
    """How long a run's lock counts.

    Attributes:
        renewed_every: seconds between two renewals.
        lasts: seconds after which a lock that was not renewed is free.
    """

    renewed_every: float = 20.0
    lasts: float = 90.0


def is_remote(path: str | Path) -> bool:
    """Returns whether a path is the address of an object store, such as ``gs://bucket/run``."""
    return re.match(r"[a-z][a-z0-9+.-]*://", str(path)) is not None


class Store:
    """A folder of an object store; names are relative to it, with slashes."""

    def __init__(self, url: str) -> None:
        """Opens a folder of a store, which need not exist.

        Raises:
            UserError: there is no such kind of store, or its library is not installed.
        """
        from fsspec import available_protocols
        from fsspec.core import url_to_fs

        self.url = url.rstrip("/")
        kind = url.partition("://")[0]
        try:
            self._system, root = url_to_fs(
                self.url, **({"auto_mkdir": True} if kind == "file" else {})
            )
        except ImportError as error:
            extra = _EXTRAS.get(kind)
            fix = f"pip install 'jax-model-zoo[{extra}]'" if extra else str(error)
            raise UserError(
                f"{url} cannot be opened: {kind}:// needs another package: {fix}"
            ) from error
        except ValueError as error:
            known = [name for name in available_protocols() if isinstance(name, str)]
            raise UserError(
                f"{url}: there is no store {kind}://.{did_you_mean(kind, known)} Give a folder, or "
                "gs://bucket/folder"
            ) from error
        self._root = root.rstrip("/")

    def names(self) -> dict[str, int]:
        """Returns the names of all files, with their numbers of bytes."""
        with _as_os_errors():
            self._system.invalidate_cache()
            try:
                found = self._system.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
        return {
            path.removeprefix(self._root).lstrip("/"): int(about.get("size") or 0)
            for path, about in found.items()
        }

    def read(self, name: str) -> bytes:
        """Returns the content of a file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with _as_os_errors():
            content: bytes = self._system.cat_file(f"{self._root}/{name}")
        return content

    def write(self, name: str, content: bytes, *, only_if_absent: bool = False) -> None:
        """Writes a file, whole or not at all.

        Raises:
            FileExistsError: the file must be absent, and is not.
        """
        mode = "create" if only_if_absent else "overwrite"
        with _as_os_errors():
            self._system.pipe_file(f"{self._root}/{name}", content, mode=mode)

    def send(self, source: Path, name: str) -> None:
        """Copies a local file to the store."""
        with _as_os_errors():
            self._system.put_file(str(source), f"{self._root}/{name}")

    def fetch(self, name: str, target: Path) -> None:
        """Copies a file of the store to a local file."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with _as_os_errors():
            self._system.get_file(f"{self._root}/{name}", str(target))

    def remove(self, name: str) -> None:
        """Removes a file; nothing happens if it is absent."""
        with contextlib.suppress(FileNotFoundError), _as_os_errors():
            self._system.rm_file(f"{self._root}/{name}")

    def move(self, names: list[str], other: Store) -> None:
        """Moves files to another folder of the same store."""
        with _as_os_errors():
            for name in names:
                target = f"{other._root}/{name}"
                self._system.makedirs(target.rpartition("/")[0], exist_ok=True)
                self._system.mv(f"{self._root}/{name}", target)


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Turns the errors of a store's library, each of which has its own types, into OSErrors."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # of any type, such as gcsfs.retry.HttpError
        raise OSError(f"{type(error).__name__}: {error}") from error


def local_copy(url: str, *, newest: tuple[str, ...] = _STEPS) -> Path:
    """Returns a local folder or file with what the store has, for reading.

    What a copy has already is not copied again, as long as its size is the same. Of a run's
    checkpoints only the newest whole ones are copied.

    Args:
        url: a file or a folder of a store.
        newest: folders of which only the newest step is copied.

    Raises:
        UserError: there is nothing at the address, or the store cannot be opened.
    """
    with _named(url):
        store, folder = Store(url), _place("copies", url)
        names = store.names()
        if not names:
            raise UserError(f"{url}: there is nothing there")
        if list(names) == [""]:  # a file
            target = folder / url.rpartition("/")[2]
            if not target.is_file() or target.stat().st_size != names[""]:
                # A folder's reader, so that the name is one below the parent.
                Store(url.rpartition("/")[0]).fetch(target.name, target)
            return target
        _fetch_run(store, names, folder, newest)
        return folder


def local(path: str | Path) -> Path:
    """Returns a path as it is, or the local copy of an address; see ``local_copy``."""
    return local_copy(str(path)) if is_remote(path) else Path(path)


class Spool:
    """The local folder of a run on a store. Locks the run until ``close``.

    Attributes:
        path: the local folder.
        url: the address of the run.
    """

    def __init__(
        self, url: str, say: Say, *, restart: bool = False, lease: Lease = Lease()
    ) -> None:
        """Locks the run, and makes the local folder what the run is.

        If this machine has a newer checkpoint of the same run than the store, because a process was
        killed before it had copied it, the local one stays.

        Args:
            url: the address of the run.
            say: tells the user what happens.
            restart: moves what is there to ``<name>.old-1`` and begins anew.
            lease: how long the lock counts.

        Raises:
            UserError: another process holds the run, or the store cannot be opened or written.
        """
        self.url = url.rstrip("/")
        self.path = _place("spool", url)
        self._lease, self._say = lease, say
        self._sent: dict[str, tuple[int, int]] = {}
        self._sending, self._ended = threading.Lock(), threading.Event()
        self._lost = ""
        with _named(url):
            self._store = Store(url)
            self._me: dict[str, Any] = {
                "token": uuid.uuid4().hex,
                "pid": os.getpid(),
                "host": socket.gethostname(),
            }
            self._lock()
            self._renewing = threading.Thread(target=self._renew, name="lease", daemon=True)
            self._renewing.start()
            try:
                if restart:
                    self._set_aside()
                self._fill()
            except BaseException:
                self._unlock()
                raise

    def push(self) -> None:
        """Copies to the store what is new in the local folder.

        A store that cannot be reached is tried again a few times, and then with the next
        checkpoint; the local folder keeps everything.

        Raises:
            UserError: another process has taken the run over.
        """
        if self._lost:
            raise UserError(self._lost)
        try:
            with self._sending:
                self._send_all()
        except OSError as error:
            self._say(
                f"warning: {self.url} could not be written ({error}); {self.path} has everything, "
                "and the next checkpoint tries again"
            )

    def close(self) -> None:
        """Copies the rest, and releases the run.

        Raises:
            NotWritten: the store could not be written.
        """
        try:
            if not self._lost:
                with self._sending:
                    self._send_all()
        except OSError as error:
            raise NotWritten(
                f"{self.url} could not be written ({error}). Everything is safe in {self.path} on "
                "this machine: run the same command here to copy it"
            ) from error
        finally:
            self._unlock()

    def _lock(self) -> None:
        """Creates the lock, or waits until the holder renews it or its lease is over."""
        deadline = time.monotonic() + self._lease.lasts
        seen, told = None, False
        while True:
            try:
                self._store.write(_LOCK, self._renewed(), only_if_absent=True)
                return
            except FileExistsError:
                holder = self._holder()
            if holder is None:
                continue
            if self._is_gone(holder):
                self._say(
                    f"taking over the lock of {_who(holder)}, which ended without releasing it"
                )
                self._store.remove(_LOCK)
                continue
            if seen is not None and holder != seen:
                raise UserError(
                    f"the work directory {self.url} is in use by {_who(holder)}: wait for it, stop "
                    "it, or give another --workdir"
                )
            seen = holder
            if time.monotonic() > deadline:
                self._say(f"taking over the lock of {_who(holder)}, which was not renewed")
                self._store.remove(_LOCK)
                continue
            if not told:
                told = True
                self._say(
                    f"{self.url} is locked by {_who(holder)}: waiting to see whether it lives"
                )
            time.sleep(min(self._lease.renewed_every / 4, 5.0))

    def _is_gone(self, holder: dict[str, Any]) -> bool:
        """Returns whether the holder was a process of this machine that has ended."""
        if holder.get("host") != self._me["host"] or not isinstance(holder.get("pid"), int):
            return False
        try:
            os.kill(holder["pid"], 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def _holder(self) -> dict[str, Any] | None:
        try:
            content = json.loads(self._store.read(_LOCK))
        except FileNotFoundError:
            return None
        except ValueError:
            content = None
        return content if isinstance(content, dict) else {"host": "?", "pid": "?"}

    def _renewed(self) -> bytes:
        return json.dumps(self._me | {"renewed": time.time()}).encode()

    def _renew(self) -> None:
        """Renews the lock until the end; notices when another process has taken it."""
        while not self._ended.wait(self._lease.renewed_every):
            try:
                holder = self._holder()
                if holder is not None and holder.get("token") != self._me["token"]:
                    self._lost = (
                        f"the run {self.url} was taken over by {_who(holder)}, since its lock "
                        "could not be renewed in time: nothing more is copied there"
                    )
                    return
                self._store.write(_LOCK, self._renewed())
            except OSError as error:
                self._say(f"warning: the lock of {self.url} could not be renewed ({error})")

    def _unlock(self) -> None:
        self._ended.set()
        self._renewing.join()
        with contextlib.suppress(OSError):
            if not self._lost:
                self._store.remove(_LOCK)

    def _set_aside(self) -> None:
        names = [name for name in self._store.names() if name != _LOCK]
        if names:
            number = 1
            while (other := Store(f"{self.url}.old-{number}")).names():
                number += 1
            self._store.move(names, other)
            self._say(f"moved {self.url} to {other.url}")
        self._keep_local_apart()

    def _fill(self) -> None:
        names = self._store.names()
        there = self._store.read(IDENTITY).decode() if IDENTITY in names else ""
        here = (self.path / IDENTITY).read_text() if (self.path / IDENTITY).is_file() else ""
        newest_there = max(_sealed_steps(names, "checkpoints"), default=-1)
        newest_here = max(_local_steps(self.path / "checkpoints"), default=-1)
        if not there or there != here:
            self._keep_local_apart()
        if newest_there > newest_here:
            # The same run has gone on elsewhere.
            shutil.rmtree(self.path, ignore_errors=True)
        if not self.path.is_dir():
            process.make_private(self.path)
            _fetch_run(self._store, names, self.path, _STEPS)
        if not there:
            (self.path / IDENTITY).write_text(self._me["token"])
            self._store.write(IDENTITY, self._me["token"].encode())
        for path in self._local_files():
            if path.relative_to(self.path).as_posix() in names:
                self._sent[path.relative_to(self.path).as_posix()] = _state(path)

    def _keep_local_apart(self) -> None:
        """Moves the local folder of another run away, if it has any checkpoint."""
        if not any(_local_steps(self.path / part) for part in _STEPS):
            shutil.rmtree(self.path, ignore_errors=True)
            return
        number = 1
        while (old := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        files.rename(self.path, old)
        self._say(f"the local copy of another run at {self.url} is kept as {old}")

    def _local_files(self) -> list[Path]:
        return [
            path
            for path in sorted(self.path.rglob("*"))
            if path.is_file() and path.name != _LOCK and ".tmp" not in path.as_posix()
        ]

    def _send_all(self) -> None:
        sent_steps = False
        whole: dict[str, list[Path]] = {}
        for path in self._local_files():
            name = path.relative_to(self.path).as_posix()
            part, _, rest = name.partition("/")
            if part in _STEPS:
                whole.setdefault(f"{part}/{rest.partition('/')[0]}", []).append(path)
            else:
                self._send(path, name)
        # A checkpoint names the best state, so that one goes first: best/ is before checkpoints/.
        for folder in sorted(whole):
            paths = sorted(whole[folder], key=lambda path: path.name == files.CHECKSUMS)
            before = len(self._sent)
            try:
                for path in paths:
                    self._send(path, path.relative_to(self.path).as_posix())
            except FileNotFoundError:
                continue  # a newer one has replaced it meanwhile
            sent_steps = sent_steps or len(self._sent) > before
        if sent_steps:
            self._remove_old()

    def _send(self, path: Path, name: str) -> None:
        state = _state(path)
        if self._sent.get(name) == state:
            return
        for left in reversed(range(_TRIES)):
            try:
                self._store.send(path, name)
                break
            except FileNotFoundError:
                raise
            except OSError:
                if not left:
                    raise
                time.sleep(2.0 ** (_TRIES - left) / 8)
        self._sent[name] = state

    def _remove_old(self) -> None:
        """Removes the checkpoints of the store that the run no longer keeps."""
        names = self._store.names()
        for part in _STEPS:
            kept = _local_steps(self.path / part)
            old = [
                name
                for name in names
                if name.startswith(f"{part}/")
                and (step := name.split("/")[1]).isdigit()
                and int(step) not in kept
            ]
            # Without its checksums a checkpoint does not count, so they go first.
            for name in sorted(old, key=lambda name: not name.endswith(f"/{files.CHECKSUMS}")):
                self._store.remove(name)
                self._sent.pop(name, None)


def _fetch_run(store: Store, names: dict[str, int], folder: Path, newest: tuple[str, ...]) -> None:
    """Copies a run, of its checkpoints the newest whole ones, to a local folder."""
    for name, size in names.items():
        if name in (_LOCK, "") or name.partition("/")[0] in newest:
            continue
        target = folder / name
        if not target.is_file() or target.stat().st_size != size or "/" not in name:
            store.fetch(name, target)
    for part in newest:
        for step in sorted(_sealed_steps(names, part), reverse=True):
            target = folder / part / str(step)
            if not target.is_dir() or files.damage(target):
                # Under its name only when it is whole, as all checkpoints.
                unfinished = folder / part / f"{step}.tmp"
                shutil.rmtree(unfinished, ignore_errors=True)
                for name in names:
                    if name.startswith(f"{part}/{step}/"):
                        store.fetch(name, unfinished / name.removeprefix(f"{part}/{step}/"))
                if files.damage(unfinished):
                    shutil.rmtree(unfinished)
                    continue
                shutil.rmtree(target, ignore_errors=True)
                files.rename(unfinished, target)
            break


def _sealed_steps(names: dict[str, int], part: str) -> list[int]:
    pattern = re.compile(rf"{part}/(\d+)/{re.escape(files.CHECKSUMS)}")
    return [int(match[1]) for name in names if (match := pattern.fullmatch(name))]


def _local_steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


def _place(kind: str, url: str) -> Path:
    """Returns the local folder for an address; it has the same name."""
    url = url.rstrip("/")
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    root = os.environ.get("ZOO_SPOOL")
    folder = Path(root).expanduser() if root else process.cache_folder() / "stores"
    return folder / kind / digest / url.rpartition("/")[2]


def _state(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def _who(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')}"


@contextlib.contextmanager
def _named(url: str) -> Iterator[None]:
    """Turns what a store's library raises into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{url} cannot be used: {error or type(error).__name__}") from error
