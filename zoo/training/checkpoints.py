"""Checkpoints on disk. This is the only module that uses orbax."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from zoo.errors import UserError
from zoo.training.layout import Layout

PyTree = Any


def save_state(folder: str | Path, state: PyTree) -> None:
    """Writes a state, such as a ``TrainState``, into a folder, completely or not at all.

    Args:
        folder: the folder to write; it must not exist yet.
        state: a tree of arrays.

    Raises:
        UserError: the folder exists.
    """
    path = Path(folder).absolute()
    if path.exists():
        raise UserError(f"{folder} exists already: give a folder that does not, or remove it")
    with ocp.StandardCheckpointer() as writer:
        writer.save(path, state)


def load_state(folder: str | Path, like: PyTree) -> PyTree:
    """Returns the state that ``save_state`` wrote.

    Args:
        folder: the folder to read.
        like: a state of the same structure, such as the initial one, or its shapes
            (``jax.eval_shape``). If it has shardings, the result has them too.

    Raises:
        UserError: there is no such folder, or the folder holds another state.
    """
    path = Path(folder).absolute()
    if not path.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    with ocp.StandardCheckpointer() as reader:
        try:
            return reader.restore(path, shapes)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder} does not hold a state of this structure: {error}") from error


class Checkpoints:
    """The latest states of a run in ``checkpoints/`` and its best one in ``best/``.

    There are two managers, because a single one that keeps the best throws away the newest saves.
    Saves are asynchronous and atomic: a folder gets its final name only when it is complete. The
    incomplete folders of a killed process are removed when the run is opened again.
    """

    def __init__(self, workdir: Path, *, keep: int = 2, read_only: bool = False) -> None:
        """Opens the folders, and makes those that are absent.

        Args:
            workdir: the run's folder; may be relative.
            keep: the number of latest checkpoints to keep, at least 1.
            read_only: leave the folders as they are, since a run may be writing to them.
        """
        self._latest = _manager(workdir / "checkpoints", keep, read_only)
        self._best = _manager(workdir / "best", 1, read_only)

    def latest_step(self) -> int | None:
        """Step of the newest finished checkpoint, or None."""
        return self._latest.latest_step()

    def best_step(self) -> int | None:
        """Step of the best checkpoint, or None."""
        return self._best.latest_step()

    def save(self, step: int, arrays: PyTree, progress: dict[str, Any]) -> None:
        """Starts to save ``arrays`` and the JSON-able ``progress`` as the newest checkpoint.

        The arrays may be donated at once, because their values are copied before this returns.
        """
        _save(self._latest, step, arrays, progress)

    def save_best(self, step: int, arrays: PyTree, progress: dict[str, Any]) -> None:
        """Starts to save the best state so far, which replaces the previous one."""
        _save(self._best, step, arrays, progress)

    def restore(self, like: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """Restores the newest checkpoint, or returns None if there is none.

        Args:
            like: a tree of ``jax.ShapeDtypeStruct`` with the *current* shardings. It lets a run
                open on another number of devices and keep the types of its nodes.
        """
        return _restore(self._latest, like)

    def restore_best(self, like: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """Restores the best checkpoint, or returns None if there is none."""
        return _restore(self._best, like)

    def read_state(self, which: str, layout: Layout) -> tuple[dict[str, PyTree], int] | None:
        """Reads parameters and model state for use without training.

        Args:
            which: ``latest`` or ``best``.
            layout: where the arrays will lie.

        Returns:
            ``params``, ``ema_params`` (None if there is no average) and ``model_state``, and
            their step; or None if there is no checkpoint.
        """
        manager = {"latest": self._latest, "best": self._best}[which]
        step = manager.latest_step()
        if step is None:
            return None
        folder = manager.directory / str(step) / "arrays"
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
        return restored["state"], step

    def wait(self) -> None:
        """Returns when all saves that were started are on disk."""
        self._latest.wait_until_finished()
        self._best.wait_until_finished()

    def close(self) -> None:
        """Waits for all saves and releases the managers' threads."""
        self._latest.close()
        self._best.close()


def _manager(folder: Path, keep: int, read_only: bool) -> ocp.CheckpointManager:
    # orbax refuses relative paths.
    folder = folder.absolute()
    if read_only:
        with _errors_only():
            options = ocp.CheckpointManagerOptions(read_only=True)
            return ocp.CheckpointManager(folder, options=options)
    folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(folder, options=options)


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """Silences orbax's warning that a folder is only read, which is intended here."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _save(
    manager: ocp.CheckpointManager, step: int, arrays: PyTree, progress: dict[str, Any]
) -> None:
    # After a kill the run repeats steps. It reaches the saved states again, bit for bit.
    if step in manager.all_steps():
        return
    manager.save(
        step,
        args=ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(progress)
        ),
    )


def _restore(manager: ocp.CheckpointManager, like: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
    step = manager.latest_step()
    if step is None:
        return None
    try:
        restored = manager.restore(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(like), progress=ocp.args.JsonRestore()
            ),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the checkpoint {manager.directory / str(step)} does not fit this program's state: "
            f"{error}. Give another --workdir, or --restart to begin anew"
        ) from error
    return restored["arrays"], restored["progress"]
