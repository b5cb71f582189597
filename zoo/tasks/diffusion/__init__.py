"""Diffusion: images from captions."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from zoo import fields
from zoo.data.scenes import load_scenes
from zoo.data.vocabulary import Vocabulary
from zoo.diffusion.samplers import SAMPLERS
from zoo.diffusion.schedules import PREDICTIONS, SCHEDULES
from zoo.families import Family
from zoo.tasks.diffusion.asking import VERBS, draw, encode
from zoo.tasks.diffusion.page import sections
from zoo.tasks.diffusion.task import Diffusion
from zoo.tasks.wing import Wing

__all__ = ["WING", "Diffusion", "draw"]


def _check(config: ConfigDict, family: Family) -> None:
    if config.task.sampling_steps > config.task.noise_steps:
        raise fields.ConfigError(
            f"task.sampling_steps={config.task.sampling_steps} must be at most "
            f"task.noise_steps={config.task.noise_steps}"
        )


def _make(
    model: nn.Module,
    vocabularies: Mapping[str, Vocabulary],
    task: Mapping[str, Any],
    data: Mapping[str, Any],
) -> Diffusion:
    return Diffusion(model, **task)


WING = Wing(
    name="diffusion",
    kinds=("denoiser",),
    fields=fields.of(
        Diffusion,
        {
            "noise_schedule": fields.choice(*SCHEDULES),
            "noise_steps": fields.between(1, 1_000_000),
            "prediction": fields.choice(*PREDICTIONS),
            "unconditional": fields.FRACTION,
            "guidance": fields.at_least(0),
            "sampling_steps": fields.at_least(1),
            "sampler": fields.choice(*SAMPLERS),
        },
    ),
    data_fields={"name": fields.Field("digit_scenes", fields.choice("digit_scenes"))},
    metrics={"loss": "lowest"},
    load=load_scenes,
    make=_make,
    encode=encode,
    verbs=VERBS,
    check=_check,
    sections=sections,
)
