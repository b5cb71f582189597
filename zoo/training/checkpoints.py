"""Checkpoints on disk. This is the only module that uses orbax.

A checkpoint is a folder that orbax writes, with ``checksums.json`` beside its files. It gets its
name when all that it holds is on the disk, so a folder whose name is a step is complete, whatever
ended the process or the machine. What happens to it later is found by the checksums.
"""

import contextlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import SingleDeviceSharding

from zoo import files
from zoo.errors import DamageWarning, UserError
from zoo.training.layout import Layout

PyTree = Any

# What orbax keeps for us in a checkpoint's own description. Checkpoints of earlier versions of the
# zoo lack it, and have no checksums.
_MARK = {"checksums": files.CHECKSUMS}
_DESCRIPTION = "_CHECKPOINT_METADATA"
# What orbax, tensorstore and the parser of JSON raise at a file that is not what was written.
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError)
# How long a process waits for the others.
_PATIENCE_MS = 20 * 60 * 1000


def save_state(folder: str | Path, state: PyTree) -> None:
    """Writes a state, such as a ``TrainState``, into a folder, completely or not at all.

    The folder is on the disk, with checksums, when this returns.

    Args:
        folder: the folder to write; it must not exist yet.
        state: a tree of arrays.

    Raises:
        UserError: the folder exists.
    """
    path = Path(folder).absolute()
    if path.exists():
        raise UserError(f"{folder} exists already: give a folder that does not, or remove it")
    files.make_folder(path.parent)
    unsealed = path.with_name(path.name + ".tmp")
    with ocp.StandardCheckpointer() as writer:
        writer.save(unsealed, state, force=True, custom_metadata=_MARK)
    files.seal(unsealed)
    files.rename(unsealed, path)


def load_state(folder: str | Path, like: PyTree) -> PyTree:
    """Returns the state that ``save_state`` wrote.

    Args:
        folder: the folder to read.
        like: a state of the same structure, such as the initial one, or its shapes
            (``jax.eval_shape``). If it has shardings, the result has them too.

    Raises:
        UserError: there is no such folder, it is damaged, or it holds another state.
    """
    path = Path(folder).absolute()
    if not path.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    if found := _damage(path):
        raise UserError(f"{folder} is damaged: {found}. Take a copy of it, or save it anew")
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    with ocp.StandardCheckpointer() as reader:
        try:
            return reader.restore(path, shapes)
        except _UNREADABLE as error:
            raise UserError(f"{folder} does not hold a state of this structure: {error}") from error


