"""Sequence to sequence: one sequence from another, such as a pronunciation from a spelling."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from zoo import fields
from zoo.data.pairs import load_pairs
from zoo.data.vocabulary import Vocabulary
from zoo.families import Family
from zoo.tasks.sequence_to_sequence.asking import VERBS, encode, predict
from zoo.tasks.sequence_to_sequence.task import SequenceToSequence
from zoo.tasks.wing import Wing

__all__ = ["WING", "SequenceToSequence", "check_lengths", "predict"]


def check_lengths(config: ConfigDict, family: Family) -> None:
    """Raises ConfigError if a model of learned positions has too few for the data."""
    model, data = config.model, config.data
    # The target is read with the symbol of its begin before it.
    longest = max(data.max_source_length, data.max_target_length + 1)
    if model.get("positions") == "learned" and model.max_length < longest:
        raise fields.ConfigError(
            f"model.max_length={model.max_length} must be at least {longest} for "
            f"data.max_source_length={data.max_source_length} and "
            f"data.max_target_length={data.max_target_length}, because model.positions='learned'"
        )


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
            "num_beams": fields.between(1, 10_000),
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
    check=check_lengths,
)
