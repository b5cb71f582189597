"""Starts from the weights of another run or of a file, and resets or freezes some of them."""

import collections
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from zoo.errors import UserError
from zoo.families import Family
from zoo.pretrained import read_variables, tables_of
from zoo.training import lora
from zoo.training.checkpoints import Checkpoints
from zoo.training.layout import Layout, make_mesh
from zoo.weights.files import find_weights, read_weights
from zoo.weights.types import as_type, described

Variables = Mapping[str, Any]
Flat = dict[tuple[str, ...], Any]


def start_from(
    source: str, family: Family, module: nn.Module, variables: Variables, *, reset: str = ""
) -> tuple[dict[str, Any], str]:
    """Returns a model's initial variables with values from other weights.

    Args:
        source: the folder of a run, or an argument of ``zoo.weights.files.find_weights``.
        family: the family of the model.
        module: the linen module.
        variables: the initial variables; their shapes and types are kept.
        reset: a regular expression; variables whose path, such as ``fc/kernel``, has a match keep
            their initial values. If it is empty, all variables are loaded.

    Returns:
        The variables, and a line for people that says what was loaded, from which types it was
        converted, and what was reset.

    Raises:
        UserError: the weights are absent or do not fit, or ``reset`` matches nothing.
    """
    here = _flatten(variables)
    kept = {path for path in here if reset and re.search(reset, "/".join(path[1:]))}
    if reset and not kept:
        raise UserError(
            f"reset={reset!r} matches no parameter; the modules are {', '.join(_modules(here))}"
        )
    if len(kept) == len(here):
        raise UserError(f"reset={reset!r} matches every parameter: nothing would be loaded")
    wanted = {path: leaf for path, leaf in here.items() if path not in kept}
    if _is_run(source):
        loaded, said = _of_run(Path(source).expanduser(), wanted)
    else:
        tables = tables_of(family, module, variables["params"], variables)
        arrays = read_weights(find_weights(source))
        try:
            read, said = read_variables(arrays, tables, _nested(wanted), source)
        except UserError as error:
            raise UserError(f"{error}\n(config.reset can leave parts out)") from error
        loaded = _flatten(read)
    begun = f"; {len(kept)} begin anew: {', '.join(_modules(kept))}" if kept else ""
    return _nested(here | loaded), said + begun


def frozen_paths(params: Any, pattern: str) -> tuple[list[str], str]:
    """Returns the paths of the parameters that ``pattern`` freezes, and a line for people.

    Raises:
        UserError: ``pattern`` matches none of the parameters, or all of them.
    """
    flat = {"/".join(path): leaf.size for path, leaf in _flatten(params).items()}
    frozen = [path for path in flat if re.search(pattern, path)]
    if not frozen or len(frozen) == len(flat):
        raise UserError(
            f"freeze={pattern!r} matches {'every' if frozen else 'no'} parameter; the modules are "
            f"{', '.join(_modules(_flatten({'': params})))}"
        )
    count = sum(flat[path] for path in frozen)
    return frozen, f"{len(frozen)} arrays with {count:,} parameters are frozen"


def _is_run(source: str) -> bool:
    try:
        folder = Path(source).expanduser()
        return (folder / "config.json").is_file() and (folder / "checkpoints").is_dir()
    except (OSError, RuntimeError):  # no path that can be opened: find_weights says why
        return False


def _of_run(folder: Path, wanted: Flat) -> tuple[Flat, str]:
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        read = checkpoints.read_state("latest", Layout(make_mesh(1)))
    finally:
        checkpoints.close()
    if read is None:
        raise UserError(f"init_from={folder} has no checkpoint")
    state, _ = read
    if lora.BASE in state["model_state"]:
        raise UserError(
            f"init_from={folder} is a run with lora.rank, whose checkpoints hold low ranks alone: "
            f"write whole weights with `zoo export --workdir {folder}`, and give that folder"
        )
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
    types = collections.Counter(str(there[path].dtype) for path in wanted)
    try:
        loaded = {
            path: as_type("/".join(path[1:]), np.asarray(there[path]), leaf.dtype)
            for path, leaf in wanted.items()
        }
    except UserError as error:
        raise UserError(f"the run in {folder}: {error}") from error
    (dtype, *_) = sorted({str(leaf.dtype) for leaf in wanted.values()})
    said = f"{len(loaded)} arrays loaded from {folder}: {described(types, dtype)}"
    return loaded, said


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
