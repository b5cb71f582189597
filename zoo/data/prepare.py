"""Downloading data sets and writing them as TFDS folders; the only place that needs TensorFlow."""

import importlib.util
import socket
from pathlib import Path

from zoo.data.sources import DataError, dataset_names
from zoo.errors import did_you_mean

# Where TFDS fetches the data sets that the zoo knows by name.
_HOSTS = {"cifar10": "www.cs.toronto.edu", "mnist": "storage.googleapis.com"}
_PATIENCE = 5.0


def prepare(name: str, data_dir: str | None = None) -> Path:
    """Downloads a data set and writes it in the format that the zoo reads.

    Args:
        name: ``mnist`` or ``cifar10``.
        data_dir: the TFDS folder to write to; None: TFDS's own default.

    Returns:
        The folder of the data set.

    Raises:
        DataError: the name is unknown, TensorFlow is absent, or there is no network.
    """
    if name not in _HOSTS:
        if name in dataset_names():
            raise DataError(f"{name!r} comes with the package: there is nothing to prepare")
        raise DataError(f"the data set {name!r} is unknown.{did_you_mean(name, _HOSTS)}")
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError(
            "preparing a data set needs TensorFlow, training does not: "
            "pip install 'jax-model-zoo[prepare]'"
        )
    # TFDS itself tries again for minutes.
    try:
        socket.create_connection((_HOSTS[name], 443), timeout=_PATIENCE).close()
    except OSError as error:
        raise DataError(
            f"{name!r} cannot be downloaded: {_HOSTS[name]} is not reachable ({error}). On a "
            "machine with a network run the same command, then copy the folder"
        ) from error
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)
