"""``zoo.models.Whisper``; its weights are in the layout of Hugging Face's Whisper."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from zoo import fields
from zoo.errors import UserError, did_you_mean
from zoo.families import family
from zoo.models.whisper import Whisper
from zoo.weights.tables import (
    Entry,
    Table,
    copy_entry,
    linear_entries,
    norm_entries,
    renamed,
    stacked,
)
from zoo.weights.transforms import Transform

_CONV_OIW = Transform(lambda a: a.transpose(2, 1, 0)[None], lambda a: a[0].transpose(2, 1, 0))
"""PyTorch's kernels along one axis [out, in, width] to [1, width, in, out]."""


def whisper_table(
    num_encoder_layers: int, num_decoder_layers: int, *, scan_layers: bool = False
) -> Table:
    """Returns the table of a ``Whisper`` for ``WhisperForConditionalGeneration``.

    The output shares the vectors of tokens; files may have them a second time as
    ``proj_out.weight``.

    Args:
        num_encoder_layers: see the model.
        num_decoder_layers: see the model.
        scan_layers: see the model.
    """
    table = [
        Entry("model.encoder.embed_positions.weight", "encoder/positions"),
        Entry("model.decoder.embed_tokens.weight", "decoder/tokens/embedding"),
        Entry("model.decoder.embed_positions.weight", "decoder/positions/embedding"),
        copy_entry("proj_out.weight", "decoder/tokens/embedding"),
    ]
    for conv in ("conv1", "conv2"):
        theirs, ours = f"model.encoder.{conv}", f"encoder/{conv}"
        table += [
            Entry(f"{theirs}.weight", f"{ours}/kernel", _CONV_OIW),
            Entry(f"{theirs}.bias", f"{ours}/bias"),
        ]
    for stack, layers in (("encoder", num_encoder_layers), ("decoder", num_decoder_layers)):
        entries = norm_entries(f"model.{stack}.layer_norm", f"{stack}/norm")
        for layer in range(layers):
            theirs, ours = f"model.{stack}.layers.{layer}", f"{stack}/layer_{layer}"
            entries = [*entries, *_layer(theirs, ours, decoder=stack == "decoder")]
        table += stacked(entries, f"{stack}/layer_", f"{stack}/layers") if scan_layers else entries
    return table


def _layer(reference: str, ours: str, *, decoder: bool) -> Table:
    attentions = {"self_attn": ("self_attention", "norm1")}
    if decoder:
        attentions["encoder_attn"] = ("cross_attention", "norm2")
    table: list[Entry] = []
    for theirs, (attention, norm) in attentions.items():
        table += norm_entries(f"{reference}.{theirs}_layer_norm", f"{ours}/{norm}")
        for projection, name in (
            ("q_proj", "query"),
            ("k_proj", "key"),
            ("v_proj", "value"),
            ("out_proj", "out"),
        ):
            table += linear_entries(
                f"{reference}.{theirs}.{projection}",
                f"{ours}/{attention}/{name}",
                bias=name != "key",
            )
    return [
        *table,
        *norm_entries(f"{reference}.final_layer_norm", f"{ours}/norm3"),
        *linear_entries(f"{reference}.fc1", f"{ours}/up"),
        *linear_entries(f"{reference}.fc2", f"{ours}/down"),
    ]


def _table(module: Whisper, params: family.Params) -> Table:
    return whisper_table(
        module.num_encoder_layers, module.num_decoder_layers, scan_layers=module.scan_layers
    )


def _inner_table(module: Whisper, params: family.Params) -> Table:
    """The names of ``WhisperModel``, the model without its output."""
    return renamed(_table(module, params), r"^model\.", "")


# The attributes by the names in config.json. Both stacks have one number of heads, and one width of
# their feed-forward parts.
_SIZES = {
    "vocab_size": "vocab_size",
    "num_mel_bins": "num_mels",
    "d_model": "features",
    "encoder_layers": "num_encoder_layers",
    "decoder_layers": "num_decoder_layers",
    "encoder_attention_heads": "num_heads",
    "encoder_ffn_dim": "feedforward_features",
    "max_source_positions": "source_length",
    "max_target_positions": "max_length",
    "dropout": "dropout_rate",
    "attention_dropout": "attention_dropout_rate",
    "activation_dropout": "hidden_dropout_rate",
}
_SAME = {
    "decoder_attention_heads": "encoder_attention_heads",
    "decoder_ffn_dim": "encoder_ffn_dim",
}
# What would make another model of it.
_FIXED: Mapping[str, Any] = {
    "model_type": "whisper",
    "activation_function": "gelu",
    "is_encoder_decoder": True,
    "scale_embedding": False,
    "tie_word_embeddings": True,
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
}
# What does not change a model's outputs: where it comes from, how it was trained and is decoded,
# and what the reference returns besides.
_IGNORED = (
    "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version",
    "tokenizer_class", "finetuning_task", "id2label", "label2id", "num_labels", "problem_type",
    "task_specific_params", "init_std", "gradient_checkpointing", "torchscript", "use_bfloat16",
    "chunk_size_feed_forward", "output_attentions", "output_hidden_states", "return_dict",
    "use_cache", "num_hidden_layers", "names", "cross_attention_hidden_size",
    # Training.
    "encoder_layerdrop", "decoder_layerdrop", "apply_spec_augment", "mask_time_prob",
    "mask_time_length", "mask_time_min_masks", "mask_feature_prob", "mask_feature_length",
    "mask_feature_min_masks",
    # Another head.
    "use_weighted_layer_sum", "classifier_proj_size",
    # Decoding.
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id",
    "forced_bos_token_id", "forced_eos_token_id", "forced_decoder_ids", "suppress_tokens",
    "begin_suppress_tokens", "median_filter_width", "prefix", "max_length", "min_length",
    "max_new_tokens", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "num_return_sequences", "diversity_penalty", "length_penalty", "repetition_penalty",
    "exponential_decay_length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "bad_words_ids", "remove_invalid_values", "temperature", "top_k", "top_p", "typical_p",
    "output_scores", "return_dict_in_generate", "tie_encoder_decoder",
)  # fmt: skip


