"""``zoo.models.Llama``, and its weights in transformers' layout of Llama, Mistral and Qwen."""

from collections.abc import Mapping
from typing import Any

from zoo import fields
from zoo.errors import UserError, did_you_mean
from zoo.families import family
from zoo.layers import rotary
from zoo.models.llama import Llama
from zoo.weights.tables import (
    Entry,
    Table,
    buffer_entry,
    copy_entry,
    linear_entries,
    norm_entries,
    renamed,
    stacked,
)


def llama_table(module: Llama) -> Table:
    """Returns the table of a ``zoo.models.Llama`` for ``LlamaForCausalLM`` and its relatives.

    Tied files may have the output a second time as ``lm_head.weight``, and older ones the rates of
    the rotary positions.
    """
    table = [
        Entry("model.embed_tokens.weight", "tokens/embedding"),
        *norm_entries("model.norm", "norm", bias=False),
        buffer_entry("model.rotary_emb.inv_freq"),
    ]
    if module.tie_embeddings:
        table.append(copy_entry("lm_head.weight", "tokens/embedding"))
    else:
        table += linear_entries("lm_head", "head", bias=False)
    for layer in range(module.num_layers):
        theirs, ours = f"model.layers.{layer}", f"block_{layer}"
        attention, ours_attention = f"{theirs}.self_attn", f"{ours}/attention"
        table += norm_entries(f"{theirs}.input_layernorm", f"{ours}/attention_norm", bias=False)
        for reference, path, bias in (
            ("q_proj", "query", module.use_bias),
            ("k_proj", "key", module.use_bias),
            ("v_proj", "value", module.use_bias),
            ("o_proj", "out", module.use_out_bias),
        ):
            table += linear_entries(
                f"{attention}.{reference}", f"{ours_attention}/{path}", bias=bias
            )
        if module.use_query_key_norm:
            for reference, path in (("q_norm", "query_norm"), ("k_norm", "key_norm")):
                table += norm_entries(
                    f"{attention}.{reference}", f"{ours_attention}/{path}", bias=False
                )
        table.append(buffer_entry(f"{attention}.rotary_emb.inv_freq"))
        table += norm_entries(
            f"{theirs}.post_attention_layernorm", f"{ours}/feedforward_norm", bias=False
        )
        for path in ("gate", "up", "down"):
            table += linear_entries(
                f"{theirs}.mlp.{path}_proj", f"{ours}/{path}", bias=module.use_feedforward_bias
            )
    return stacked(table, "block_", "blocks") if module.scan_layers else table


def _table(module: Llama, params: family.Params) -> Table:
    return llama_table(module)


def _inner_table(module: Llama, params: family.Params) -> Table:
    """The names of ``LlamaModel``, the model without its output."""
    return renamed(llama_table(module), r"^model\.", "")


# What config.json and the module call the same number.
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "features",
    "intermediate_size": "feedforward_features",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
# By the reference's ``model_type``: its class, and what a config may leave out.
_KINDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"max_position_embeddings": 2048}),
    "mistral": (
        "MistralForCausalLM",
        {"max_position_embeddings": 131_072, "sliding_window": 4096, "num_key_value_heads": 8},
    ),
    "qwen2": (
        "Qwen2ForCausalLM", {"max_position_embeddings": 32_768, "num_key_value_heads": 32},
    ),
    "qwen3": (
        "Qwen3ForCausalLM",
        {"max_position_embeddings": 32_768, "num_key_value_heads": 32, "head_dim": 128},
    ),
}  # fmt: skip
# Keys that more than one of the classes reads, and those of a single one.
_READ = {
    "model_type", *_SIZES, "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps",
    "max_position_embeddings", "tie_word_embeddings", "attention_dropout", "rope_theta",
    "rope_scaling", "rope_parameters", "original_max_position_embeddings",
}  # fmt: skip
_OF_QWEN = {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"}
_OF_KIND: Mapping[str, set[str]] = {
    "llama": {"attention_bias", "mlp_bias"},
    "mistral": {"sliding_window"},
    "qwen2": _OF_QWEN,
    "qwen3": {*_OF_QWEN, "attention_bias"},
}
# Keys that change nothing if they have one of these values. Null is one of them for every key.
_USUAL: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "attention_bias": (False,),
    "chunk_size_feed_forward": (0,),
    "is_encoder_decoder": (False,),
    "layer_types": (),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1, 1.0),
    "pruned_heads": ({},),
    "rope_interleaved": (False,),
    "rope_mscale": (1, 1.0),
    "sliding_window": (),
    "tie_encoder_decoder": (False,),
    "use_mrope": (False,),
    "use_sliding_window": (False,),
}
# Keys that change no logits: what a tokenizer, a trainer or a text generator reads, how the library
# computes (``pretraining_tp`` divides products and adds them up again), and labels of other heads.
_IGNORED = {
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path",
    "architectures", "attn_implementation", "auto_map", "bad_words_ids", "begin_suppress_tokens",
    "bos_token_id", "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty",
    "do_sample", "dtype", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
    "forced_eos_token_id", "id2label", "initializer_range", "is_decoder", "label2id",
    "length_penalty",
    "max_length", "max_sequence_length", "max_window_layers", "min_length",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_scores", "pad_token_id", "prefix",
    "pretraining_tp", "problem_type", "remove_invalid_values", "repetition_penalty", "return_dict",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params",
    "temperature", "tf_legacy_loss", "tokenizer_class", "tokenizer_model_max_length",
    "tokenizer_padding_side", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "typical_p", "unk_token_id", "use_bfloat16", "use_cache",
}  # fmt: skip


