"""``zoo.models.T5`` and ``T5Encoder``; their weights in the layout of Hugging Face's T5."""

from collections.abc import Mapping
from typing import Any

from zoo import fields
from zoo.errors import UserError, did_you_mean
from zoo.families import family
from zoo.models.t5 import T5, T5Encoder
from zoo.weights.tables import (
    Entry,
    Table,
    buffer_entry,
    copy_entry,
    linear_entries,
    norm_entries,
    stacked,
)
from zoo.weights.transforms import LINEAR_TRANSPOSED

# The published decoders have no more layers. An encoder's record does not know how many there are.
_MOST_DECODER_LAYERS = 48
_EMBEDDINGS = "tokens/embedding"


def t5_table(
    num_encoder_layers: int,
    num_decoder_layers: int,
    *,
    gated: bool = False,
    tie_weights: bool = True,
    scan_layers: bool = False,
) -> Table:
    """Returns the table of a ``T5`` for ``T5ForConditionalGeneration``.

    Published files may have the vectors of tokens a second time for each stack and, if the weights
    are tied, for the output. Older ones have numbers of relative positions between the decoder and
    its source, which the model does not read.

    Args:
        num_encoder_layers: see the model.
        num_decoder_layers: see the model.
        gated: see the model.
        tie_weights: see the model.
        scan_layers: see the model.
    """
    if tie_weights:
        output = copy_entry("lm_head.weight", _EMBEDDINGS)
    else:
        output = Entry("lm_head.weight", "output/kernel", LINEAR_TRANSPOSED)
    unread = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    return [
        *t5_encoder_table(
            num_encoder_layers, gated=gated, scan_layers=scan_layers, num_decoder_layers=0
        ),
        copy_entry("decoder.embed_tokens.weight", _EMBEDDINGS),
        output,
        *_stack("decoder", num_decoder_layers, gated, scan_layers),
        buffer_entry(unread),
    ]


def t5_encoder_table(
    num_layers: int,
    *,
    gated: bool = False,
    scan_layers: bool = False,
    num_decoder_layers: int = _MOST_DECODER_LAYERS,
) -> Table:
    """Returns the table of a ``T5Encoder`` for ``T5EncoderModel``.

    Args:
        num_layers: see the model.
        gated: see the model.
        scan_layers: see the model.
        num_decoder_layers: the number of layers of a decoder that files may have beside the
            encoder; it is not read. 0: they have no decoder.
    """
    table = [
        Entry("shared.weight", _EMBEDDINGS),
        copy_entry("encoder.embed_tokens.weight", _EMBEDDINGS),
        *_stack("encoder", num_layers, gated, scan_layers),
    ]
    if num_decoder_layers:
        whole = t5_table(1, num_decoder_layers, gated=gated)
        beside = [e.reference for e in whole if e.reference.startswith(("decoder.", "lm_head."))]
        table += [buffer_entry(name) for name in beside]
    return table


def _stack(stack: str, num_layers: int, gated: bool, scan_layers: bool) -> Table:
    first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    table = [
        Entry(first, f"{stack}/relative_positions/embedding"),
        *norm_entries(f"{stack}.final_layer_norm", f"{stack}/norm", bias=False),
    ]
    parts = [
        "SelfAttention",
        *(["EncDecAttention"] if stack == "decoder" else []),
        "DenseReluDense",
    ]
    norms = {"SelfAttention": "norm1", "EncDecAttention": "norm2", "DenseReluDense": "norm3"}
    for number in range(num_layers):
        ours = f"{stack}/layer_{number}"
        for place, part in enumerate(parts):
            theirs = f"{stack}.block.{number}.layer.{place}"
            table += norm_entries(f"{theirs}.layer_norm", f"{ours}/{norms[part]}", bias=False)
            for name, path in _linears(part, gated).items():
                table += linear_entries(f"{theirs}.{part}.{name}", f"{ours}/{path}", bias=False)
    return stacked(table, f"{stack}/layer_", f"{stack}/layers") if scan_layers else table


def _linears(part: str, gated: bool) -> dict[str, str]:
    """Returns our path of each of the linear layers of a part, by the reference's name."""
    if part == "DenseReluDense":
        path = "feedforward"
        up = {"wi_0": f"{path}/gate", "wi_1": f"{path}/up"} if gated else {"wi": f"{path}/up"}
        return {**up, "wo": f"{path}/down"}
    path = "self_attention" if part == "SelfAttention" else "cross_attention"
    return {name[0]: f"{path}/{name}" for name in ("query", "key", "value", "out")}


def _table(module: T5, params: family.Params) -> Table:
    return t5_table(
        module.num_encoder_layers,
        module.num_decoder_layers,
        gated=module.gated,
        tie_weights=module.tie_weights,
        scan_layers=module.scan_layers,
    )


def _encoder_table(module: T5Encoder, params: family.Params) -> Table:
    return t5_encoder_table(module.num_layers, gated=module.gated, scan_layers=module.scan_layers)


