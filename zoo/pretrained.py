"""Models with published weights."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo import fields
from zoo.errors import UserError
from zoo.families import Family, Preprocessing, create_model, find
from zoo.weights.files import (
    check_export,
    find_weights,
    read_json,
    read_weights,
    write_weights,
)
from zoo.weights.names import fit
from zoo.weights.tables import (
    Renamed,
    Table,
    own_table,
    variables_and_types,
    variables_to_reference,
)
from zoo.weights.types import described


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with published weights.

    Attributes:
        module: the linen module.
        variables: the weights; call ``module.apply(variables, image)``.
        preprocessing: the preprocessing of images; None for other inputs.
        said: a line for people: how many arrays were loaded, from which types they were converted
            to the model's, and what was left out of their names.
    """

    module: nn.Module
    variables: dict[str, Any]
    preprocessing: Preprocessing | None
    said: str = ""


def from_pretrained(name: str, path_or_hub_id: str | Path, **overrides: Any) -> Pretrained:
    """Returns a model with published weights.

    Args:
        name: the name of the model; see ``zoo.list_models``.
        path_or_hub_id: see ``zoo.weights.files.find_weights``. The weights may have torchvision's
            names, or timm's, Hugging Face's or PyTorch's if the model has a table for them. A
            ``config.json`` beside the weights gives the model's attributes if the zoo knows its
            keys.
        **overrides: attributes of the model, such as ``num_classes`` if the weights have other
            classes than ImageNet's 1000. They take precedence over ``config.json``.

    Raises:
        UserError: a name is unknown, there are no such weights, ``config.json`` has a value that
            the model cannot have, or the weights do not fit; the message says how many arrays are
            missing, superfluous or of another shape or type, with the first names of each kind.
    """
    family = find(name)
    file = find_weights(path_or_hub_id)
    beside = _described_beside(file)
    module = create_model(name, **{**_attributes(beside, family, name, file), **overrides})
    arrays = read_weights(file)
    # Each layer has arrays of its own. A number of layers from a damaged file may be endless.
    if getattr(module, "num_layers", 0) > len(arrays):
        raise UserError(
            f"{file}: its {len(arrays)} arrays are too few for num_layers={module.num_layers}"
        )
    inputs = family.example(module)
    # The shapes of weights from `zoo export` may depend on the size of the run's images.
    if "image" in inputs and (side := _image_size(beside)):
        inputs["image"] = jnp.zeros((1, side, side, module.channels))
    variables, said = _load(family, module, arrays, inputs, str(file))
    preprocessing = None if family.preprocessing is None else family.preprocessing[name]
    return Pretrained(module, variables, preprocessing, said)


