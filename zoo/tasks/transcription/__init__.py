"""Transcription: the words that are said in a recording."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from zoo import fields
from zoo.data.datasets import Dataset
from zoo.data.speech import load_speech, without_short
from zoo.data.vocabulary import Vocabulary
from zoo.tasks.transcription.asking import VERBS, encode, transcribe
from zoo.tasks.transcription.page import sections
from zoo.tasks.transcription.task import Transcription, best_path
from zoo.tasks.wing import Wing

__all__ = ["WING", "Transcription", "best_path", "transcribe"]


def _make(
    model: nn.Module,
    vocabularies: Mapping[str, Vocabulary],
    task: Mapping[str, Any],
    data: Mapping[str, Any],
) -> Transcription:
    return Transcription(model, symbols=vocabularies["symbols"].symbols, **task)


def _select(model: Any, dataset: Dataset) -> Dataset:
    return without_short(dataset, model.count_frames)


WING = Wing(
    name="transcription",
    kinds=("ctc",),
    fields={},
    data_fields={
        "name": fields.Field("spoken_digits", fields.choice("spoken_digits", "wav_folder")),
        **fields.of(
            load_speech,
            {
                "max_seconds": fields.ABOVE_ZERO,
                "max_symbols": fields.at_least(1),
                "gap_seconds": fields.at_least(0),
                "noise": fields.at_least(0),
            },
        ),
    },
    metrics={"loss": "lowest", "accuracy": "highest"},
    load=load_speech,
    make=_make,
    encode=encode,
    verbs=VERBS,
    select=_select,
    sections=sections,
)
