"""Language modelling: the next token of a text."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from zoo import fields
from zoo.data.sentences import END, load_language
from zoo.data.vocabulary import Vocabulary
from zoo.families import Family
from zoo.tasks.language_modelling.asking import VERBS, encode, generate, next_words, unknown_words
from zoo.tasks.language_modelling.page import draw, sections
from zoo.tasks.language_modelling.task import LanguageModelling
from zoo.tasks.wing import Wing

__all__ = ["WING", "LanguageModelling", "generate", "next_words", "unknown_words"]


def _check(config: ConfigDict, family: Family) -> None:
    data, model = config.data, config.model
    longest = max(data.context, data.eval_context)
    if longest > model.get("context", longest):
        raise fields.ConfigError(
            f"data.context={data.context}, data.eval_context={data.eval_context}: the model reads "
            f"at most model.context={model.context} tokens"
        )
    if data.order == "lanes":
        module: Any = family.module
        if not module.recurrent:
            raise fields.ConfigError(
                f"data.order='lanes' carries a recurrent state from batch to batch, and model.name="
                f"{model.name!r} has none: take 'shuffled'"
            )
        if config.train.accumulate > 1:
            raise fields.ConfigError(
                f"train.accumulate={config.train.accumulate} with data.order='lanes': every row "
                "has a state of its own, which parts of a batch cannot share; take "
                "train.accumulate=1"
            )


def _make(
    model: nn.Module,
    vocabularies: Mapping[str, Vocabulary],
    task: Mapping[str, Any],
    data: Mapping[str, Any],
) -> LanguageModelling:
    words = vocabularies.get("words")
    return LanguageModelling(
        model,
        lanes=data["order"] == "lanes",
        symbols=(words or vocabularies["characters"]).symbols,
        end=END if words else None,
        **task,
    )


WING = Wing(
    name="language_modelling",
    kinds=("causal_lm",),
    fields=fields.of(LanguageModelling, {"logits_at_once": fields.at_least(0)}, only=True),
    data_fields={
        "name": fields.Field(
            "tiny_shakespeare",
            fields.choice("sentences", "tatoeba_german", "text", "tiny_shakespeare"),
        ),
        **fields.of(
            load_language,
            {
                "context": fields.at_least(1),
                "eval_context": fields.at_least(0),
                "stride": fields.at_least(0),
                "order": fields.choice("lanes", "shuffled"),
                "vocabulary_size": fields.at_least(3),
            },
        ),
    },
    metrics={"loss": "lowest", "accuracy": "highest", "perplexity": "lowest"},
    load=load_language,
    make=_make,
    encode=encode,
    verbs=VERBS,
    check=_check,
    draw=draw,
    sections=sections,
)
