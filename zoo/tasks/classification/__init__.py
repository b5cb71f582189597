"""Image classification: one of several classes for each image."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from zoo import fields
from zoo.data.images import load_images
from zoo.data.transforms import CifarTransform, SeedTransform, transform_names
from zoo.data.vocabulary import Vocabulary
from zoo.families import Family
from zoo.tasks.classification.asking import VERBS, encode, predict
from zoo.tasks.classification.page import draw, sections
from zoo.tasks.classification.task import LOSSES, Classification
from zoo.tasks.wing import Wing

__all__ = ["WING", "Classification", "predict"]

DATA_FIELDS: fields.Fields = {
    "name": fields.Field(
        "mnist_subset",
        fields.choice("cifar10", "digit_scenes", "image_folder", "mnist", "mnist_subset", "npz"),
    ),
    **fields.of(
        load_images,
        {
            "validation_fraction": fields.FRACTION,
            "skip_broken": fields.at_least(0),
            "transform": fields.choice(*transform_names()),
        },
    ),
    **fields.of(
        SeedTransform,
        {
            "image_size": fields.at_least(1),
            "mean": fields.FINITE,
            "std": fields.ABOVE_ZERO,
            "rotation_degrees": fields.between(0, 180),
            "brightness": fields.between(0, 1),
            "contrast": fields.between(0, 1),
        },
    ),
    **fields.of(
        CifarTransform,
        {"rand_augment": fields.at_least(0), "rand_augment_magnitude": fields.between(0, 30)},
        only=True,
    ),
}

# Fields that belong to one image transform and have no meaning for the others.
_TRANSFORM_FIELDS = {
    ("seed",): ("mean", "std", "rotation_degrees", "brightness", "contrast"),
    ("cifar", "imagenet"): ("rand_augment", "rand_augment_magnitude"),
}


def _check(config: ConfigDict, family: Family) -> None:
    task, model, data = config.task, config.model, config.data
    if task.label_smoothing and task.loss != "cross_entropy":
        raise fields.ConfigError(
            f"task.label_smoothing={task.label_smoothing} has no meaning for "
            f"task.loss={task.loss!r}: take 'cross_entropy'"
        )
    if model.num_classes == 1:
        raise fields.ConfigError("model.num_classes=1: a classification needs at least 2")
    if model.get("image_size", data.image_size) != data.image_size:
        raise fields.ConfigError(
            f"model.image_size={model.image_size} must be data.image_size={data.image_size}: the "
            "positions depend on it"
        )
    if model.channels != 3:
        raise fields.ConfigError(
            f"model.channels={model.channels} must be 3: every data.transform makes RGB images"
        )
    for owners, names in _TRANSFORM_FIELDS.items():
        for name in names:
            if data.transform not in owners and data[name] != DATA_FIELDS[name].default:
                raise fields.ConfigError(
                    f"data.{name}={data[name]} has no meaning for "
                    f"data.transform={data.transform!r}: it belongs to {' and '.join(owners)}"
                )
    if data.name == "mnist_subset" and data.validation_fraction:
        raise fields.ConfigError(
            f"data.validation_fraction={data.validation_fraction}: 'mnist_subset' has a validation "
            "split of its own; leave the field at 0"
        )


def _make(
    model: nn.Module,
    vocabularies: Mapping[str, Vocabulary],
    task: Mapping[str, Any],
    data: Mapping[str, Any],
) -> Classification:
    own = dict(task)
    return Classification(
        model, loss_name=own.pop("loss"), class_names=vocabularies["classes"].symbols, **own
    )


_TASK = fields.of(
    Classification,
    {
        "loss_name": fields.choice(*LOSSES),
        "label_smoothing": fields.FRACTION,
        "mixup": fields.at_least(0),
        "cutmix": fields.at_least(0),
    },
    only=True,
)

WING = Wing(
    name="classification",
    kinds=("image_classifier",),
    fields={"loss" if name == "loss_name" else name: field for name, field in _TASK.items()},
    data_fields=DATA_FIELDS,
    metrics={"accuracy": "highest", "loss": "lowest"},
    load=load_images,
    make=_make,
    encode=encode,
    verbs=VERBS,
    check=_check,
    draw=draw,
    sections=sections,
)
