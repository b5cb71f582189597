"""BERT and RoBERTa, and their weights in the layouts of Hugging Face's classes."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from zoo import fields
from zoo.errors import UserError
from zoo.families import family
from zoo.models.bert import (
    Bert,
    BertClassifier,
    BertMaskedLM,
    BertQuestionAnswering,
    BertTokenClassifier,
    Encoder,
)
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


def bert_table(module: Encoder) -> Table:
    """Returns the table of a model of ``zoo.models.bert`` for Hugging Face's class of BERT.

    Every name of the encoder begins with ``bert.``. Published files often have more than a model
    reads: the vector of a text, and the ends with which BERT was pretrained. They are left out:
    ``cls.seq_relationship``, which says whether two texts follow each other, of every model, and
    ``cls.predictions`` of all but ``BertMaskedLM``.

    Args:
        module: the model, whose attributes say which arrays there are.
    """
    table = _encoder(module, "bert")
    predictions = "cls.predictions"
    if isinstance(module, BertMaskedLM):
        table += [
            *_masked_lm(f"{predictions}.transform.dense", f"{predictions}.transform.LayerNorm"),
            *_tied(f"{predictions}.bias", f"{predictions}.decoder"),
        ]
    else:
        table += _unread(
            f"{predictions}.transform.dense.weight", f"{predictions}.transform.dense.bias",
            f"{predictions}.transform.LayerNorm.weight", f"{predictions}.transform.LayerNorm.bias",
            f"{predictions}.bias", f"{predictions}.decoder.weight", f"{predictions}.decoder.bias",
        )  # fmt: skip
    table += _unread("cls.seq_relationship.weight", "cls.seq_relationship.bias")
    table += _pooler(module, "bert.pooler.dense")
    if isinstance(module, BertClassifier | BertTokenClassifier):
        table += linear_entries("classifier", "output")
    return table


def roberta_table(module: Encoder) -> Table:
    """Returns the table of a model of ``zoo.models.bert`` for Hugging Face's class of RoBERTa.

    Every name of the encoder begins with ``roberta.``. The end of the pretraining, ``lm_head``, is
    left out of all models but ``BertMaskedLM``.

    Args:
        module: the model, whose attributes say which arrays there are.
    """
    table = _encoder(module, "roberta")
    if isinstance(module, BertMaskedLM):
        table += _masked_lm("lm_head.dense", "lm_head.layer_norm")
        table += _tied("lm_head.bias", "lm_head.decoder")
    else:
        table += _unread(
            "lm_head.dense.weight", "lm_head.dense.bias", "lm_head.layer_norm.weight",
            "lm_head.layer_norm.bias", "lm_head.bias", "lm_head.decoder.weight",
            "lm_head.decoder.bias",
        )  # fmt: skip
    if isinstance(module, BertClassifier):
        # Its first layer is what the encoder's own would be, which it does not use.
        table += _unread("roberta.pooler.dense.weight", "roberta.pooler.dense.bias")
        table += linear_entries("classifier.dense", "pooler")
        table += linear_entries("classifier.out_proj", "output")
    else:
        table += _pooler(module, "roberta.pooler.dense")
    if isinstance(module, BertTokenClassifier):
        table += linear_entries("classifier", "output")
    return table


def _encoder(module: Encoder, prefix: str) -> list[Entry]:
    embeddings = f"{prefix}.embeddings"
    table = [
        Entry(f"{embeddings}.word_embeddings.weight", "tokens/embedding"),
        Entry(f"{embeddings}.position_embeddings.weight", "positions/embedding"),
        Entry(f"{embeddings}.token_type_embeddings.weight", "token_types/embedding"),
        *norm_entries(f"{embeddings}.LayerNorm", "norm"),
        # Files of older versions have them.
        *_unread(f"{embeddings}.position_ids", f"{embeddings}.token_type_ids"),
    ]
    for layer in range(module.num_layers):
        theirs, ours = f"{prefix}.encoder.layer.{layer}", f"layer_{layer}"
        for name in ("query", "key", "value"):
            table += linear_entries(f"{theirs}.attention.self.{name}", f"{ours}/attention/{name}")
        table += linear_entries(f"{theirs}.attention.output.dense", f"{ours}/attention/out")
        table += norm_entries(f"{theirs}.attention.output.LayerNorm", f"{ours}/attention_norm")
        table += linear_entries(f"{theirs}.intermediate.dense", f"{ours}/up")
        table += linear_entries(f"{theirs}.output.dense", f"{ours}/down")
        table += norm_entries(f"{theirs}.output.LayerNorm", f"{ours}/norm")
    if isinstance(module, BertQuestionAnswering):
        table += linear_entries("qa_outputs", "output")
    return [*(stacked(table, "layer_", "layers") if module.scan_layers else table)]


def _masked_lm(dense: str, norm: str) -> Table:
    return [*linear_entries(dense, "transform"), *norm_entries(norm, "transform_norm")]


def _tied(bias: str, decoder: str) -> Table:
    """The output, whose weights are the tokens' vectors; both may be there a second time."""
    return [
        Entry(bias, "output_bias"),
        copy_entry(f"{decoder}.weight", "tokens/embedding"),
        copy_entry(f"{decoder}.bias", "output_bias"),
    ]