class Checkpoints:
    """The latest states of a run in ``checkpoints/`` and its best one in ``best/``.

    Saves are asynchronous. A checkpoint gets its name when its files, with their checksums, are on
    the disk, and an older one is removed after that. The incomplete folders of a killed process are
    removed when the run is opened again.

    A checkpoint that is read is first compared with its checksums. If the newest one is damaged, a
    run goes on from the newest whole one, and the damaged one is moved to ``checkpoints/damaged/``.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        keep: int = 2,
        read_only: bool = False,
        say: Callable[[str], None] | None = None,
        saved: Callable[[], None] = lambda: None,
    ) -> None:
        """Opens the folders, and makes those that are absent.

        Args:
            workdir: the run's folder; may be relative.
            keep: the number of latest checkpoints to keep, at least 1.
            read_only: leave the folders as they are, since a run may be writing to them.
            say: tells the user of damaged checkpoints; None warns with a ``DamageWarning``.
            saved: is called in a thread when a checkpoint is on the disk, as to copy it elsewhere.
        """
        self._workdir = workdir
        self._read_only = read_only
        self._say = say or _warn
        self._latest = _Saves(workdir / "checkpoints", keep, read_only, saved)
        self._best = _Saves(workdir / "best", 1, read_only, saved)

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, which may be in the course of being saved, or None."""
        return max(self._latest.steps, default=None)

    def best_step(self) -> int | None:
        """Step of the best checkpoint, or None."""
        return max(self._best.steps, default=None)

    def save(self, step: int, arrays: PyTree, progress: dict[str, Any]) -> None:
        """Starts to save ``arrays`` and the JSON-able ``progress`` as the newest checkpoint.

        The arrays may be donated at once, because their values are copied before this returns.
        An error of the save before, such as a full disk, is raised here.
        """
        self._one_at_a_time()
        # The progress names the best state, so that one has to be there first.
        self._latest.save(step, arrays, progress, after=self._best)

    def save_best(self, step: int, arrays: PyTree, progress: dict[str, Any]) -> None:
        """Starts to save the best state so far, which replaces the previous one."""
        self._one_at_a_time()
        self._best.save(step, arrays, progress)

    def restore(self, like: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """Restores the newest whole checkpoint, or returns None if nothing was saved.

        Newer ones, which are damaged, are moved to ``damaged/`` in their folder, and so is a
        damaged best one. The user is told.

        Args:
            like: a tree of ``jax.ShapeDtypeStruct`` with the *current* shardings. It lets a run
                open on another number of devices and keep the types of its nodes.

        Raises:
            UserError: every checkpoint is damaged, or the newest whole one does not fit ``like``.
        """
        step = self._newest_whole()
        if not self._read_only:
            self._check_best()
        return None if step is None else _restore(self._latest.folder / str(step), like)

    def read_state(self, which: str, layout: Layout) -> tuple[dict[str, PyTree], int] | None:
        """Reads parameters and model state for use without training.

        Args:
            which: ``latest`` or ``best``. If the latest is damaged, the newest whole one is read,
                and the user is told.
            layout: where the arrays will lie.

        Returns:
            ``params``, ``ema_params`` (None if there is no average) and ``model_state``, and
            their step; or None if there is no checkpoint.

        Raises:
            UserError: the best checkpoint, or every one of the latest, is damaged.
        """
        saves = {"latest": self._latest, "best": self._best}[which]
        step = self._newest_whole() if which == "latest" else self._whole_best()
        if step is None:
            return None
        folder = saves.folder / str(step)
        try:
            return _read_state(folder / "arrays", layout), step
        except _UNREADABLE:
            if folder.is_dir():
                raise
            # The run that writes here has saved a newer one and removed this one.
            return self.read_state(which, layout)

    def wait(self) -> None:
        """Returns when all saves that were started are on disk.

        Raises:
            Exception: a save has failed.
        """
        try:
            self._latest.wait()
        finally:
            self._best.wait()

    def close(self) -> None:
        """Waits for all saves and releases the threads."""
        try:
            self._latest.close()
        finally:
            self._best.close()

    def _one_at_a_time(self) -> None:
        """Waits for the save that was started, where several processes save.

        orbax numbers what the processes wait for by counting. Two saves at a time would be counted
        in another order in each process, and all would wait forever.
        """
        if jax.process_count() > 1:
            self.wait()

    def _newest_whole(self) -> int | None:
        """Finds the newest whole checkpoint; moves newer ones aside, and tells the user of them."""
        step, damaged = self._latest.newest_whole()
        folder = self._workdir / "checkpoints"
        found = [f"{folder / str(one)} is damaged: {what}" for one, what in damaged.items()]
        if damaged and step is None:
            best = self._read_only and self.best_step() is not None
            raise UserError(
                f"no checkpoint of the run in {self._workdir} is whole:\n  "
                + "\n  ".join(found)
                + "\nBring back a copy of one"
                + (", read the best with checkpoint='best'" if best else "")
                + ", or begin anew with --restart"
            )
        for one, words in zip(damaged, found, strict=True):
            if self._read_only:
                self._say(words)
            else:
                self._say(f"{words}. It is kept as {self._latest.set_aside(one)}")
        if damaged and step is not None:
            lost = max(damaged) - step
            self._say(
                f"the checkpoint of step {step} is read instead, {lost} steps earlier"
                if self._read_only
                else f"the run goes on from step {step}: {lost} steps are lost and are done again"
            )
        return step

    def _whole_best(self) -> int | None:
        step, damaged = self._best.newest_whole()
        if damaged:
            newest = max(damaged)
            raise UserError(
                f"{self._workdir / 'best' / str(newest)} is damaged: {damaged[newest]}. Read the "
                "latest with checkpoint='latest', or bring back a copy of the best"
            )
        return step

    def _check_best(self) -> None:
        for step, found in self._best.newest_whole()[1].items():
            self._say(
                f"{self._workdir / 'best' / str(step)} is damaged: {found}. It is kept as "
                f"{self._best.set_aside(step)}; the next evaluation that is better saves a new one"
            )


class _Saves:
    """The checkpoints in one folder, by step.

    In several processes all of them save, and the first one names and removes folders.
    """

    def __init__(self, folder: Path, keep: int, read_only: bool, saved: Callable[[], None]) -> None:
        # orbax refuses relative paths.
        self.folder = folder.absolute()
        self._keep = keep
        self._saved = saved
        self._first = jax.process_index() == 0
        self._meet = ocp.multihost.get_barrier_sync_fn()
        self._saving: tuple[int, Future[None]] | None = None
        self._thread: ThreadPoolExecutor | None = None
        if not read_only:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
            self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
            if self._first:
                files.make_folder(self.folder)
                _remove_unfinished(self.folder)
            self._meet(key=f"{self.folder} is open", timeout_ms=_PATIENCE_MS)
        self.steps = _steps(self.folder)

    def save(
        self,
        step: int,
        arrays: PyTree,
        progress: dict[str, Any],
        *,
        after: "_Saves | None" = None,
    ) -> None:
        """Starts to save; first waits for the save before, and raises its error.

        The checkpoint gets its name after that which ``after`` is saving.
        """
        # After a kill the run repeats steps. It reaches the saved states again, bit for bit.
        if step in self.steps:
            return
        self.wait()
        assert self._thread is not None, "the folder was opened to be read only"
        self._writer.save(
            self.folder / f"{step}.tmp",
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(progress)
            ),
            custom_metadata=_MARK,
            force=True,
        )
        self.steps.append(step)
        surplus, self.steps = self.steps[: -self._keep], self.steps[-self._keep :]
        other = after._saving[1] if after and after._saving else None
        self._saving = step, self._thread.submit(self._complete, step, surplus, other)

    def _complete(self, step: int, surplus: list[int], other: "Future[None] | None") -> None:
        """Gives a checkpoint its name once it is on the disk, and then removes older ones."""
        self._writer.wait_until_finished()
        if other:
            other.result()
        if self._first:
            unsealed = self.folder / f"{step}.tmp"
            files.seal(unsealed)
            files.rename(unsealed, self.folder / str(step))
            for old in surplus:
                if (self.folder / str(old)).is_dir():
                    # A folder named by a step is complete, also if the power ends meanwhile.
                    removed = self.folder / f"{old}.tmp-removed"
                    files.rename(self.folder / str(old), removed)
                    shutil.rmtree(removed)
            self._saved()
        self._meet(key=f"{self.folder}/{step} is saved", timeout_ms=_PATIENCE_MS)

    def newest_whole(self) -> tuple[int | None, dict[int, str]]:
        """Returns the newest whole checkpoint, and what is wrong with those that are newer."""
        damaged: dict[int, str] = {}
        removed = False
        for step in reversed(_steps(self.folder)):
            folder = self.folder / str(step)
            found = _damage(folder) or _older_damage(folder)
            if not found:
                return step, damaged
            if folder.is_dir():
                damaged[step] = found
            else:
                removed = True
        # The run that writes here has saved a newer one meanwhile and removed an older one.
        return self.newest_whole() if removed else (None, damaged)

    def set_aside(self, step: int) -> Path:
        """Moves a checkpoint to ``damaged/``, where nothing reads it; returns its new path."""
        target, number = self.folder / "damaged" / str(step), 2
        while target.exists():
            target, number = target.with_name(f"{step}-{number}"), number + 1
        self._meet(key=f"{target} is free", timeout_ms=_PATIENCE_MS)
        if self._first:
            files.make_folder(target.parent)
            files.rename(self.folder / str(step), target)
        self._meet(key=f"{target} is filled", timeout_ms=_PATIENCE_MS)
        self.steps.remove(step)
        return target

    def wait(self) -> None:
        """Returns when the save that was started is on the disk; raises its error."""
        if self._saving is not None:
            (step, saving), self._saving = self._saving, None
            try:
                saving.result()
            except BaseException:
                self.steps.remove(step)
                raise

    def close(self) -> None:
        """Waits, and ends the threads."""
        if self._thread is not None:
            try:
                self.wait()
            finally:
                self._thread.shutdown()
                self._writer.close()


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if re.fullmatch(r"\d+", path.name))


