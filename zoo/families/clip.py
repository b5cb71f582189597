"""``zoo.models.CLIP`` and its towers, and their weights in the layouts of Hugging Face's models."""

from collections.abc import Mapping
from typing import Any

from zoo import fields
from zoo.errors import UserError
from zoo.families import family
from zoo.models.clip import CLIP, CLIPText, CLIPVision
from zoo.weights.tables import (
    Entry,
    Table,
    buffer_entry,
    conv_entries,
    linear_entries,
    norm_entries,
    prefixed,
    renamed,
    stacked,
)

# Of a tower that is left out of the file of a pair, so many layers are known by name. The largest
# tower that is published has 48.
_LEFT_OUT_LAYERS = 64


def clip_table(text: Table, vision: Table) -> Table:
    """Returns the table of ``zoo.models.CLIP`` for ``CLIPModel``.

    Args:
        text: the table of its text tower, with the projection.
        vision: the table of its image tower, with the projection.
    """
    return [
        *prefixed(text, "", "text/"),
        *prefixed(vision, "", "vision/"),
        Entry("logit_scale", "logit_scale"),
    ]


def clip_text_table(num_layers: int, *, projection: bool, scan_layers: bool = False) -> Table:
    """Returns the table of ``zoo.models.CLIPText`` for ``CLIPTextModelWithProjection``.

    ``CLIPTextModel`` is written with these names too, since every version of transformers reads
    them. Older files also have the numbers of the positions.

    Args:
        num_layers: number of blocks.
        projection: whether there is a projection.
        scan_layers: see ``zoo.models.clip.Encoder``.
    """
    table = [
        Entry("text_model.embeddings.token_embedding.weight", "tokens/embedding"),
        Entry("text_model.embeddings.position_embedding.weight", "positions/embedding"),
        buffer_entry("text_model.embeddings.position_ids"),
        *norm_entries("text_model.final_layer_norm", "ln"),
        *_encoder_table("text_model.encoder", num_layers, scan_layers),
    ]
    if projection:
        table += linear_entries("text_projection", "projection", bias=False)
    return table


def clip_vision_table(num_layers: int, *, projection: bool, scan_layers: bool = False) -> Table:
    """Returns the table of ``zoo.models.CLIPVision`` for ``CLIPVisionModelWithProjection``.

    See ``clip_text_table``.

    Args:
        num_layers: number of blocks.
        projection: whether there is a projection.
        scan_layers: see ``zoo.models.clip.Encoder``.
    """
    table = [
        Entry("vision_model.embeddings.class_embedding", "class_token"),
        *conv_entries("vision_model.embeddings.patch_embedding", "patches", bias=False),
        Entry("vision_model.embeddings.position_embedding.weight", "positions"),
        buffer_entry("vision_model.embeddings.position_ids"),
        # The reference spells it so.
        *norm_entries("vision_model.pre_layrnorm", "ln_before"),
        *norm_entries("vision_model.post_layernorm", "ln_after"),
        *_encoder_table("vision_model.encoder", num_layers, scan_layers),
    ]
    if projection:
        table += linear_entries("visual_projection", "projection", bias=False)
    return table


def _encoder_table(reference: str, num_layers: int, scan_layers: bool) -> Table:
    table: list[Entry] = []
    for layer in range(num_layers):
        theirs, ours = f"{reference}.layers.{layer}", f"encoder/block_{layer}"
        for name, path in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out")):
            table += linear_entries(f"{theirs}.self_attn.{name}_proj", f"{ours}/attention/{path}")
        table += norm_entries(f"{theirs}.layer_norm1", f"{ours}/ln_1")
        table += norm_entries(f"{theirs}.layer_norm2", f"{ours}/ln_2")
        table += linear_entries(f"{theirs}.mlp.fc1", f"{ours}/up")
        table += linear_entries(f"{theirs}.mlp.fc2", f"{ours}/down")
    return stacked(table, "encoder/block_", "encoder/blocks") if scan_layers else table


def of_pair(tower: Table, other: Table) -> Table:
    """Returns the table of one tower for the file of a pair, whose rest is not read.

    Args:
        tower: the tower's table. Where it has no projection, that of the file is not read either.
        other: a table of the other tower, which may have more layers than the file.
    """
    known = {entry.reference for entry in tower}
    rest = {entry.reference for entry in other}
    rest |= {"text_projection.weight", "visual_projection.weight", "logit_scale"}
    return [*tower, *(buffer_entry(name) for name in sorted(rest - known))]


def _text_table(module: CLIPText, params: family.Params) -> Table:
    return clip_text_table(
        module.num_layers,
        projection=module.projection_features > 0,
        scan_layers=module.scan_layers,
    )