def _pooler(module: Encoder, reference: str) -> Table:
    if isinstance(module, BertClassifier) or (isinstance(module, Bert) and module.use_pooler):
        return linear_entries(reference, "pooler")
    return _unread(f"{reference}.weight", f"{reference}.bias")


def _unread(*names: str) -> Table:
    return [buffer_entry(name) for name in names]


def _tables(
    make: Callable[[Any], Table], prefix: str, *, bare: bool
) -> dict[str, Callable[[Any, family.Params], Table]]:
    """Returns the tables for every spelling of the names; export writes the first.

    Args:
        make: makes the table of a model, the encoder's names with their prefix.
        prefix: what these names begin with where the encoder is a part of the reference's class.
        bare: whether the reference's class is the encoder itself, whose names have no prefix.
    """
    without = ((rf"^{prefix}\.", ""),)
    # Weights that were converted from TensorFlow keep its names of a normalisation's arrays.
    older = ((r"LayerNorm\.weight$", "LayerNorm.gamma"), (r"LayerNorm\.bias$", "LayerNorm.beta"))
    own, other = (without, ()) if bare else ((), without)
    respelled = f"transformers, {'with' if bare else 'without'} {prefix}."

    def table(*changes: tuple[str, str]) -> Callable[[Any, family.Params], Table]:
        return lambda module, params: functools.reduce(
            lambda table, change: renamed(table, *change), changes, make(module)
        )

    return {
        "transformers": table(*own),
        respelled: table(*other),
        "transformers, gamma and beta": table(*own, *older),
        f"{respelled}, gamma and beta": table(*other, *older),
    }


# The end of the name that the reference's class has for each module.
_CLASSES: Mapping[type[Encoder], str] = {
    Bert: "Model",
    BertMaskedLM: "ForMaskedLM",
    BertClassifier: "ForSequenceClassification",
    BertTokenClassifier: "ForTokenClassification",
    BertQuestionAnswering: "ForQuestionAnswering",
}
_SIZES = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "num_positions",
    "type_vocab_size": "num_token_types",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "hidden_size": "features",
    "intermediate_size": "feedforward_features",
    "layer_norm_eps": "epsilon",
    "hidden_dropout_prob": "dropout_rate",
    "attention_probs_dropout_prob": "attention_dropout_rate",
    "pad_token_id": "padding_token",
}
# The first of the names that mean the same is the one that export writes.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
# What the zoo's models have in one form only.
_FIXED: Mapping[str, Any] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "tie_encoder_decoder": False,
    "cross_attention_hidden_size": None,
    "pruned_heads": {},
}
_PROBLEMS = (
    None, "regression", "single_label_classification", "multi_label_classification",
)  # fmt: skip
# What the reference takes for a key that a config.json lacks, if it is not the module's default.
_ROBERTA_DEFAULTS = {
    "vocab_size": 50265,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 1,
}
# The keys that change nothing in what a model computes from tokens, or are read one by one below.
_WITHOUT_EFFECT = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_name_or_path", "_num_labels",
    "architectures", "attn_implementation", "begin_suppress_tokens", "bos_token_id",
    "chunk_size_feed_forward", "classifier_dropout", "cls_token_id", "decoder_start_token_id",
    "directionality", "dtype", "eos_token_id", "eos_token_ids", "finetuning_task",
    "gradient_checkpointing", "hidden_act", "id2label", "initializer_range", "label2id",
    "language", "mask_token_id", "max_length", "model_max_length", "model_type", "name",
    "names", "num_labels", "output_attentions", "output_hidden_states", "output_past",
    "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
    "pooler_size_per_head", "pooler_type", "prefix", "problem_type", "return_dict",
    "sentence_transformers", "sep_token_id", "task_specific_params", "tf_legacy_loss",
    "tie_word_embeddings", "tokenizer_class", "torch_dtype", "torchscript",
    "transformers.js_config", "transformers_version", "unk_token_id", "use_bfloat16",
    "use_cache", "xla_device",
})  # fmt: skip


