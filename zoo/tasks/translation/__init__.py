"""Translation: a sentence in one language from a sentence in another."""

from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn

from zoo import fields
from zoo.data.translations import NAMES, load_translations
from zoo.data.vocabulary import Subwords, Vocabulary
from zoo.tasks.sequence_to_sequence import check_lengths
from zoo.tasks.translation.asking import VERBS, encode, translate
from zoo.tasks.translation.page import draw, sections
from zoo.tasks.translation.task import Translation
from zoo.tasks.wing import Wing

__all__ = ["WING", "Translation", "translate"]


def _make(
    model: nn.Module,
    vocabularies: Mapping[str, Vocabulary],
    task: Mapping[str, Any],
    data: Mapping[str, Any],
) -> Translation:
    return Translation(model, subwords=cast(Subwords, vocabularies["subwords"]), **task)


WING = Wing(
    name="translation",
    kinds=("encoder_decoder",),
    fields=fields.of(
        Translation,
        {
            "label_smoothing": fields.FRACTION,
            "num_beams": fields.between(1, 10_000),
            "length_penalty": fields.FINITE,
        },
        only=True,
    ),
    data_fields={
        "name": fields.Field(NAMES[0], fields.choice(*NAMES)),
        **fields.of(
            load_translations,
            {
                "vocabulary_size": fields.at_least(1),
                "max_source_length": fields.at_least(1),
                "max_target_length": fields.at_least(1),
                "validation_fraction": fields.FRACTION,
                "test_fraction": fields.FRACTION,
            },
        ),
    },
    metrics={"loss": "lowest", "accuracy": "highest"},
    load=load_translations,
    make=_make,
    encode=encode,
    verbs=VERBS,
    check=check_lengths,
    draw=draw,
    sections=sections,
)