def _vision_table(module: CLIPVision, params: family.Params) -> Table:
    return clip_vision_table(
        module.num_layers,
        projection=module.projection_features > 0,
        scan_layers=module.scan_layers,
    )


def _pair_table(module: CLIP, params: family.Params) -> Table:
    scan = module.scan_layers
    return clip_table(
        clip_text_table(module.text_layers, projection=True, scan_layers=scan),
        clip_vision_table(module.vision_layers, projection=True, scan_layers=scan),
    )


def _text_of_pair_table(module: CLIPText, params: family.Params) -> Table:
    other = clip_vision_table(_LEFT_OUT_LAYERS, projection=True)
    return of_pair(_text_table(module, params), other)


def _vision_of_pair_table(module: CLIPVision, params: family.Params) -> Table:
    other = clip_text_table(_LEFT_OUT_LAYERS, projection=True)
    return of_pair(_vision_table(module, params), other)


# Keys of the sections of ``config.json``, with the attributes of the towers.
_SHARED = {
    "hidden_size": "features",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "feedforward_features",
    "projection_dim": "projection_features",
    "hidden_act": "activation",
    "layer_norm_eps": "epsilon",
    "attention_dropout": "attention_dropout_rate",
}
_TEXT = _SHARED | {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context",
    "eos_token_id": "end_token",
}
_VISION = _SHARED | {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "num_channels": "channels",
}
# The names that transformers has for the activations; the first of each is written.
_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# Keys that would change what is computed, with the values at which they do not.
_FIXED: dict[str, Any] = {
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
}
# Keys that change nothing.
_IGNORED = frozenset({
    # Where a file comes from, and the type of its numbers; `names` is the zoo's own.
    "_name_or_path", "_commit_hash", "_attn_implementation_autoset", "architectures",
    "model_type", "names", "transformers_version", "dtype", "torch_dtype", "torchscript",
    "use_bfloat16", "tokenizer_class", "prefix",
    # How a new model's weights begin, and a share that no version of the reference drops.
    "initializer_factor", "initializer_range", "logit_scale_init_value", "dropout",
    # Special tokens that the model does not look for; the end of a text is known beside these.
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id",
    # What transformers returns, and how it computes it.
    "return_dict", "output_attentions", "output_hidden_states", "output_scores",
    "return_dict_in_generate", "use_cache", "chunk_size_feed_forward", "gradient_checkpointing",
    # Outputs that these models do not have.
    "tie_word_embeddings", "tie_encoder_decoder", "tf_legacy_loss", "finetuning_task",
    "task_specific_params", "problem_type", "id2label", "label2id", "num_labels",
    # How texts are generated.
    "bad_words_ids", "begin_suppress_tokens", "suppress_tokens", "diversity_penalty",
    "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
    "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups",
    "num_beams", "num_return_sequences", "remove_invalid_values", "repetition_penalty",
    "temperature", "top_k", "top_p", "typical_p",
})  # fmt: skip


def _section(config: Mapping[str, Any], tower: str) -> tuple[str, Mapping[str, Any]]:
    """Returns a tower's part of ``config.json``, with the beginning of its keys for messages.

    Where a file has two spellings, the older one counts, as it does for ``CLIPConfig``.
    """
    for name in (f"{tower}_config_dict", f"{tower}_config"):
        if isinstance(config.get(name), Mapping):
            return f"{name}.", config[name]
        if config.get(name) is not None:
            raise UserError(f"config.json: {name}={config[name]!r} must be a JSON object")
    return f"{tower}_config.", {}


