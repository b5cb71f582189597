"""Weights in safetensors files, from a path or from the Hugging Face hub."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import UserError
from zoo.files import CHECKSUMS, damage_of_file, make_folder, rename, seal, sync, write_atomically

FILE = "model.safetensors"
_PICKLED = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


def find_weights(path_or_hub_id: str | Path) -> Path:
    """Returns the path of a file of weights, which is fetched from the hub if it is not local.

    Args:
        path_or_hub_id: a ``.safetensors`` file, a folder with ``model.safetensors``, or the name of
            a repository on the hub, such as ``timm/resnet50.a1_in1k``.

    Raises:
        UserError: ``path_or_hub_id`` is none of these or a pickled file, or the hub cannot be
            reached.
    """
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        if not (path / FILE).is_file():
            raise UserError(f"the folder {path} has no {FILE}")
        return path / FILE
    if path.suffix in _PICKLED:
        raise UserError(
            f"{path} is a pickled file, which runs its author's code when it is opened: if you "
            "trust it, convert it with "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
        )
    if path.is_file():
        return path
    name = str(path_or_hub_id)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or path.suffix == ".safetensors":
        raise UserError(
            f"there is no file of weights {path}, and {name!r} is not a name on the hub, such as "
            "owner/model"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, FILE))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{name} cannot be fetched from the hub ({type(error).__name__}): download "
            f"https://huggingface.co/{name}/resolve/main/{FILE} elsewhere and give the file's path"
        ) from error


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Reads a safetensors file; one that ``write_weights`` wrote is compared with its checksum.

    Raises:
        UserError: the file is not a safetensors file, is cut off, or has changed since it was
            exported.
    """
    from safetensors import SafetensorError
    from safetensors.flax import load_file

    check_export(path)

    try:
        return {name: np.asarray(array) for name, array in load_file(str(path)).items()}
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file, or is cut off: {error}") from error


def check_export(path: Path) -> None:
    """Compares a file that ``write_weights`` wrote with its checksum; others are taken as they are.

    Raises:
        UserError: the file has changed since it was exported.
    """
    if found := damage_of_file(path):
        raise UserError(
            f"{path} {found}: export it anew. If it was changed on purpose, remove "
            f"{path.with_name(CHECKSUMS)}"
        )


def write_weights(
    folder: Path, arrays: Mapping[str, np.ndarray], description: Mapping[str, Any]
) -> Path:
    """Writes ``model.safetensors`` and ``config.json``, and ``checksums.json`` of both.

    All are on the disk when this returns the path of ``model.safetensors``.
    """
    from safetensors.numpy import save_file

    make_folder(folder)
    # Those of an earlier export do not fit what is written now.
    (folder / CHECKSUMS).unlink(missing_ok=True)
    temporary = folder / f"{FILE}.tmp"
    save_file(dict(arrays), str(temporary), metadata={"format": "pt"})
    sync(temporary)
    rename(temporary, folder / FILE)
    write_atomically(folder / "config.json", json.dumps(dict(description), indent=2) + "\n")
    seal(folder, (FILE, "config.json"))
    return folder / FILE
