"""Sources, transforms and batches; imports no jax."""

from zoo.data.batching import eval_batches, examples_per_epoch, steps_per_epoch, train_batches
from zoo.data.datasets import Dataset
from zoo.data.sources import DataError, DataInfo, Source, dataset_names, describe, open_source
from zoo.data.transforms import make_transform, transform_names
from zoo.data.vocabulary import Vocabulary, vocabularies_from_json, vocabularies_to_json

__all__ = [
    "DataError",
    "DataInfo",
    "Dataset",
    "Source",
    "Vocabulary",
    "dataset_names",
    "describe",
    "eval_batches",
    "examples_per_epoch",
    "make_transform",
    "open_source",
    "steps_per_epoch",
    "train_batches",
    "transform_names",
    "vocabularies_from_json",
    "vocabularies_to_json",
]
