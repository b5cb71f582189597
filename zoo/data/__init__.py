"""Sources, transforms and batches; imports no jax."""

from zoo.data.batching import eval_batches, steps_per_epoch, train_batches
from zoo.data.sources import DataError, DataInfo, Source, dataset_names, describe, open_source
from zoo.data.transforms import make_transform, transform_names

__all__ = [
    "DataError",
    "DataInfo",
    "Source",
    "dataset_names",
    "describe",
    "eval_batches",
    "make_transform",
    "open_source",
    "steps_per_epoch",
    "train_batches",
    "transform_names",
]
