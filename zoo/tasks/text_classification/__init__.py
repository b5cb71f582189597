"""Text classification: one of several classes for each short text."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from zoo import fields
from zoo.data.messages import load_messages
from zoo.data.vocabulary import Vocabulary
from zoo.tasks.classification.task import Classification
from zoo.tasks.text_classification.asking import VERBS, encode, predict
from zoo.tasks.text_classification.page import draw, sections
from zoo.tasks.wing import Wing

__all__ = ["WING", "predict"]


def _make(
    model: nn.Module,
    vocabularies: Mapping[str, Vocabulary],
    task: Mapping[str, Any],
    data: Mapping[str, Any],
) -> Classification:
    return Classification(
        model,
        inputs=("tokens", "length"),
        class_names=vocabularies["classes"].symbols,
        words=vocabularies["words"].symbols,
        **task,
    )


WING = Wing(
    name="text_classification",
    kinds=("text_classifier",),
    fields=fields.of(Classification, {"label_smoothing": fields.FRACTION}, only=True),
    data_fields={
        "name": fields.Field("sms_spam", fields.choice("messages", "sms_spam")),
        **fields.of(
            load_messages,
            {"max_length": fields.at_least(1), "vocabulary_size": fields.at_least(3)},
        ),
    },
    metrics={"accuracy": "highest", "loss": "lowest"},
    load=load_messages,
    make=_make,
    encode=encode,
    verbs=VERBS,
    draw=draw,
    sections=sections,
)
