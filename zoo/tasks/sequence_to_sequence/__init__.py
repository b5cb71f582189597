"""Sequence to sequence: one sequence from another, such as a pronunciation from a spelling."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from zoo import fields
from zoo.data.pairs import load_pairs
from zoo.data.vocabulary import Vocabulary
from zoo.tasks.sequence_to_sequence.asking import VERBS, encode, predict
from zoo.tasks.sequence_to_sequence.task import SequenceToSequence
from zoo.tasks.wing import Wing

__all__ = ["WING", "SequenceToSequence", "predict"]


def _make(
    model: nn.Module,
    vocabularies: Mapping[str, Vocabulary],
    task: Mapping[str, Any],
    data: Mapping[str, Any],
) -> SequenceToSequence:
    return SequenceToSequence(model, target_symbols=vocabularies["target"].symbols, **task)


WING = Wing(
    name="sequence_to_sequence",
    kinds=("encoder_decoder",),
    fields=fields.of(
        SequenceToSequence,
        {
            "label_smoothing": fields.FRACTION,
            "num_beams": fields.at_least(1),
            "length_penalty": fields.FINITE,
        },
        only=True,
    ),
    data_fields={
        "name": fields.Field("cmudict", fields.choice("cmudict", "pairs")),
        **fields.of(
            load_pairs,
            {
                "target_symbols": fields.choice("characters", "words"),
                "max_source_length": fields.at_least(1),
                "max_target_length": fields.at_least(1),
                "validation_fraction": fields.FRACTION,
                "test_fraction": fields.FRACTION,
            },
        ),
    },
    metrics={"loss": "lowest", "accuracy": "highest"},
    load=load_pairs,
    make=_make,
    encode=encode,
    verbs=VERBS,
)
