"""Models with published weights."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from zoo import fields
from zoo.errors import UserError, did_you_mean
from zoo.families import FAMILIES, Family, Preprocessing, by_name, create_model, find
from zoo.tokenizers import Tokenizer, read_tokenizer
from zoo.training.layout import Layout
from zoo.training.placement import placement_of
from zoo.weights.files import (
    FILE,
    TOKENIZER_FILES,
    check_export,
    find_weights,
    read_json,
    read_weights,
    write_weights,
)
from zoo.weights.names import fit
from zoo.weights.tables import (
    Place,
    Renamed,
    Table,
    own_table,
    variables_and_types,
    variables_to_reference,
)
from zoo.weights.types import described


# The types that parameters may be loaded in.
TYPES = ("float32", "bfloat16", "float16")
_GENERATION = "generation_config.json"
# transformers' models that write texts, and the tokens that it needs for that.
_WRITERS = ("LMHeadModel", "ForCausalLM", "ForConditionalGeneration")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with published weights.

    Attributes:
        name: the name of the model among the zoo's.
        module: the linen module.
        variables: the weights; call ``module.apply(variables, image)``.
        preprocessing: the preprocessing of images; None for other inputs.
        said: a line for people: how many arrays were loaded, from which types they were converted
            to the model's, and what was left out of their names.
        folder: the folder that the weights were read from.
    """

    name: str
    module: nn.Module
    variables: dict[str, Any]
    preprocessing: Preprocessing | None
    said: str
    folder: Path

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer beside the weights, which is read when it is first asked for.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        return read_tokenizer(self.folder)

    def save(self, folder: str | Path, variables: Mapping[str, Any] | None = None) -> Path:
        """Writes the model for the library whose names it has, with tokenizer and generation config.

        ``from_pretrained`` reads the folder again, and so does that library: see
        ``save_pretrained``.

        Args:
            folder: the folder to write to.
            variables: other weights of the model, such as fine-tuned ones; None writes
                ``variables``.

        Returns:
            The path of ``model.safetensors``.

        Raises:
            UserError: the folder cannot be written.
        """
        there = _described_beside(self.folder / FILE)
        return save_pretrained(
            Path(folder),
            find(self.name),
            self.module,
            self.variables if variables is None else variables,
            {name: there[name] for name in _TOKENS if name in there},
            beside=files_beside(self.folder),
        )


def from_pretrained(
    name: str | Path,
    path_or_hub_id: str | Path | None = None,
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    **overrides: Any,
) -> Pretrained:
    """Returns a model with published weights, and its tokenizer.

    ``from_pretrained(path_or_hub_id)`` finds the model by the ``config.json`` beside the weights:
    by the name that ``zoo export`` wrote, or the ``architectures`` or ``model_type`` of
    transformers. ``from_pretrained(name, path_or_hub_id)`` names it, which weights without such a
    file need.

    Arrays are read one by one, converted, and put where they will stay. While it loads, the process
    takes hardly more memory than the parameters do.

    Args:
        name: the name of the model, see ``zoo.list_models``; or, as the only argument,
            ``path_or_hub_id``.
        path_or_hub_id: see ``zoo.weights.files.find_weights``. The weights may have torchvision's
            names, or timm's, Hugging Face's or PyTorch's if the model has a table for them. A
            ``config.json`` beside the weights gives the model's attributes if the zoo knows its
            keys.
        dtype: the type of the parameters: ``float32``, ``bfloat16`` or ``float16``.
        mesh: the devices over which the parameters are divided, as training divides them; see
            ``zoo.training.layout.make_mesh``. None: they lie on the first device.
        **overrides: attributes of the model, such as ``num_classes`` if the weights have other
            classes than ImageNet's 1000. They take precedence over ``config.json``.

    Raises:
        UserError: a name is unknown, there are no such weights, ``config.json`` is of no model that
            the zoo reads or has a value that the model cannot have, or the weights do not fit; the
            message says how many arrays are missing, superfluous or of another shape or type, with
            the first names of each kind.
    """
    if dtype not in TYPES:
        raise UserError(f"dtype={dtype!r} must be one of {', '.join(TYPES)}")
    if path_or_hub_id is None:
        if str(name) in by_name():
            raise UserError(
                f"from_pretrained({str(name)!r}) names a model and no weights: give their path or "
                "name on the hub too"
            )
        file = find_weights(name)
        beside = _described_beside(file)
        name = _named(beside, file)
    else:
        find(str(name))
        file = find_weights(path_or_hub_id)
        beside = _described_beside(file)
    name = str(name)
    family = find(name)
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
    like = _like(module, inputs, dtype)
    variables, said = read_variables(
        arrays,
        tables_of(family, module, like["params"], like),
        like,
        str(file),
        place=_placing(family, like, mesh),
    )
    preprocessing = None if family.preprocessing is None else family.preprocessing[name]
    return Pretrained(name, module, variables, preprocessing, said, file.parent)


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
    like = _like(module, inputs)
    tables = tables_of(family, module, like["params"], like)
    return read_variables(arrays, tables, like, "the weights")[0]