def _attributes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the module's attributes from the ``config.json`` of one of the references."""
    kind = config.get("model_type", "llama")
    if kind not in _KINDS:
        raise UserError(
            f"config.json: model_type={kind!r}, the zoo's Llama reads "
            f"{', '.join(map(repr, _KINDS))}.{did_you_mean(str(kind), _KINDS)}"
        )
    _check_keys(kind, {name: value for name, value in config.items() if value is not None})
    # Null is not the usual: a window of null is none, where an absent one has 4096 tokens.
    given = {**_KINDS[kind][1], **config}
    given = {name: value for name, value in given.items() if value is not None}
    needed = (*_SIZES, "max_position_embeddings")
    if lacking := [name for name in needed if name not in given]:
        raise UserError(f"config.json lacks {', '.join(lacking)}")
    for name in (*needed, "num_key_value_heads", "head_dim", "sliding_window"):
        if type(given.get(name, 0)) is not int:
            raise UserError(f"config.json: {name}={given[name]!r} must be a whole number")
    attributes = {ours: given[theirs] for theirs, ours in _SIZES.items()}
    act = given.get("hidden_act", "silu")
    if act not in _ACTIVATIONS:
        raise UserError(
            f"config.json: hidden_act={act!r} must be one of {', '.join(map(repr, _ACTIVATIONS))}"
        )
    bias = bool(given.get("attention_bias", False))
    return {
        **attributes,
        "num_key_value_heads": given.get("num_key_value_heads", attributes["num_heads"]),
        "head_features": given.get("head_dim", 0),
        "activation": _ACTIVATIONS[act],
        "epsilon": float(given.get("rms_norm_eps", 1e-6)),
        "use_bias": kind == "qwen2" or bias,
        "use_out_bias": bias,
        "use_feedforward_bias": bool(given.get("mlp_bias", False)),
        "use_query_key_norm": kind == "qwen3",
        "windows": _windows(kind, given),
        "tie_embeddings": bool(given.get("tie_word_embeddings", False)),
        "attention_dropout_rate": float(given.get("attention_dropout", 0.0)),
        **_rope_attributes(given),
    }


def _check_keys(kind: str, given: Mapping[str, Any]) -> None:
    """Refuses keys that may change what is computed, all of them together."""
    read = _READ | _OF_KIND[kind]
    wrong = []
    for name, value in given.items():
        if name in read or name in _IGNORED:
            continue
        if name not in _USUAL:
            wrong.append(f"{name}={value!r} is not known")
        elif name == "layer_types" and set(value) == {"full_attention"}:
            continue
        elif value not in _USUAL[name]:
            wrong.append(f"{name}={value!r} is not supported for model_type={kind!r}")
    if wrong:
        raise UserError(
            "config.json: "
            + "; ".join(wrong)
            + ". The zoo's Llama cannot tell that its results would be right; remove a key if it "
            "does not change what the model computes"
        )


