"""Tasks: a model joined with its loss, its data and the commands that use it. Each has a wing."""

from zoo.tasks import (
    classification,
    diffusion,
    forecasting,
    language_modelling,
    sequence_to_sequence,
    text_classification,
    transcription,
    translation,
)
from zoo.tasks.classification import Classification
from zoo.tasks.diffusion import Diffusion
from zoo.tasks.forecasting import Forecasting
from zoo.tasks.language_modelling import LanguageModelling
from zoo.tasks.own import OwnTask, make_task
from zoo.tasks.sequence_to_sequence import SequenceToSequence
from zoo.tasks.task import SumsTask, Task, TaskDefaults
from zoo.tasks.transcription import Transcription
from zoo.tasks.translation import Translation
from zoo.tasks.wing import Answer, Verb, Wing

__all__ = [
    "WINGS",
    "Answer",
    "Classification",
    "Diffusion",
    "Forecasting",
    "LanguageModelling",
    "OwnTask",
    "SequenceToSequence",
    "SumsTask",
    "Task",
    "TaskDefaults",
    "Transcription",
    "Translation",
    "Verb",
    "Wing",
    "make_task",
]

WINGS: tuple[Wing, ...] = (
    classification.WING,
    diffusion.WING,
    forecasting.WING,
    language_modelling.WING,
    sequence_to_sequence.WING,
    text_classification.WING,
    transcription.WING,
    translation.WING,
)
