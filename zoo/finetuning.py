"""Starting from the weights of another run or of a file, some begun anew, some frozen."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from zoo.errors import UserError
from zoo.pretrained.files import find_weights, read_weights
from zoo.pretrained.published import tables_of
from zoo.pretrained.tables import Table, variables_from_reference
from zoo.training.checkpoints import Checkpoints
from zoo.training.partitioning import make_mesh, replicated

Variables = Mapping[str, Any]
Flat = dict[tuple[str, ...], Any]


def start_from(
    source: str, name: str, module: nn.Module, variables: Variables, *, reset: str = ""
) -> tuple[dict[str, Any], str]:
    """Returns a model's first variables with the values of other weights.

    Args:
        source: a run's folder, or what ``zoo.pretrained.files.find_weights`` takes.
        name: of the model.
        module: the linen module.
        variables: what it begins with; its shapes are kept.
        reset: regular expression; what has a match in its path, such as ``fc/kernel``, stays as it
            is here. Empty: nothing.

    Returns:
        The variables, and what was loaded and reset, for people.

    Raises:
        UserError: there are no such weights, they do not fit, or ``reset`` matches nothing.
    """
    here = _flatten(variables)
    kept = {path for path in here if reset and re.search(reset, "/".join(path[1:]))}
    if reset and not kept:
        raise UserError(
            f"reset={reset!r} matches no parameter; there are {', '.join(_modules(here))}"
        )
    wanted = {path: leaf for path, leaf in here.items() if path not in kept}
    folder = Path(source).expanduser()
    if (folder / "config.json").is_file() and (folder / "checkpoints").is_dir():
        loaded = _of_run(folder, wanted)
    else:
        arrays = read_weights(find_weights(source))
        loaded = _of_file(arrays, tables_of(name, module), wanted)
    begun = f"; {len(kept)} begin anew: {', '.join(_modules(kept))}" if kept else ""
    return _nested(here | loaded), f"{len(loaded)} arrays loaded from {source}{begun}"


def frozen_paths(params: Any, pattern: str) -> tuple[list[str], str]:
    """Returns the paths of the parameters that ``pattern`` freezes, and a line for people.

    Raises:
        UserError: it matches none, or all.
    """
    flat = {"/".join(path): leaf.size for path, leaf in _flatten(params).items()}
    frozen = [path for path in flat if re.search(pattern, path)]
    if not frozen or len(frozen) == len(flat):
        raise UserError(
            f"freeze={pattern!r} matches {'every' if frozen else 'no'} parameter; there are "
            f"{', '.join(_modules(_flatten({'': params})))}"
        )
    count = sum(flat[path] for path in frozen)
    return frozen, f"{len(frozen)} arrays with {count:,} parameters are frozen"


def _of_run(folder: Path, wanted: Flat) -> Flat:
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        read = checkpoints.read_state("latest", replicated(make_mesh(1)))
    finally:
        checkpoints.close()
    if read is None:
        raise UserError(f"init_from={folder} has no checkpoint")
    state, _ = read
    params = state["ema_params"] or state["params"]
    there = _flatten({"params": params} | dict(state["model_state"]))
    wrong = [
        f"{'/'.join(path)} {there[path].shape if path in there else 'is missing'}, "
        f"wanted {leaf.shape}"
        for path, leaf in wanted.items()
        if path not in there or there[path].shape != leaf.shape
    ]
    if wrong:
        raise UserError(
            f"the run in {folder} does not fit the model (reset can leave parts out):\n  "
            + "\n  ".join(wrong)
        )
    return {path: np.asarray(there[path]) for path in wanted}


def _of_file(arrays: Mapping[str, Any], tables: Mapping[str, Table], wanted: Flat) -> Flat:
    # The layout whose names most of the arrays have.
    def known(table: Table) -> int:
        return len({entry.reference for entry in table} & set(arrays))

    table = max(tables.values(), key=known)
    names = {"/".join(path[1:]) for path in wanted}
    part = [entry for entry in table if entry.ours in names]
    left_out = {entry.reference for entry in table} - {entry.reference for entry in part}
    given = {name: array for name, array in arrays.items() if name not in left_out}
    return _flatten(variables_from_reference(given, part, _nested(wanted)))


def _flatten(tree: Any) -> Flat:
    return {
        tuple(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _nested(flat: Flat) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        branch = tree
        for part in path[:-1]:
            branch = branch.setdefault(part, {})
        branch[path[-1]] = value
    return tree


def _modules(paths: Any) -> list[str]:
    return sorted({path[1] for path in paths})
