"""``zoo.models.GPT``, and its weights in the layout of Hugging Face's ``GPT2LMHeadModel``."""

from collections.abc import Mapping
from typing import Any

from zoo import fields
from zoo.errors import UserError
from zoo.families import family
from zoo.models.gpt import GPT
from zoo.weights.tables import Entry, Part, Table, norm_entries


def gpt_table(num_layers: int) -> Table:
    """Returns the table of ``zoo.models.GPT`` for ``GPT2LMHeadModel``.

    The model has biases, and its output shares the weights of the token embedding. The reference's
    linear layers are [in, out] like the zoo's, and concatenate query, key and value.

    Args:
        num_layers: number of blocks.
    """
    table = [
        Entry("transformer.wte.weight", "tokens/embedding"),
        Entry("transformer.wpe.weight", "positions/embedding"),
        *norm_entries("transformer.ln_f", "ln_f"),
    ]
    for layer in range(num_layers):
        theirs, ours = f"transformer.h.{layer}", f"block_{layer}"
        for index, name in enumerate(("query", "key", "value")):
            path = f"{ours}/attention/{name}"
            table += [
                Entry(
                    f"{theirs}.attn.c_attn.weight", f"{path}/kernel", part=Part(index, 3, axis=1)
                ),
                Entry(f"{theirs}.attn.c_attn.bias", f"{path}/bias", part=Part(index, 3)),
            ]
        for reference, path in (
            ("attn.c_proj", "attention/out"), ("mlp.c_fc", "up"), ("mlp.c_proj", "down"),
        ):  # fmt: skip
            table += [
                Entry(f"{theirs}.{reference}.weight", f"{ours}/{path}/kernel"),
                Entry(f"{theirs}.{reference}.bias", f"{ours}/{path}/bias"),
            ]
        table += norm_entries(f"{theirs}.ln_1", f"{ours}/ln_1")
        table += norm_entries(f"{theirs}.ln_2", f"{ours}/ln_2")
    return table


def _is_usual(config: Mapping[str, Any]) -> bool:
    return config["n_inner"] == 4 * config["n_embd"]


def _attributes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the module's attributes from the ``config.json`` of a Hugging Face GPT-2."""
    names = {
        "vocab_size": "vocab_size",
        "n_positions": "context",
        "n_layer": "num_layers",
        "n_head": "num_heads",
        "n_embd": "features",
    }
    fixed = {
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "n_inner": None,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
    }
    for name, value in fixed.items():
        if config.get(name, value) != value and not (name == "n_inner" and _is_usual(config)):
            raise UserError(f"config.json: {name}={config[name]!r}, the zoo's GPT needs {value!r}")
    return {ours: config[theirs] for theirs, ours in names.items() if theirs in config}


FAMILY = family.Family(
    module=GPT,
    kind="causal_lm",
    sizes={"gpt": {}},
    rules={
        "vocab_size": family.FROM_DATA,
        "context": fields.at_least(1),
        "num_layers": family.DEPTH,
        "num_heads": fields.at_least(1),
        "features": fields.at_least(1),
        "dropout_rate": fields.FRACTION,
    },
    example=family.tokens("tokens"),
    weights={"transformers": lambda module, params: gpt_table(module.num_layers)},
    attributes_of=_attributes,
    check=lambda attributes: fields.check_divides(attributes, "num_heads", "features"),
)