def load_variables(
    family: Family,
    module: nn.Module,
    arrays: Mapping[str, np.ndarray],
    inputs: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns weights as a module's variables, in its types, whichever library named them.

    Args:
        family: the module's family.
        module: the linen module.
        arrays: the weights, by the library's names.
        inputs: the inputs that initialise the module, by the name of the argument.

    Raises:
        UserError: the weights do not fit.
    """
    return _load(family, module, arrays, inputs, "the weights")[0]


def read_variables(
    arrays: Mapping[str, np.ndarray],
    tables: Mapping[str, Table],
    like: Mapping[str, Any],
    source: str,
) -> tuple[dict[str, Any], str]:
    """Returns weights as variables, by the table that has most of their names.

    Args:
        arrays: the weights, by the names in the file.
        tables: the model's tables, by the library whose names they use.
        like: the variables to read, or their shapes; a part of the model's is enough.
        source: where the weights come from, for people.

    Returns:
        The variables in the types of ``like``, and a line for people that says what was loaded.

    Raises:
        UserError: the weights do not fit.
    """
    # A dictionary keeps the order of a table, and finds names as fast as a set.
    known = {lib: {e.reference: None for e in table} for lib, table in tables.items()}
    fitting = fit(arrays, known)
    wanted = {
        "/".join(str(key.key) for key in path[1:]): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(like)
    }
    whole = tables[fitting.library]
    table = [entry for entry in whole if not entry.ours or entry.ours in wanted]
    left_out = {entry.reference for entry in whole} - {entry.reference for entry in table}
    names = {name: theirs for name, theirs in fitting.names.items() if name not in left_out}
    try:
        variables, types = variables_and_types(Renamed(arrays, names), table, like)
    except UserError as error:
        text = (
            f"the weights do not fit the model:\n  {fitting.hint}" if fitting.hint else str(error)
        )
        said = f"\n  ({fitting.said})" if fitting.said else ""
        raise UserError(f"{source}: {text}{said}") from error
    (dtype, *_) = sorted({str(leaf.dtype) for leaf in wanted.values()})
    said = f"{len(wanted)} arrays loaded from {source}: {described(types, dtype)}"
    return variables, "; ".join(filter(None, (said, fitting.said)))


def save_pretrained(
    folder: Path,
    family: Family,
    module: nn.Module,
    variables: Mapping[str, Any],
    description: Mapping[str, Any],
) -> Path:
    """Writes weights with the names of the first library of the family, and ``config.json``.

    ``from_pretrained`` reads the folder again. Where the library has such a model, it opens the
    folder too. The entry ``names`` of ``config.json`` says whose names the weights have: a
    library's, or ``zoo``, the zoo's own, which no library knows.

    Args:
        folder: the folder to write to.
        family: the module's family.
        module: the linen module.
        variables: the module's variables.
        description: what ``config.json`` says besides.

    Returns:
        The path of ``model.safetensors``.

    Raises:
        UserError: the folder cannot be written.
    """
    (library, table), *_ = tables_of(family, module, variables["params"], variables).items()
    arrays = variables_to_reference(variables, table)
    config = family.config_of(module) if family.config_of else {}
    return write_weights(folder, arrays, {**config, **description, "names": library})


def tables_of(
    family: Family,
    module: nn.Module,
    params: Mapping[str, Any],
    variables: Mapping[str, Any] | None = None,
) -> dict[str, Table]:
    """Returns the tables of a model, by the library whose names they use; export takes the first.

    Args:
        family: the model's family.
        module: the model.
        params: the model's parameters, or their shapes.
        variables: all of the model's variables, or their shapes; None: it has only parameters. They
            give the zoo's own names, for a family without a table.
    """
    if not family.weights:
        return {"zoo": own_table({"params": params} if variables is None else variables)}
    return {library: make(module, params) for library, make in family.weights.items()}


def _load(
    family: Family,
    module: nn.Module,
    arrays: Mapping[str, np.ndarray],
    inputs: Mapping[str, Any],
    source: str,
) -> tuple[dict[str, Any], str]:
    like = jax.eval_shape(lambda: module.init(jax.random.key(0), **inputs))
    return read_variables(arrays, tables_of(family, module, like["params"], like), like, source)


def _described_beside(file: Path) -> dict[str, Any]:
    """Reads the ``config.json`` beside a file of weights; empty if there is none."""
    beside = file.with_name("config.json")
    if not beside.is_file():
        return {}
    check_export(beside)
    content = read_json(beside)
    if not isinstance(content, dict):
        raise UserError(f"{beside} is not a JSON object")
    return content


def _attributes(beside: Mapping[str, Any], family: Family, name: str, file: Path) -> dict[str, Any]:
    """Returns the attributes that ``config.json`` gives, with their values checked."""
    # A file from `zoo export` uses the module's own names of the attributes.
    if isinstance(beside.get("model"), dict):
        theirs = beside["model"].get("name", name)
        if theirs not in list(family.sizes):  # it may be of any type
            raise UserError(
                f"the weights in {file.parent} are of the model {theirs!r}, not of {name!r}"
            )
        given = {key: fields.as_tuples(x) for key, x in beside["model"].items() if key != "name"}
    else:
        given = family.attributes_of(beside) if family.attributes_of and beside else {}
    known = family.fields(name)
    for attribute, value in given.items():
        if attribute in known and not _is_allowed(value, known[attribute]):
            rule = known[attribute].rule.words or type(known[attribute].default).__name__
            raise UserError(
                f"{file.with_name('config.json')}: {attribute}={value!r} must be {rule}"
            )
    return given


def _is_allowed(value: Any, field: fields.Field) -> bool:
    kind = type(field.default)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (type(value) is kind or (kind is float and whole)):
        return False
    try:
        return bool(field.rule.allows(value))
    except TypeError:  # a part of the value has the wrong type
        return False


def _image_size(beside: Mapping[str, Any]) -> int:
    """Returns the side of the images of the run that was exported; 0 if it is not known."""
    data = beside.get("data")
    side = data.get("image_size") if isinstance(data, dict) else None
    return side if type(side) is int and side > 0 else 0