def read_variables(
    arrays: Mapping[str, np.ndarray],
    tables: Mapping[str, Table],
    like: Mapping[str, Any],
    source: str,
    place: Place = lambda path, array: array,
) -> tuple[dict[str, Any], str]:
    """Returns weights as variables, by the table that has most of their names.

    Args:
        arrays: the weights, by the names in the file.
        tables: the model's tables, by the library whose names they use.
        like: the variables to read, or their shapes; a part of the model's is enough.
        source: where the weights come from, for people.
        place: puts an array where it will stay; see ``zoo.weights.tables.variables_and_types``.

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
        variables, types = variables_and_types(Renamed(arrays, names), table, like, place)
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
    description: Mapping[str, Any] = MappingProxyType({}),
    beside: Mapping[str, str] = MappingProxyType({}),
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
        beside: the texts of further files by name, such as ``tokenizer.json``. A model that writes
            texts always has a ``generation_config.json``.

    Returns:
        The path of ``model.safetensors``.

    Raises:
        UserError: the folder cannot be written.
    """
    (library, table), *_ = tables_of(family, module, variables["params"], variables).items()
    arrays = variables_to_reference(variables, table)
    config = family.config_of(module) if family.config_of else {}
    config = {**config, **description, "names": library}
    if any(theirs.endswith(_WRITERS) for theirs in config.get("architectures", ())):
        generation = {name: config[name] for name in _TOKENS if name in config}
        beside = {_GENERATION: json.dumps(generation, indent=2) + "\n", **beside}
    return write_weights(folder, arrays, config, beside)


def files_beside(folder: Path) -> dict[str, str]:
    """Returns the texts of the tokenizer's files and the generation config in a folder, by name."""
    found = {}
    for name in (*TOKENIZER_FILES, _GENERATION):
        try:
            found[name] = (folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / name} cannot be read: {error}") from error
    return found


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


def _like(
    module: nn.Module, inputs: Mapping[str, Any], dtype: str = "float32"
) -> dict[str, Any]:
    """Returns the shapes of a module's variables, with the type in which they are loaded."""
    shapes: dict[str, Any] = jax.eval_shape(lambda: module.init(jax.random.key(0), **inputs))
    if dtype == "float32":
        return shapes
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype))
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        else leaf,
        shapes,
    )


def _placing(family: Family, like: Mapping[str, Any], mesh: Mesh | None) -> Place:
    """Returns what puts an array where it will stay."""
    if mesh is None:
        # A CPU's arrays take over memory that begins where XLA's does, and copy other memory.
        return lambda path, array: jax.device_put(array, jax.local_devices()[0], may_alias=True)
    placement, _ = placement_of(family.axes, like["params"], mesh)
    shardings = {
        jax.tree_util.keystr(path[1:], simple=True, separator="/"): sharding
        for path, sharding in jax.tree_util.tree_leaves_with_path(Layout(mesh, placement).of(like))
    }
    return lambda path, array: jax.device_put(array, shardings[path])


def _named(beside: Mapping[str, Any], file: Path) -> str:
    """Returns the model's name, by the ``config.json`` beside its weights."""
    described = file.with_name("config.json")
    own = beside.get("model")
    if isinstance(own, dict) and isinstance(own.get("name"), str):  # of `zoo export`
        return str(own["name"])
    if beside.get("architecture") in list(by_name()):  # timm's key
        return str(beside["architecture"])
    published = {theirs: ours for family in FAMILIES for theirs, ours in family.published.items()}
    given, kind = beside.get("architectures"), beside.get("model_type")
    if isinstance(given, list) and given:
        for architecture in given:
            if isinstance(architecture, str) and architecture in published:
                return published[architecture]
        raise UserError(
            f"{described}: architectures={given} is no model of the zoo."
            f"{did_you_mean(str(given[0]), published)} It reads {_listed(published)}"
        )
    if isinstance(kind, str) and kind:
        # transformers begins the names of its classes with the model's type.
        begins = kind.replace("_", "").replace("-", "").lower()
        found = sorted({o for theirs, o in published.items() if theirs.lower().startswith(begins)})
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"{described} has no architectures, and model_type={kind!r} may be any of "
                f"{', '.join(found)}: name one, as in from_pretrained({found[0]!r}, "
                f"{str(file.parent)!r})"
            )
        raise UserError(
            f"{described}: model_type={kind!r} is no model of the zoo. It reads "
            f"{_listed(published)}"
        )
    raise UserError(
        f"nothing beside {file} says which model it is: {described.name} "
        f"{'has no architectures and no model_type' if beside else 'is missing'}. Name the model, "
        f"as in from_pretrained('resnet50', {str(file)!r})"
    )


def _listed(published: Mapping[str, str]) -> str:
    return ", ".join(sorted(published))


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