def _windows(kind: str, given: Mapping[str, Any]) -> tuple[int, ...]:
    window = given.get("sliding_window", 0)
    if kind == "llama" or (kind != "mistral" and not given.get("use_sliding_window", False)):
        window = 0
    if kind == "mistral" or not window:
        _check_no_window(given, window)
        return (int(window),)
    layers = given["num_hidden_layers"]
    full = given.get("max_window_layers", 28)
    types = given.get("layer_types") or [
        "full_attention" if layer < full else "sliding_attention" for layer in range(layers)
    ]
    strange = set(types) - {"full_attention", "sliding_attention"}
    if strange or len(types) != layers:
        raise UserError(
            f"config.json: layer_types must name 'full_attention' or 'sliding_attention' for each "
            f"of the {layers} layers, not {types!r}"
        )
    windows = tuple(window if name == "sliding_attention" else 0 for name in types)
    return windows if len(set(windows)) > 1 else windows[:1]


def _check_no_window(given: Mapping[str, Any], window: int) -> None:
    if not window and "sliding_attention" in (given.get("layer_types") or ()):
        raise UserError(
            "config.json: layer_types has 'sliding_attention', which needs sliding_window and "
            "use_sliding_window=true"
        )


# The keys of each kind of scaling, besides its name and base.
_SCALING_KEYS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ),
    "yarn": (
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
        "mscale", "mscale_all_dim", "truncate",
    ),
}  # fmt: skip