def _remove_unfinished(folder: Path) -> None:
    """Removes what a killed process left, of this version of the zoo or of an earlier one."""
    for path in folder.iterdir():
        if re.match(r"\d+\.(tmp|orbax-checkpoint-tmp)", path.name):
            shutil.rmtree(path)


def _damage(folder: Path) -> str | None:
    """Returns what is wrong with a checkpoint, or None if it is whole or has no checksums."""
    if (folder / files.CHECKSUMS).exists():
        return files.damage(folder)
    try:
        description = json.loads((folder / _DESCRIPTION).read_bytes())
        marked = _MARK.items() <= (description["custom_metadata"] or {}).items()
    except _UNREADABLE:
        return f"{_DESCRIPTION} is missing or cannot be read"
    return f"{files.CHECKSUMS} is missing" if marked else None


def _older_damage(folder: Path) -> str | None:
    """Returns why a checkpoint without checksums cannot be read, or None if it can be."""
    if (folder / files.CHECKSUMS).exists():
        return None
    try:
        with _errors_only(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            reader.restore(folder, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))
        with _errors_only(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            saved = reader.metadata(folder / "arrays").item_metadata.tree
            here = ocp.ArrayRestoreArgs(sharding=SingleDeviceSharding(jax.local_devices()[0]))
            reader.restore(
                folder / "arrays",
                args=ocp.args.PyTreeRestore(restore_args=jax.tree.map(lambda _: here, saved)),
            )
    except _UNREADABLE as error:
        return f"it cannot be read ({str(error).strip().splitlines()[0]})"
    return None


def _restore(folder: Path, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            restored = reader.restore(
                folder,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardRestore(like), progress=ocp.args.JsonRestore()
                ),
            )
    except _UNREADABLE as error:
        raise UserError(
            f"the checkpoint {folder} does not fit this program's state: {error}. Give another "
            "--workdir, or --restart to begin anew"
        ) from error
    return restored["arrays"], restored["progress"]


def _read_state(folder: Path, layout: Layout) -> dict[str, PyTree]:
    with _errors_only(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        saved = reader.metadata(folder).item_metadata["state"]
        like = layout.abstract(
            {name: saved[name] for name in ("params", "ema_params", "model_state")}
        )
        restored = reader.restore(
            folder,
            args=ocp.args.PyTreeRestore(
                {"state": like},
                restore_args=ocp.checkpoint_utils.construct_restore_args({"state": like}),
                partial_restore=True,
            ),
        )
    return restored["state"]


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """Silences orbax's warning that a folder below a checkpoint has no description of its own."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _warn(text: str) -> None:
    warnings.warn(text, DamageWarning, stacklevel=2)
