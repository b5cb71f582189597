"""Downloads data sets and writes them as TFDS folders. Only this module needs TensorFlow."""

import http.client
import importlib.util
import queue
import threading
import urllib.error
import urllib.request
from pathlib import Path

from zoo.data.sources import DataError, dataset_names
from zoo.errors import did_you_mean

# The hosts from which TFDS downloads the data sets that the zoo knows by name.
_HOSTS = {"cifar10": "www.cs.toronto.edu", "mnist": "storage.googleapis.com"}
_PATIENCE = 8.0  # seconds


def prepare(name: str, data_dir: str | None = None) -> Path:
    """Downloads a data set and writes it in the format that the zoo reads.

    Args:
        name: ``mnist`` or ``cifar10``.
        data_dir: the TFDS folder to write to; None for TFDS's own default.

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
            "preparing a data set needs TensorFlow, although training does not: "
            "pip install 'jax-model-zoo[prepare]'"
        )
    reason = _unreachable(_HOSTS[name])
    if reason:
        raise DataError(
            f"{name!r} cannot be downloaded: {_HOSTS[name]} is not reachable ({reason}). Run "
            "the same command on a machine with a network, then copy the folder"
        )
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def _unreachable(host: str) -> str:
    """Returns why a host does not answer; an empty string if it does.

    The request runs in a thread, because its timeout covers neither the look-up of the name nor
    all addresses together. TFDS itself would retry for minutes.
    """
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()

    def ask() -> None:
        try:
            urllib.request.urlopen(f"https://{host}", timeout=_PATIENCE).close()
        except urllib.error.HTTPError:
            answers.put("")  # a refusal is an answer
        except (OSError, http.client.HTTPException) as error:
            answers.put(str(error) or repr(error))
        else:
            answers.put("")

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=_PATIENCE)
    except queue.Empty:
        return f"no answer within {_PATIENCE:g} s"