def _rope_attributes(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the attributes of rotary positions, and the context that goes with them.

    New configs have all in ``rope_parameters``, older ones ``rope_theta`` and ``rope_scaling``,
    whose kind was ``type`` before it was ``rope_type``.
    """
    where = "rope_scaling" if given.get("rope_scaling") else "rope_parameters"
    found = given.get(where, {})
    if not isinstance(found, Mapping):
        raise UserError(f"config.json: {where}={found!r} must be an object")
    rope = {name: value for name, value in found.items() if value is not None}
    longest = given["max_position_embeddings"]
    if rope.pop("partial_rotary_factor", 1) != 1:
        raise UserError(f"config.json: {where}: partial_rotary_factor must be 1")
    # Configs that were saved by some versions have both spellings of the kind.
    kinds = {str(rope.pop(name)) for name in ("rope_type", "type") if name in rope}
    base = rope.pop("rope_theta", given.get("rope_theta", 10_000.0))
    name = " and ".join(sorted(kinds)) or "default"
    if name not in _SCALING_KEYS:
        raise UserError(
            f"config.json: {where} is of the kind {name!r}, which must be one of "
            f"{', '.join(map(repr, _SCALING_KEYS))}"
        )
    for key, value in {"rope_theta": base, **rope}.items():
        if not isinstance(value, int | float):
            raise UserError(f"config.json: {where}: {key}={value!r} must be a number")
    if strange := sorted(set(rope) - set(_SCALING_KEYS[name])):
        raise UserError(f"config.json: {where} of the kind {name!r} has unknown keys {strange}")
    original = given.get(
        "original_max_position_embeddings", rope.get("original_max_position_embeddings", longest)
    )
    made: dict[str, Any] = {"context": longest, "rope_base": float(base), "rope_scaling": name}
    if name == "default":
        return made
    if "factor" not in rope and name == "yarn":
        rope["factor"] = longest / original
    needed = [key for key in _SCALING_KEYS[name][:3] if key not in rope and name != "yarn"]
    if needed:
        raise UserError(f"config.json: {where} of the kind {name!r} lacks {', '.join(needed)}")
    factor = float(rope["factor"])
    made |= {"rope_factor": factor}
    if name in ("linear", "dynamic"):
        # Their config names the length before they stretch it.
        return {**made, "rope_original_context": longest, "context": round(longest * factor)}
    made["rope_original_context"] = original
    if name == "llama3":
        rotations = (float(rope["low_freq_factor"]), float(rope["high_freq_factor"]))
        return {**made, "rope_rotations": rotations}
    return {
        **made,
        # Some configs keep the length before.
        "context": max(longest, round(original * factor)),
        # The library takes 0 for an absent number.
        "rope_rotations": (float(rope.get("beta_slow") or 1), float(rope.get("beta_fast") or 32)),
        "rope_attention_factor": _yarn_factor(rope, factor),
        "rope_truncate": bool(rope.get("truncate", True)),
    }


def _yarn_factor(rope: Mapping[str, Any], factor: float) -> float:
    """Returns what the sines are multiplied by; 0 for the usual."""
    if "attention_factor" in rope:
        return float(rope["attention_factor"])
    every, rest = rope.get("mscale"), rope.get("mscale_all_dim")
    if every and rest:
        return rotary.yarn_magnitude(factor, every) / rotary.yarn_magnitude(factor, rest)
    return 0.0


def _config(module: Llama) -> dict[str, Any]:
    """Returns what ``config.json`` must have for the reference that has the module's attributes."""
    kind = _kind(module)
    head = module.head_features or module.features // module.num_heads
    names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    if module.activation not in names:
        raise UserError(
            f"activation={module.activation!r}: transformers' classes know "
            f"{', '.join(map(repr, names))}"
        )
    made = {
        "architectures": [_KINDS[kind][0]],
        "model_type": kind,
        **{theirs: getattr(module, ours) for theirs, ours in _SIZES.items()},
        "num_key_value_heads": module.num_key_value_heads,
        "hidden_act": names[module.activation],
        "rms_norm_eps": module.epsilon,
        "tie_word_embeddings": module.tie_embeddings,
        "attention_dropout": module.attention_dropout_rate,
        **_rope_config(module),
        # The reference's own tokens that begin and end a text are not in the run's vocabulary.
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if kind != "qwen2" or head * module.num_heads != module.features:
        made["head_dim"] = head
    if kind in ("llama", "qwen3"):
        made["attention_bias"] = module.use_out_bias
    if kind == "llama":
        made["mlp_bias"] = module.use_feedforward_bias
    windows = [module.windows[i % len(module.windows)] for i in range(module.num_layers)]
    if kind == "mistral":
        made["sliding_window"] = windows[0]
    elif any(windows):
        made |= {
            "use_sliding_window": True,
            "sliding_window": max(windows),
            "layer_types": ["sliding_attention" if w else "full_attention" for w in windows],
        }
    return made


def _kind(module: Llama) -> str:
    """Returns the reference's ``model_type`` that has a module's attributes."""
    windows = set((module.windows * module.num_layers)[: module.num_layers])
    biases = (module.use_bias, module.use_out_bias, module.use_feedforward_bias)
    alike, none = biases[0] == biases[1], not any(biases)
    if module.use_query_key_norm and alike and not biases[2] and len(windows - {0}) < 2:
        return "qwen3"
    if not module.use_query_key_norm:
        if biases == (True, False, False) and len(windows - {0}) < 2:
            return "qwen2"
        if none and len(windows) == 1 and windows != {0}:
            return "mistral"
        if alike and windows == {0}:
            return "llama"
    raise UserError(
        "no class of transformers has use_bias, use_out_bias and use_feedforward_bias="
        f"{biases} with use_query_key_norm={module.use_query_key_norm} and "
        f"windows={module.windows}: Llama, Mistral, Qwen2 and Qwen3 have other combinations"
    )


def _rope_config(module: Llama) -> dict[str, Any]:
    """Returns the rotary positions in the old spelling, which all versions read."""
    name, slow, fast = module.rope_scaling, *module.rope_rotations
    made: dict[str, Any] = {
        "max_position_embeddings": module.context,
        "rope_theta": module.rope_base,
        "rope_scaling": None,
    }
    if name == "default":
        return made
    scaling: dict[str, Any] = {"rope_type": name, "factor": module.rope_factor}
    if name in ("linear", "dynamic"):
        made["max_position_embeddings"] = module.rope_original_context
        return {**made, "rope_scaling": scaling}
    scaling["original_max_position_embeddings"] = module.rope_original_context
    if name == "llama3":
        scaling |= {"low_freq_factor": slow, "high_freq_factor": fast}
    else:
        scaling |= {"beta_slow": slow, "beta_fast": fast, "truncate": module.rope_truncate}
        if module.rope_attention_factor:
            scaling["attention_factor"] = module.rope_attention_factor
    return {**made, "rope_scaling": scaling}


_LLAMA2 = {
    "vocab_size": 32_000, "context": 4096, "tie_embeddings": False, "rope_base": 10_000.0,
    "rope_scaling": "default",
}  # fmt: skip
_LLAMA3 = {"tie_embeddings": False, "rope_factor": 8.0}
_QWEN2 = {
    "vocab_size": 151_936, "context": 131_072, "epsilon": 1e-6, "use_bias": True,
    "rope_base": 1_000_000.0, "rope_scaling": "default",
}  # fmt: skip
_QWEN3 = {**_QWEN2, "context": 40_960, "use_bias": False, "use_query_key_norm": True}
_OF_7B = {"num_layers": 32, "features": 4096, "num_key_value_heads": 32}
_OF_8B = {**_OF_7B, "num_key_value_heads": 8, "feedforward_features": 14_336}
_OF_70B = {
    "num_layers": 80, "num_heads": 64, "num_key_value_heads": 8, "features": 8192,
    "feedforward_features": 28_672,
}  # fmt: skip


def _check(attributes: Mapping[str, Any]) -> None:
    fields.check_divides(attributes, "num_key_value_heads", "num_heads")
    head = attributes["head_features"]
    if not head:
        fields.check_divides(attributes, "num_heads", "features")
        head = attributes["features"] // attributes["num_heads"]
    if head % 2:
        raise fields.ConfigError(
            f"model.head_features={attributes['head_features']}: the width of a head, which is "
            f"{head}, must be even, as rotary positions turn pairs"
        )
    if attributes["scan_layers"] and len(set(attributes["windows"])) > 1:
        raise fields.ConfigError(
            f"model.windows={attributes['windows']!r} differ, and model.scan_layers=True needs "
            "layers that are alike: take model.scan_layers=False"
        )


_ABOVE_ONE = fields.Rule("above 1", lambda value: value > 1)
_WINDOWS = fields.Rule(
    "numbers, each at least 0", lambda values: len(values) > 0 and min(values) >= 0
)
_ROTATIONS = fields.Rule(
    "two numbers above 0, the smaller first",
    lambda values: len(values) == 2 and 0 < values[0] < values[1],
)

FAMILY = family.Family(
    module=Llama,
    kind="causal_lm",
    sizes={
        "llama_1b": {},
        "llama_3b": {"num_layers": 28, "num_heads": 24, "features": 3072},
        "llama_8b": {**_LLAMA3, **_OF_8B},
        "llama_70b": {**_LLAMA3, **_OF_70B},
        "llama2_7b": {**_LLAMA2, **_OF_7B, "feedforward_features": 11_008},
        "llama2_70b": {**_LLAMA2, **_OF_70B},
        "mistral_7b": {**_LLAMA2, **_OF_8B, "context": 32_768, "windows": (4096,)},
        "qwen2_0_5b": {
            **_QWEN2, "num_layers": 24, "num_heads": 14, "num_key_value_heads": 2, "features": 896,
            "feedforward_features": 4864,
        },
        "qwen2_7b": {
            **_QWEN2, "vocab_size": 152_064, "num_layers": 28, "num_heads": 28,
            "num_key_value_heads": 4, "features": 3584, "feedforward_features": 18_944,
            "tie_embeddings": False,
        },
        "qwen3_0_6b": {
            **_QWEN3, "num_layers": 28, "num_heads": 16, "features": 1024, "head_features": 128,
            "feedforward_features": 3072,
        },
        "qwen3_8b": {
            **_QWEN3, "num_layers": 36, "features": 4096, "head_features": 128,
            "feedforward_features": 12_288, "tie_embeddings": False,
        },
    },
    rules={
        "vocab_size": family.FROM_DATA,
        "context": fields.at_least(1),
        "num_layers": family.DEPTH,
        "num_heads": fields.at_least(1),
        "num_key_value_heads": fields.at_least(1),
        "features": fields.at_least(1),
        "head_features": fields.at_least(0),
        "feedforward_features": fields.at_least(1),
        "activation": family.ACTIVATION,
        "epsilon": fields.ABOVE_ZERO,
        "windows": _WINDOWS,
        "rope_base": _ABOVE_ONE,
        "rope_scaling": fields.choice(*rotary.SCALINGS),
        "rope_factor": fields.ABOVE_ZERO,
        "rope_original_context": fields.at_least(1),
        "rope_rotations": _ROTATIONS,
        "rope_attention_factor": fields.at_least(0),
        "attention_dropout_rate": fields.FRACTION,
    },
    example=family.tokens("tokens"),
    weights={"transformers": _table, "transformers, without the output": _inner_table},
    published={
        "LlamaForCausalLM": "llama_1b",
        "LlamaModel": "llama_1b",
        "MistralForCausalLM": "mistral_7b",
        "MistralModel": "mistral_7b",
        "Qwen2ForCausalLM": "qwen2_0_5b",
        "Qwen2Model": "qwen2_0_5b",
        "Qwen3ForCausalLM": "qwen3_0_6b",
        "Qwen3Model": "qwen3_0_6b",
    },
    attributes_of=_attributes,
    config_of=_config,
    axes=(
        *family.ATTENTION_AXES,
        (r"(^|/)gate/kernel$", ("embed", "hidden")),
        (r"(^|/)gate/bias$", ("hidden",)),
        *family.HIDDEN_AXES,
        *family.EMBEDDING_AXES,
    ),
    check=_check,
)  # fmt: skip