def _config(module: Any, model_type: str) -> dict[str, Any]:
    """Returns what ``config.json`` must have for the reference's ``from_pretrained``."""
    _check_positions(model_type, module.skip_padding)
    reference = {"bert": "Bert", "roberta": "Roberta"}[model_type]
    made = {
        "architectures": [reference + _CLASSES[type(module)]],
        "model_type": model_type,
        **{theirs: getattr(module, ours) for theirs, ours in _SIZES.items()},
        "hidden_act": next(a for a, ours in _ACTIVATIONS.items() if ours == module.activation),
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
    }
    if isinstance(module, BertClassifier | BertTokenClassifier):
        names = {str(index): f"LABEL_{index}" for index in range(module.num_classes)}
        made["id2label"] = names
        made["label2id"] = {name: int(index) for index, name in names.items()}
        made["classifier_dropout"] = module.head_dropout_rate
    return made


def _attributes(
    config: Mapping[str, Any], module: type[Encoder], model_type: str
) -> dict[str, Any]:
    """Returns the module's attributes from the ``config.json`` of a Hugging Face model."""
    kind = config.get("model_type", model_type)
    if kind != model_type:
        raise UserError(
            f"config.json: model_type={kind!r}, this model of the zoo reads {model_type!r}"
        )
    for key, value in _FIXED.items():
        # Old files say null where new ones say false or {}.
        if key in config and (config[key] or None) != (value or None):
            raise UserError(f"config.json: {key}={config[key]!r}, the zoo's model needs {value!r}")
    if strange := sorted(config.keys() - _SIZES.keys() - _FIXED.keys() - _WITHOUT_EFFECT):
        raise UserError(
            f"config.json: the zoo does not know {', '.join(strange)}, which may change what the "
            "model computes. Remove from the file what does not"
        )
    defaults = _ROBERTA_DEFAULTS if model_type == "roberta" else {}
    config = {**defaults, **config}
    made = {ours: config[theirs] for theirs, ours in _SIZES.items() if theirs in config}
    if "hidden_act" in config:
        made["activation"] = _activation(config["hidden_act"])
    if issubclass(module, BertMaskedLM):
        if config.get("tie_word_embeddings", True) is not True:
            raise UserError(
                f"config.json: tie_word_embeddings={config['tie_word_embeddings']!r}, the output "
                "of the zoo's model has the weights of the tokens' vectors"
            )
        if model_type == "roberta" and made.get("activation", "gelu") != "gelu":
            raise UserError(
                f"config.json: hidden_act={config['hidden_act']!r}: RoBERTa's output takes 'gelu' "
                "whatever its layers take, and the zoo's model has one activation"
            )
    if issubclass(module, BertClassifier | BertTokenClassifier):
        made |= _of_classes(config)
        dropout = config.get("classifier_dropout")
        dropout = config.get("hidden_dropout_prob") if dropout is None else dropout
        made |= {} if dropout is None else {"head_dropout_rate": dropout}
    return made


def _activation(name: Any) -> str:
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise UserError(
            f"config.json: hidden_act={name!r} must be one of {', '.join(map(repr, _ACTIVATIONS))}"
        )
    return _ACTIVATIONS[name]


def _of_classes(config: Mapping[str, Any]) -> dict[str, int]:
    """Returns the number of classes, which the names of the classes tell or a number; or nothing.

    The kind of problem chooses a loss and changes no logits.
    """
    if (problem := config.get("problem_type")) not in _PROBLEMS:
        raise UserError(
            f"config.json: problem_type={problem!r} must be one of "
            f"{', '.join(map(repr, _PROBLEMS))}"
        )
    names = config.get("id2label")
    number = config.get("num_labels", config.get("_num_labels"))
    if names is None:
        return {} if number is None else {"num_classes": number}
    if not isinstance(names, Mapping):
        raise UserError(f"config.json: id2label={names!r} must be an object of names by number")
    if number not in (None, len(names)):
        raise UserError(f"config.json: num_labels={number!r}, and id2label has {len(names)} names")
    return {"num_classes": len(names)}