# Attributes that both models have, by the name in config.json.
_SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "features",
    "num_heads": "num_heads",
    "d_kv": "head_features",
    "d_ff": "feedforward_features",
    "relative_attention_num_buckets": "num_buckets",
    "relative_attention_max_distance": "max_distance",
    "dropout_rate": "dropout_rate",
    "layer_norm_epsilon": "epsilon",
}
# The activation and whether there are gates, by the value of ``feed_forward_proj``.
_FEED_FORWARD = {
    "relu": ("relu", False),
    "gated-relu": ("relu", True),
    "gelu_new": ("gelu_tanh", False),
    "gated-gelu": ("gelu_tanh", True),  # the reference's own exception: not the exact one
    "silu": ("silu", False),
    "gated-silu": ("silu", True),
}
_THEIR_ACTIVATIONS = {"relu": "relu", "gelu_tanh": "gelu_new", "silu": "silu"}
# What would make another model of it.
_FIXED: Mapping[str, Any] = {
    "model_type": "t5",
    "is_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "pruned_heads": {},
}
_READ = (
    "num_layers",
    "num_decoder_layers",
    "feed_forward_proj",
    "dense_act_fn",
    "is_gated_act",
    "is_encoder_decoder",
    "tie_word_embeddings",
    "scale_decoder_outputs",
)
# What does not change a model's outputs: where it comes from, how it was trained and is decoded,
# and what the reference returns besides.
_IGNORED = (
    "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version",
    "tokenizer_class", "finetuning_task", "id2label", "label2id", "num_labels", "problem_type",
    "task_specific_params", "initializer_factor", "classifier_dropout", "gradient_checkpointing",
    "use_bfloat16", "torchscript", "tf_legacy_loss", "chunk_size_feed_forward", "n_positions",
    "output_attentions", "output_hidden_states", "output_past", "return_dict", "use_cache",
    # Decoding.
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id",
    "forced_bos_token_id", "forced_eos_token_id", "prefix", "max_length", "min_length",
    "max_new_tokens", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "num_return_sequences", "diversity_penalty", "length_penalty", "repetition_penalty",
    "exponential_decay_length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "remove_invalid_values",
    "temperature", "top_k", "top_p", "typical_p", "output_scores", "return_dict_in_generate",
)  # fmt: skip