def _check_keys(where: str, section: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for key, value in section.items():
        if key in _FIXED:
            if value != _FIXED[key]:
                raise UserError(
                    f"config.json: {where}{key}={value!r}, the zoo's CLIP needs {_FIXED[key]!r}"
                )
        elif key not in known and key not in _IGNORED:
            raise UserError(
                f"config.json: {where}{key}={value!r} is unknown, and may change what the model "
                "computes. If it does not, remove the key"
            )


def _tower(
    where: str, section: Mapping[str, Any], names: Mapping[str, str], module: type[Any]
) -> dict[str, Any]:
    """Returns the attributes of a tower with a projection, from its part of ``config.json``."""
    _check_keys(where, section, names)
    # The defaults of the reference are the towers' own, except for the projection.
    defaults = fields.defaults(module) | {"projection_features": CLIP.projection_features}
    made = {ours: section.get(theirs, defaults[ours]) for theirs, ours in names.items()}
    known = _ACTIVATIONS.get(str(made["activation"]))
    if known is None:
        raise UserError(
            f"config.json: {where}hidden_act={made['activation']!r}, the zoo's CLIP has "
            f"{', '.join(map(repr, _ACTIVATIONS))}"
        )
    return made | {"activation": known}


def _alone(
    config: Mapping[str, Any], tower: str, names: Mapping[str, str], module: type[Any]
) -> dict[str, Any]:
    """Returns the attributes of a tower from a file of its own, or from that of a pair.

    It has a projection if the file says that its model has one. The file of a pair does not, and
    there it has none, as ``CLIPTextModel`` has none if it opens that file.
    """
    own = f"clip_{tower}_model"
    kind = config.get("model_type", own)
    if kind not in (own, "clip"):
        raise UserError(
            f"config.json: model_type={kind!r}, the zoo's {module.__name__} reads {own!r} and "
            "'clip'"
        )
    where, section = _section(config, tower) if kind == "clip" else ("", config)
    made = _tower(where, section, names, module)
    if f"CLIP{tower.title()}ModelWithProjection" not in (config.get("architectures") or []):
        made["projection_features"] = 0
    return made


def _text_attributes(config: Mapping[str, Any]) -> dict[str, Any]:
    return _alone(config, "text", _TEXT, CLIPText)


def _vision_attributes(config: Mapping[str, Any]) -> dict[str, Any]:
    return _alone(config, "vision", _VISION, CLIPVision)


def _pair_attributes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the attributes of ``CLIP`` from the ``config.json`` of a ``CLIPModel``."""
    kind = config.get("model_type", "clip")
    if kind != "clip":
        raise UserError(f"config.json: model_type={kind!r}, the zoo's CLIP reads 'clip'")
    sections = ("text_config", "vision_config", "text_config_dict", "vision_config_dict")
    _check_keys("", config, dict.fromkeys(("projection_dim", *sections)))
    text = _in_pair("text", _tower(*_section(config, "text"), _TEXT, CLIPText))
    vision = _in_pair("vision", _tower(*_section(config, "vision"), _VISION, CLIPVision))
    # Not read: the projections of a pair are as wide as the pair says.
    text["projection_features"] = vision["projection_features"] = config.get(
        "projection_dim", CLIP.projection_features
    )
    for name in sorted(text.keys() & vision.keys()):
        if text[name] != vision[name]:
            raise UserError(
                f"config.json: {name} is {text[name]!r} for texts and {vision[name]!r} for images, "
                "the zoo's CLIP has one for both"
            )
    return text | vision


def _in_pair(tower: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tower's attributes by their names in ``CLIP``."""
    return {_name_in_pair(tower, name): value for name, value in attributes.items()}


def _name_in_pair(tower: str, name: str) -> str:
    sizes = ("features", "num_layers", "num_heads", "feedforward_features")
    return f"{tower}_{name.removeprefix('num_')}" if name in sizes else name


def _written(tower: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tower's part of ``config.json`` from its attributes."""
    activations = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    written = {
        theirs: attributes[ours]
        for theirs, ours in (_TEXT if tower == "text" else _VISION).items()
        # Without a projection its width has no meaning.
        if attributes[ours] or ours != "projection_features"
    }
    # The reference's own tokens that begin and fill up a text may not be in the vocabulary.
    tokens = {"bos_token_id": None, "pad_token_id": None} if tower == "text" else {}
    activation = activations[attributes["activation"]]
    return {"model_type": f"clip_{tower}_model", **written, "hidden_act": activation, **tokens}


def _alone_config(tower: str, module: CLIPText | CLIPVision) -> dict[str, Any]:
    """Returns what ``config.json`` must have for the reference to open the folder of a tower."""
    ending = "WithProjection" if module.projection_features else ""
    attributes = {name: getattr(module, name) for name in fields.defaults(type(module))}
    architectures = [f"CLIP{tower.title()}Model{ending}"]
    return {"architectures": architectures, **_written(tower, attributes)}


def _pair_config(module: CLIP) -> dict[str, Any]:
    """Returns what ``config.json`` must have for ``CLIPModel.from_pretrained``."""
    sections = {
        f"{tower}_config": _written(
            tower,
            {name: getattr(module, _name_in_pair(tower, name)) for name in names.values()},
        )
        for tower, names in (("text", _TEXT), ("vision", _VISION))
    }
    width = module.projection_features
    return {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": width, **sections,
    }  # fmt: skip


def _preprocessing(side: int = 224) -> family.Preprocessing:
    return family.Preprocessing(
        size=side,
        resize=side,
        interpolation="bicubic",
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    )


_AXES = (*family.ATTENTION_AXES, *family.HIDDEN_AXES, *family.EMBEDDING_AXES)
_TOWER_RULES = {
    "features": fields.at_least(1),
    "num_layers": family.DEPTH,
    "num_heads": fields.at_least(1),
    "feedforward_features": fields.at_least(1),
}
_TEXT_RULES = {
    "vocab_size": family.FROM_DATA,
    "context": fields.at_least(1),
    "end_token": fields.at_least(0),
}
_VISION_RULES = {
    "image_size": fields.at_least(1),
    "patch_size": fields.at_least(1),
    "channels": fields.at_least(1),
}
_SHARED_RULES = {
    "activation": fields.choice(*dict.fromkeys(_ACTIVATIONS.values())),
    "epsilon": fields.ABOVE_ZERO,
    "attention_dropout_rate": fields.FRACTION,
}
_LARGE_TEXT = {"features": 768, "num_heads": 12, "feedforward_features": 3072}
_LARGE_VISION = {
    "patch_size": 14, "features": 1024, "num_layers": 24, "num_heads": 16,
    "feedforward_features": 4096,
}  # fmt: skip
_LARGE = {
    **_in_pair("text", _LARGE_TEXT),
    **_in_pair("vision", _LARGE_VISION),
    "projection_features": 768,
}


def _check_pair(attributes: Mapping[str, Any]) -> None:
    fields.check_divides(attributes, "text_heads", "text_features")
    fields.check_divides(attributes, "vision_heads", "vision_features")
    fields.check_divides(attributes, "patch_size", "image_size")


def _check_vision(attributes: Mapping[str, Any]) -> None:
    fields.check_divides(attributes, "num_heads", "features")
    fields.check_divides(attributes, "patch_size", "image_size")


FAMILY = family.Family(
    module=CLIP,
    kind="image_text",
    sizes={
        "clip_vit_base_patch32": {},
        "clip_vit_base_patch16": {"patch_size": 16},
        "clip_vit_large_patch14": _LARGE,
        "clip_vit_large_patch14_336": _LARGE | {"image_size": 336},
    },
    rules={
        **_VISION_RULES,
        **_in_pair("vision", _TOWER_RULES),
        **_TEXT_RULES,
        **_in_pair("text", _TOWER_RULES),
        "projection_features": fields.at_least(1),
        **_SHARED_RULES,
    },
    example=lambda module: {
        **family.image(module.image_size)(module), **family.tokens("tokens")(module),
    },
    weights={"transformers": _pair_table},
    published={"CLIPModel": "clip_vit_base_patch32"},
    attributes_of=_pair_attributes,
    config_of=_pair_config,
    preprocessing={
        "clip_vit_base_patch32": _preprocessing(),
        "clip_vit_base_patch16": _preprocessing(),
        "clip_vit_large_patch14": _preprocessing(),
        "clip_vit_large_patch14_336": _preprocessing(336),
    },
    axes=_AXES,
    check=_check_pair,
)  # fmt: skip

TEXT = family.Family(
    module=CLIPText,
    kind="text_encoder",
    sizes={"clip_text_base": {}, "clip_text_large": _LARGE_TEXT},
    rules={
        **_TEXT_RULES,
        **_TOWER_RULES,
        "projection_features": fields.at_least(0),
        **_SHARED_RULES,
    },
    example=family.tokens("tokens"),
    weights={
        "transformers": _text_table,
        "transformers, without a prefix": lambda module, params: renamed(
            _text_table(module, params), r"^text_model\.", ""
        ),
        "transformers, of a pair": _text_of_pair_table,
    },
    published={
        "CLIPTextModel": "clip_text_base",
        "CLIPTextModelWithProjection": "clip_text_base",
    },
    attributes_of=_text_attributes,
    config_of=lambda module: _alone_config("text", module),
    axes=_AXES,
    check=lambda attributes: fields.check_divides(attributes, "num_heads", "features"),
)

VISION = family.Family(
    module=CLIPVision,
    kind="image_encoder",
    sizes={
        "clip_vision_base_patch32": {},
        "clip_vision_base_patch16": {"patch_size": 16},
        "clip_vision_large_patch14": _LARGE_VISION,
        "clip_vision_large_patch14_336": _LARGE_VISION | {"image_size": 336},
    },
    rules={
        **_VISION_RULES,
        **_TOWER_RULES,
        "projection_features": fields.at_least(0),
        **_SHARED_RULES,
    },
    example=lambda module: family.image(module.image_size)(module),
    weights={
        "transformers": _vision_table,
        "transformers, without a prefix": lambda module, params: renamed(
            _vision_table(module, params), r"^vision_model\.", ""
        ),
        "transformers, of a pair": _vision_of_pair_table,
    },
    published={
        "CLIPVisionModel": "clip_vision_base_patch32",
        "CLIPVisionModelWithProjection": "clip_vision_base_patch32",
    },
    attributes_of=_vision_attributes,
    config_of=lambda module: _alone_config("vision", module),
    preprocessing={
        "clip_vision_base_patch32": _preprocessing(),
        "clip_vision_base_patch16": _preprocessing(),
        "clip_vision_large_patch14": _preprocessing(),
        "clip_vision_large_patch14_336": _preprocessing(336),
    },
    axes=_AXES,
    check=_check_vision,
)