_RULES = {
    "vocab_size": family.FROM_DATA,
    "num_positions": fields.at_least(1),
    "num_token_types": fields.at_least(1),
    "num_layers": family.DEPTH,
    "num_heads": fields.at_least(1),
    "features": fields.at_least(1),
    "feedforward_features": fields.at_least(1),
    "activation": fields.choice("gelu", "gelu_tanh", "relu", "silu", "tanh"),
    "epsilon": fields.ABOVE_ZERO,
    "dropout_rate": fields.FRACTION,
    "attention_dropout_rate": fields.FRACTION,
    "padding_token": fields.at_least(0),
}
_RULES_OF_CLASSES = {"num_classes": family.FROM_DATA, "head_dropout_rate": fields.FRACTION}
_LARGE = {"num_layers": 24, "num_heads": 16, "features": 1024, "feedforward_features": 4096}
# RoBERTa-base. The vectors of positions are 512 more than the last position of padding.
_ROBERTA = {
    "vocab_size": 50265,
    "num_positions": 514,
    "num_token_types": 1,
    "epsilon": 1e-5,
    "padding_token": 1,
    "skip_padding": True,
}


_AXES = (
    *family.ATTENTION_AXES,
    *family.HIDDEN_AXES,
    *family.EMBEDDING_AXES,
    (r"(^|/)output_bias$", ("vocab",)),
)


def _tokens_and_lengths(module: Any) -> dict[str, Any]:
    return {"tokens": jnp.zeros((1, 1), jnp.int32), "lengths": jnp.ones(1, jnp.int32)}


def _check_positions(model_type: str, skip_padding: bool) -> None:
    if skip_padding != (model_type == "roberta"):
        raise fields.ConfigError(
            f"model.skip_padding={skip_padding}: BERT does not skip padding and RoBERTa does. "
            "Choose the model by its name, such as 'bert' or 'roberta'"
        )


def _check(model_type: str, attributes: Mapping[str, Any]) -> None:
    fields.check_divides(attributes, "num_heads", "features")
    _check_positions(model_type, attributes["skip_padding"])


def _family(
    model_type: str,
    module: type[Encoder],
    kind: str,
    sizes: Mapping[str, Mapping[str, Any]],
    *published: str,
) -> family.Family:
    """Returns the record of one of the modules, as BERT or as RoBERTa."""
    has_classes = issubclass(module, BertClassifier | BertTokenClassifier)
    return family.Family(
        module=module,
        kind=kind,
        sizes=sizes,
        rules={**_RULES, **(_RULES_OF_CLASSES if has_classes else {})},
        example=_tokens_and_lengths if module is BertClassifier else family.tokens("tokens"),
        weights=_tables(
            roberta_table if model_type == "roberta" else bert_table,
            model_type,
            bare=module is Bert,
        ),
        published=dict.fromkeys(published, next(iter(sizes))),
        attributes_of=lambda config: _attributes(config, module, model_type),
        config_of=lambda made: _config(made, model_type),
        axes=_AXES,
        check=functools.partial(_check, model_type),
    )


FAMILIES = (
    _family("bert", Bert, "text_encoder", {"bert": {}, "bert_large": _LARGE}, "BertModel"),
    _family(
        "bert", BertMaskedLM, "masked_lm", {"bert_masked_lm": {}},
        "BertForMaskedLM", "BertForPreTraining",
    ),
    _family(
        "bert", BertClassifier, "text_classifier", {"bert_classifier": {}},
        "BertForSequenceClassification",
    ),
    _family(
        "bert", BertTokenClassifier, "token_classifier", {"bert_token_classifier": {}},
        "BertForTokenClassification",
    ),
    _family(
        "bert", BertQuestionAnswering, "question_answering", {"bert_question_answering": {}},
        "BertForQuestionAnswering",
    ),
    _family(
        "roberta", Bert, "text_encoder",
        {"roberta": _ROBERTA, "roberta_large": _ROBERTA | _LARGE}, "RobertaModel",
    ),
    _family(
        "roberta", BertMaskedLM, "masked_lm", {"roberta_masked_lm": _ROBERTA}, "RobertaForMaskedLM"
    ),
    _family(
        "roberta", BertClassifier, "text_classifier",
        {"roberta_classifier": _ROBERTA | {"dropout_before_pooler": True}},
        "RobertaForSequenceClassification",
    ),
    _family(
        "roberta", BertTokenClassifier, "token_classifier", {"roberta_token_classifier": _ROBERTA},
        "RobertaForTokenClassification",
    ),
    _family(
        "roberta", BertQuestionAnswering, "question_answering",
        {"roberta_question_answering": _ROBERTA}, "RobertaForQuestionAnswering",
    ),
)  # fmt: skip