def _common(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the attributes that both models have, from a ``config.json``.

    Raises:
        UserError: a key is unknown, or its value would make another model.
    """
    known = {*_SIZES, *_FIXED, *_READ, *_IGNORED}
    for name in config:
        if name not in known:
            raise UserError(
                f"config.json: the key {name}={config[name]!r} is unknown to the zoo's T5, and may "
                f"change what it computes.{did_you_mean(name, known)}"
            )
    for name, value in _FIXED.items():
        if config.get(name, value) != value:
            raise UserError(f"config.json: {name}={config[name]!r}, the zoo's T5 needs {value!r}")
    # Keys that a file lacks have the reference's defaults, which are ours, whatever the size.
    usual = fields.defaults(T5)
    projection = config.get("feed_forward_proj", "relu")
    if projection not in list(_FEED_FORWARD):  # it may be of any type
        raise UserError(
            f"config.json: feed_forward_proj={projection!r}, the zoo's T5 needs one of "
            f"{', '.join(map(repr, _FEED_FORWARD))}"
        )
    activation, gated = _FEED_FORWARD[projection]
    # The reference writes these two besides.
    for name, value in {
        "dense_act_fn": _THEIR_ACTIVATIONS[activation],
        "is_gated_act": gated,
    }.items():
        if config.get(name, value) != value:
            raise UserError(
                f"config.json: {name}={config[name]!r}, and feed_forward_proj={projection!r} is "
                f"{value!r}"
            )
    return {
        **{ours: config.get(theirs, usual[ours]) for theirs, ours in _SIZES.items()},
        "activation": activation,
        "gated": gated,
    }


def _attributes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the attributes of ``T5`` from the ``config.json`` of a Hugging Face T5."""
    common = _common(config)
    if config.get("is_encoder_decoder", True) is not True:
        raise UserError(
            f"config.json: is_encoder_decoder={config['is_encoder_decoder']!r}, the zoo's T5 needs "
            "True. Read an encoder with one of "
            f"{', '.join(map(repr, ENCODER.sizes))}"
        )
    layers = config.get("num_layers", T5.num_encoder_layers)
    decoder_layers = config.get("num_decoder_layers")
    # Version 1.1 is known by its output, which is not tied, and its logits, which are not scaled.
    # Since version 5 transformers writes ``tie_word_embeddings`` as true for both versions, and
    # whether the logits are scaled under a name of its own.
    tied = config.get("tie_word_embeddings") is not False
    scaled = config.get("scale_decoder_outputs", tied)
    return {
        **common,
        "num_encoder_layers": layers,
        "num_decoder_layers": layers if decoder_layers is None else decoder_layers,
        "tie_weights": tied and scaled,
        "scale_logits": scaled,
    }


def _encoder_attributes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the attributes of ``T5Encoder``, from the ``config.json`` of the whole model too."""
    return {**_common(config), "num_layers": config.get("num_layers", T5Encoder.num_layers)}


def _config(module: T5) -> dict[str, Any]:
    """Returns what ``config.json`` must have for ``T5ForConditionalGeneration``."""
    return {
        "architectures": ["T5ForConditionalGeneration"],
        **_common_config(module),
        "num_layers": module.num_encoder_layers,
        "num_decoder_layers": module.num_decoder_layers,
        "is_encoder_decoder": True,
        "tie_word_embeddings": module.tie_weights,
        "scale_decoder_outputs": module.scale_logits,
        "decoder_start_token_id": 0,
    }


def _encoder_config(module: T5Encoder) -> dict[str, Any]:
    """Returns what ``config.json`` must have for ``T5EncoderModel``."""
    return {
        "architectures": ["T5EncoderModel"],
        **_common_config(module),
        "num_layers": module.num_layers,
        "is_encoder_decoder": False,
    }


def _common_config(module: T5 | T5Encoder) -> dict[str, Any]:
    form = (module.activation, module.gated)
    (projection,) = (name for name, theirs in _FEED_FORWARD.items() if theirs == form)
    return {
        "model_type": "t5",
        **{theirs: getattr(module, ours) for theirs, ours in _SIZES.items()},
        "feed_forward_proj": projection,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


_RULES = {
    "vocab_size": fields.at_least(1),
    "features": fields.at_least(1),
    "num_heads": fields.at_least(1),
    "head_features": fields.at_least(1),
    "feedforward_features": fields.at_least(1),
    "num_buckets": fields.at_least(4),
    "max_distance": fields.at_least(2),
    "dropout_rate": fields.FRACTION,
    "epsilon": fields.ABOVE_ZERO,
    "activation": fields.choice(*_THEIR_ACTIVATIONS),
}
_AXES = (
    *family.ATTENTION_AXES,
    (r"(^|/)(gate|up)/kernel$", ("embed", "hidden")),
    *family.HIDDEN_AXES,
    *family.EMBEDDING_AXES,
)
_BASE = {"features": 768, "feedforward_features": 3072, "num_heads": 12}
_LARGE = {"features": 1024, "feedforward_features": 4096, "num_heads": 16}
# Version 1.1, and FLAN-T5.
_SMALL_1_1 = {
    "feedforward_features": 1024, "num_heads": 6, "activation": "gelu_tanh", "gated": True,
}  # fmt: skip
_BASE_1_1 = {
    "features": 768, "feedforward_features": 2048, "num_heads": 12, "activation": "gelu_tanh",
    "gated": True,
}  # fmt: skip
_OUTPUT_1_1 = {"tie_weights": False, "scale_logits": False}


def _check(attributes: Mapping[str, Any]) -> None:
    buckets, distance = attributes["num_buckets"], attributes["max_distance"]
    if distance <= buckets // 2:
        raise fields.ConfigError(
            f"model.max_distance={distance} must be more than half of model.num_buckets={buckets}"
        )


FAMILY = family.Family(
    module=T5,
    kind="encoder_decoder",
    sizes={
        "t5_small": {},
        "t5_base": {**_BASE, "num_encoder_layers": 12, "num_decoder_layers": 12},
        "t5_large": {**_LARGE, "num_encoder_layers": 24, "num_decoder_layers": 24},
        "t5_v1_1_small": {
            **_SMALL_1_1, **_OUTPUT_1_1, "num_encoder_layers": 8, "num_decoder_layers": 8,
        },
        "t5_v1_1_base": {
            **_BASE_1_1, **_OUTPUT_1_1, "num_encoder_layers": 12, "num_decoder_layers": 12,
        },
    },
    rules={
        **_RULES, "num_encoder_layers": family.DEPTH, "num_decoder_layers": family.DEPTH,
    },
    example=family.tokens("source", "target"),
    weights={"transformers": _table},
    published={
        "T5ForConditionalGeneration": "t5_small",
        "T5WithLMHeadModel": "t5_small",
    },
    attributes_of=_attributes,
    config_of=_config,
    axes=_AXES,
    check=_check,
)  # fmt: skip

ENCODER = family.Family(
    module=T5Encoder,
    kind="text_encoder",
    sizes={
        "t5_small_encoder": {},
        "t5_base_encoder": {**_BASE, "num_layers": 12},
        "t5_large_encoder": {**_LARGE, "num_layers": 24},
        "t5_v1_1_small_encoder": {**_SMALL_1_1, "num_layers": 8},
        "t5_v1_1_base_encoder": {**_BASE_1_1, "num_layers": 12},
    },
    rules={**_RULES, "num_layers": family.DEPTH},
    example=family.tokens("tokens"),
    weights={"transformers": _encoder_table},
    published={"T5EncoderModel": "t5_small_encoder"},
    attributes_of=_encoder_attributes,
    config_of=_encoder_config,
    axes=_AXES,
    check=_check,
)
