"""Models with published weights."""

import dataclasses
import json
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
from zoo.weights.files import check_export, find_weights, read_weights
from zoo.weights.tables import Table, variables_from_reference


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with published weights.

    Attributes:
        module: the linen module.
        variables: the weights; call ``module.apply(variables, image)``.
        preprocessing: the preprocessing of images; None for other inputs.
    """

    module: nn.Module
    variables: dict[str, Any]
    preprocessing: Preprocessing | None


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
        UserError: a name is unknown, there are no such weights, or they do not fit; the message
            lists the arrays that are missing, superfluous or of another shape.
    """
    family = find(name)
    file = find_weights(path_or_hub_id)
    described = _described_beside(file)
    module = create_model(name, **{**_attributes(described, family), **overrides})
    inputs = family.example(module)
    # The shapes of weights from `zoo export` may depend on the size of the run's images.
    if "image" in inputs and (side := described.get("data", {}).get("image_size")):
        inputs["image"] = jnp.zeros((1, side, side, module.channels))
    variables = load_variables(family, module, read_weights(file), inputs)
    preprocessing = None if family.preprocessing is None else family.preprocessing[name]
    return Pretrained(module, variables, preprocessing)


def load_variables(
    family: Family,
    module: nn.Module,
    arrays: Mapping[str, np.ndarray],
    inputs: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns weights as a module's variables, whichever library named them.

    Args:
        family: the module's family.
        module: the linen module.
        arrays: the weights, by the library's names.
        inputs: the inputs that initialise the module, by the name of the argument.

    Raises:
        UserError: the weights do not fit.
    """
    like = jax.eval_shape(lambda: module.init(jax.random.key(0), **inputs))
    tables = tables_of(family, module, like["params"])
    return variables_from_reference(arrays, nearest(tables, arrays), like)


def nearest(tables: Mapping[str, Table], arrays: Mapping[str, np.ndarray]) -> Table:
    """Returns the table that has the names of most of the arrays."""
    return max(
        tables.values(), key=lambda table: len({entry.reference for entry in table} & set(arrays))
    )


def tables_of(family: Family, module: nn.Module, params: Mapping[str, Any]) -> dict[str, Table]:
    """Returns the tables of a model, by the library whose names they use; export takes the first.

    Args:
        family: the model's family.
        module: the model.
        params: the model's parameters, or their shapes.

    Raises:
        UserError: the model has no table.
    """
    if not family.weights:
        raise UserError(f"there is no table of weights for {type(module).__name__}")
    return {library: make(module, params) for library, make in family.weights.items()}


def _described_beside(file: Path) -> dict[str, Any]:
    """Reads the ``config.json`` beside a file of weights; empty if there is none."""
    described = file.with_name("config.json")
    if not described.is_file():
        return {}
    check_export(described)
    try:
        content = json.loads(described.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{described} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{described} is not a JSON object")
    return content


def _attributes(described: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Returns the attributes that ``config.json`` gives."""
    # A file from `zoo export` uses the module's own names of the attributes.
    if isinstance(described.get("model"), dict):
        return {
            name: fields.as_tuples(value)
            for name, value in described["model"].items()
            if name != "name"
        }
    return family.attributes_of(described) if family.attributes_of and described else {}
