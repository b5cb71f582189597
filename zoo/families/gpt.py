"""``zoo.models.GPT``, and its weights in the layout of Hugging Face's ``GPT2LMHeadModel``."""

from collections.abc import Mapping
from typing import Any

from zoo import fields
from zoo.errors import UserError
from zoo.families import family
from zoo.models.gpt import GPT
from zoo.weights.tables import (
    Entry,
    Part,
    Table,
    buffer_entry,
    copy_entry,
    norm_entries,
    renamed,
    stacked,
    zeros_entry,
)


def gpt_table(num_layers: int, *, zero_biases_of: int = 0, scan_layers: bool = False) -> Table:
    """Returns the table of ``zoo.models.GPT`` for ``GPT2LMHeadModel``.

    The output of the model shares the weights of the token embedding; published files may have
    them a second time as ``lm_head.weight``, and older ones have the mask of each attention too.
    The reference's linear layers are [in, out] like the zoo's, and concatenate query, key and
    value.

    Args:
        num_layers: number of blocks.
        zero_biases_of: the width of a model without biases, to which the reference's biases of
            zero are equal; 0 for a model with biases.
        scan_layers: see ``zoo.models.GPT``.
    """
    width = zero_biases_of

    def biases(reference: str, ours: str, size: int, part: Part | None = None) -> Table:
        if width:
            return [] if part and part.index else [zeros_entry(reference, size)]
        return [Entry(reference, ours, part=part)]

    def norm(reference: str, ours: str) -> Table:
        scale = norm_entries(reference, ours, bias=False)
        return [*scale, *biases(f"{reference}.bias", f"{ours}/bias", width)]

    table = [
        Entry("transformer.wte.weight", "tokens/embedding"),
        Entry("transformer.wpe.weight", "positions/embedding"),
        copy_entry("lm_head.weight", "tokens/embedding"),
        *norm("transformer.ln_f", "ln_f"),
    ]
    for layer in range(num_layers):
        theirs, ours = f"transformer.h.{layer}", f"block_{layer}"
        table += norm(f"{theirs}.ln_1", f"{ours}/ln_1")
        for index, name in enumerate(("query", "key", "value")):
            path, attention = f"{ours}/attention/{name}", f"{theirs}.attn.c_attn"
            table.append(
                Entry(f"{attention}.weight", f"{path}/kernel", part=Part(index, 3, axis=1))
            )
            table += biases(f"{attention}.bias", f"{path}/bias", 3 * width, Part(index, 3))
        table += [buffer_entry(f"{theirs}.attn.{name}") for name in ("bias", "masked_bias")]
        table += norm(f"{theirs}.ln_2", f"{ours}/ln_2")
        # The attention's last layer has biases in every model.
        table += _linear(f"{theirs}.attn.c_proj", f"{ours}/attention/out")
        for reference, path, size in (("c_fc", "up", 4 * width), ("c_proj", "down", width)):
            table.append(Entry(f"{theirs}.mlp.{reference}.weight", f"{ours}/{path}/kernel"))
            table += biases(f"{theirs}.mlp.{reference}.bias", f"{ours}/{path}/bias", size)
    return stacked(table, "block_", "blocks") if scan_layers else table


def _linear(reference: str, ours: str) -> Table:
    return [
        Entry(f"{reference}.weight", f"{ours}/kernel"),
        Entry(f"{reference}.bias", f"{ours}/bias"),
    ]


def _table(module: GPT, params: family.Params) -> Table:
    return gpt_table(
        module.num_layers,
        zero_biases_of=0 if module.use_bias else module.features,
        scan_layers=module.scan_layers,
    )


def _hub_table(module: GPT, params: family.Params) -> Table:
    """The names of ``GPT2Model``, the model without its output, which the hub's files have."""
    return renamed(_table(module, params), r"^transformer\.", "")


def _config(module: GPT) -> dict[str, Any]:
    """Returns what ``config.json`` must have for ``GPT2LMHeadModel.from_pretrained``."""
    sizes = {theirs: getattr(module, ours) for theirs, ours in _SIZES.items()}
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), module.dropout_rate)
    # The reference's own tokens that begin and end a text are not in the run's vocabulary.
    tokens = {"bos_token_id": None, "eos_token_id": None}
    return {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **sizes, **_FIXED, **dropout,
        **tokens,
    }  # fmt: skip


_SIZES = {
    "vocab_size": "vocab_size",
    "n_positions": "context",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_embd": "features",
}
# Dropout is a matter of training, and the rest belongs to heads that the model does not have.
_IGNORED = (
    "attn_pdrop", "embd_pdrop", "n_ctx", "reorder_and_upcast_attn", "resid_pdrop",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
    "summary_use_proj",
)  # fmt: skip
_FIXED = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "n_inner": None,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "tie_word_embeddings": True,
}


def _attributes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the module's attributes from the ``config.json`` of a Hugging Face GPT-2."""
    kind = config.get("model_type", "gpt2")
    if kind != "gpt2":
        raise UserError(f"config.json: model_type={kind!r}, the zoo's GPT reads 'gpt2'")
    width = config.get("n_embd", GPT.features)
    inner = (None, 4 * width) if isinstance(width, int) else (None,)
    fixed = {key: (value,) for key, value in _FIXED.items()}
    fixed |= {"n_inner": inner, "add_cross_attention": (False,), "pruned_heads": ({},)}
    return family.read_config(config, sizes=_SIZES, fixed=fixed, ignored=_IGNORED)


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
    weights={"transformers": _table, "transformers, without the output": _hub_table},
    published={"GPT2LMHeadModel": "gpt", "GPT2Model": "gpt"},
    attributes_of=_attributes,
    config_of=_config,
    axes=(*family.ATTENTION_AXES, *family.HIDDEN_AXES, *family.EMBEDDING_AXES),
    check=lambda attributes: fields.check_divides(attributes, "num_heads", "features"),
)