def _attributes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the module's attributes from the ``config.json`` of a Hugging Face Whisper.

    Raises:
        UserError: a key is unknown, or its value would make another model.
    """
    known = {*_SIZES, *_SAME, *_FIXED, *_IGNORED}
    for name in config:
        if name not in known:
            raise UserError(
                f"config.json: the key {name}={config[name]!r} is unknown to the zoo's Whisper, "
                f"and may change what it computes.{did_you_mean(name, known)}"
            )
    for name, value in _FIXED.items():
        if config.get(name, value) != value:
            raise UserError(
                f"config.json: {name}={config[name]!r}, the zoo's Whisper needs {value!r}"
            )
    # Keys that a file lacks have the reference's defaults, which are those of the module.
    usual = fields.defaults(Whisper)
    attributes = {ours: config.get(theirs, usual[ours]) for theirs, ours in _SIZES.items()}
    for name, other in _SAME.items():
        value = attributes[_SIZES[other]]
        if config.get(name, usual[_SIZES[other]]) != value:
            raise UserError(
                f"config.json: {name}={config.get(name, usual[_SIZES[other]])!r}, and {other} is "
                f"{value!r}: the zoo's Whisper needs both alike"
            )
    return attributes


# The tokens of the published vocabularies that end a text and begin one, by the vocabulary's size:
# for English alone, for many languages, and with Cantonese.
_END_AND_START = {51864: (50256, 50257), 51865: (50257, 50258), 51866: (50257, 50258)}


def _config(module: Whisper) -> dict[str, Any]:
    """Returns what ``config.json`` must have for ``WhisperForConditionalGeneration``."""
    sizes = {theirs: getattr(module, ours) for theirs, ours in _SIZES.items()}
    # Another vocabulary's tokens are its tokenizer's and generation_config.json's matter.
    end, start = _END_AND_START.get(module.vocab_size, (None, 0))
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        **{name: value for name, value in _FIXED.items() if name in _WRITTEN},
        **sizes,
        **{name: sizes[other] for name, other in _SAME.items()},
        "decoder_start_token_id": start,
        "eos_token_id": end,
        "bos_token_id": end,
        "pad_token_id": end,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    }


_WRITTEN = (
    "model_type", "activation_function", "is_encoder_decoder", "scale_embedding",
    "tie_word_embeddings",
)  # fmt: skip


def _size(
    features: int, layers: int, heads: int, vocab_size: int = 51865, num_mels: int = 80
) -> dict[str, int]:
    """Returns the attributes of a published model (table 1)."""
    return {
        "features": features,
        "num_encoder_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "feedforward_features": 4 * features,
        "vocab_size": vocab_size,
        "num_mels": num_mels,
    }


FAMILY = family.Family(
    module=Whisper,
    kind="speech_to_text",
    sizes={
        "whisper_tiny": {},
        "whisper_base": _size(512, 6, 8),
        "whisper_small": _size(768, 12, 12),
        "whisper_medium": _size(1024, 24, 16),
        "whisper_large_v3": _size(1280, 32, 20, vocab_size=51866, num_mels=128),
    },
    rules={
        "vocab_size": fields.at_least(1),
        "num_mels": fields.at_least(1),
        "features": fields.Rule(
            "an even number of at least 4", lambda value: value >= 4 and value % 2 == 0
        ),
        "num_encoder_layers": family.DEPTH,
        "num_decoder_layers": family.DEPTH,
        "num_heads": fields.at_least(1),
        "feedforward_features": fields.at_least(1),
        "source_length": fields.at_least(1),
        "max_length": fields.at_least(1),
        "dropout_rate": fields.FRACTION,
        "attention_dropout_rate": fields.FRACTION,
        "hidden_dropout_rate": fields.FRACTION,
    },
    example=lambda module: {
        "source": jnp.zeros((1, 2 * module.source_length, module.num_mels)),
        "target": jnp.zeros((1, 1), jnp.int32),
    },
    weights={"transformers": _table, "transformers, without the output": _inner_table},
    published={
        "WhisperForConditionalGeneration": "whisper_tiny",
        "WhisperModel": "whisper_tiny",
    },
    attributes_of=_attributes,
    config_of=_config,
    axes=(*family.ATTENTION_AXES, *family.HIDDEN_AXES, *family.EMBEDDING_AXES),
    check=lambda attributes: fields.check_divides(attributes, "num_heads", "features"),
)
