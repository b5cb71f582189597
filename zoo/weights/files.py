"""Weights in safetensors files, from a path or from the Hugging Face hub."""

import contextlib
import json
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from zoo.errors import UserError
from zoo.files import CHECKSUMS, damage_of_file, make_folder, rename, seal, sync, write_atomically
from zoo.weights.types import wrong_type

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What a folder of published weights may have for its tokenizer.
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
# What it may have besides.
OTHER_FILES = ("generation_config.json", "preprocessor_config.json")
_PICKLED = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.safetensors")
# What a file that is no safetensors file turns out to be, by its first bytes.
_OTHER_FORMATS = {
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with `git lfs pull`",
    b"<!": "a web page: fetch the file itself, such as by the page's download button",
    b"<html": "a web page: fetch the file itself, such as by the page's download button",
    b"PK\x03\x04": "a zip archive, such as a file of torch.save or numpy.savez",
    b"\x80\x02\x8a\n": "a pickled file of torch.save",
    b"\x80\x04\x95": "a pickled file",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": "a file of numpy.save",
}


class Weights(Mapping[str, np.ndarray]):
    """The arrays of one or several safetensors files by name; each is read when it is asked for.

    Arrays have the types that they have in the file.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        """Opens the files.

        Args:
            files: the file of each array.

        Raises:
            UserError: a file is damaged.
        """
        self._files = dict(files)
        self._opened = {file: _opened(file) for file in dict.fromkeys(files.values())}

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads an array.

        Raises:
            KeyError: there is no such array.
            UserError: the array cannot be read, or is of a type that numpy does not have.
        """
        from safetensors import SafetensorError

        file = self._files[name]
        try:
            return self._opened[file].get_tensor(name)
        except AttributeError as error:  # numpy has no such type
            stored = self._opened[file].get_slice(name).get_dtype()
            what = re.sub(r"^f(\d)", r"float\1", stored.lower())
            raise wrong_type(f"{file}: {shown(name)}", what) from error
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{file}: {shown(name)} cannot be read: {error}") from error

    def __contains__(self, name: object) -> bool:
        return name in self._files  # a Mapping's own would read the array

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def find_weights(path_or_hub_id: str | Path) -> Path:
    """Returns the path of a file of weights, which is fetched from the hub if it is not local.

    Args:
        path_or_hub_id: a ``.safetensors`` file, the index of several
            (``model.safetensors.index.json``), a folder with ``model.safetensors`` or the index, or
            the name of a repository on the hub, such as ``timm/resnet50.a1_in1k``.

    Raises:
        UserError: ``path_or_hub_id`` is none of these or a pickled file, or the hub cannot be
            reached.
    """
    try:
        path = Path(path_or_hub_id).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path_or_hub_id}: {error}") from error
    mode = _mode(path)
    if mode is not None and stat.S_ISDIR(mode):
        return _in_folder(path)
    if path.suffix in _PICKLED:
        raise _pickled(path)
    if mode is not None:
        return path
    name = str(path_or_hub_id)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or path.suffix == ".safetensors":
        raise UserError(
            f"{_absent(path)}, and {name!r} is not a name on the hub, such as owner/model"
        )
    return _fetched(name)


def read_weights(path: Path) -> Weights:
    """Opens a safetensors file, or all files that an index names; arrays are read when asked for.

    Raises:
        UserError: a file is not a safetensors file, is damaged or cut off, has changed since
            ``write_weights`` wrote it, or does not hold the arrays that the index says.
    """
    if path.name.endswith(".index.json"):
        return Weights(_shards(path))
    if _SHARD.fullmatch(path.name):
        raise UserError(
            f"{path} has only some of the arrays: give the folder with all parts and their {INDEX}"
        )
    _check_regular(path)
    check_export(path)
    return Weights(dict.fromkeys(_names(path), path))


def read_json(path: Path) -> Any:
    """Reads a JSON file beside weights.

    Raises:
        UserError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


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
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    description: Mapping[str, Any],
    beside: Mapping[str, str] = MappingProxyType({}),
    *,
    file: str = FILE,
    config: str = "config.json",
) -> Path:
    """Writes ``model.safetensors`` and ``config.json``, and ``checksums.json`` of all files.

    All are on the disk when this returns the path of ``model.safetensors``.

    Args:
        folder: the folder to write to.
        arrays: the weights.
        description: the content of ``config.json``.
        beside: the texts of further files, by name, such as those of a tokenizer.
        file: another name for ``model.safetensors``.
        config: another name for ``config.json``.

    Raises:
        UserError: the folder or a file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    in_order = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    part = folder / f"{file}.tmp"
    try:
        make_folder(folder)
        # Those of an earlier export do not fit what is written now.
        (folder / CHECKSUMS).unlink(missing_ok=True)
        save_file(in_order, str(part), metadata={"format": "pt"})
        sync(part)
        rename(part, folder / file)
        texts = {config: json.dumps(dict(description), indent=2) + "\n", **beside}
        for name, text in texts.items():
            write_atomically(folder / name, text)
        seal(folder, (file, *texts))
    except (SafetensorError, OSError) as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UserError(f"the weights cannot be written to {folder}: {error}") from error
    return folder / file


def shown(name: str) -> str:
    """Returns a name from a file as messages show it: printable and not too long."""
    printable = name if name.isprintable() else repr(name)
    return printable if len(printable) <= 120 else f"{printable[:117]}..."


def _mode(path: Path) -> int | None:
    """Returns the mode of what a path leads to; None if that does not exist."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{shown(str(path))} cannot be opened: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{str(path)!r} is not a path: {error}") from error


def _absent(path: Path) -> str:
    link = " (it is a link to what does not exist)" if path.is_symlink() else ""
    return f"there is no file of weights {path}{link}"


def _in_folder(folder: Path) -> Path:
    for name in (FILE, INDEX):
        # A link to nothing counts as well: the hub's cache is made of links.
        if (folder / name).is_symlink() or _mode(folder / name) is not None:
            return folder / name
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be opened: {error.strerror}") from error
    if "checkpoints" in names:
        raise UserError(
            f"the folder {folder} has no {FILE}, since it is the folder of a run: write one with "
            f"`zoo export --workdir {folder}`"
        )
    if shards := [name for name in names if _SHARD.fullmatch(name)]:
        raise UserError(
            f"the folder {folder} has no {FILE}, and no {INDEX} for its {len(shards)} parts, such "
            f"as {shown(shards[0])}"
        )
    if others := [name for name in names if name.endswith(".safetensors")]:
        raise UserError(
            f"the folder {folder} has no {FILE}: give the path of one file, such as "
            f"{shown(str(folder / others[0]))}"
        )
    if pickled := [name for name in names if name.endswith(_PICKLED)]:
        raise _pickled(folder / pickled[0], f"the folder {folder} has no {FILE}, and ")
    raise UserError(f"the folder {folder} has no {FILE} and no {INDEX}")


def _pickled(path: Path, beginning: str = "") -> UserError:
    return UserError(
        f"{beginning}{path} is a pickled file, which runs its author's code when it is opened: if "
        "you trust it, convert it with "
        "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
    )


def _fetched(name: str) -> Path:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    file = FILE
    try:
        found = _download(name, file)
        if found is None:
            file = INDEX
            found = _download(name, file)
        if found is None:
            raise UserError(
                f"{name} has no {FILE} on the hub, and no {INDEX}: pickled files, which run their "
                "author's code when they are opened, are not fetched"
            )
        if file == INDEX:
            for file in dict.fromkeys(_weight_map(found).values()):
                _download(name, file)
    except HFValidationError as error:
        raise UserError(f"{name!r} is not a name on the hub: {error}") from error
    except (HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{name} cannot be fetched from the hub ({type(error).__name__}): download "
            f"https://huggingface.co/{name}/resolve/main/{file} elsewhere and give the file's path"
        ) from error
    # The model's sizes. If they cannot be had, the model's own count, and the shapes are checked.
    with contextlib.suppress(HfHubHTTPError, OSError):
        described = _download(name, "config.json")
        # Only the folders of transformers have a model type, and a tokenizer.
        if described is not None and '"model_type"' in described.read_text(encoding="utf-8"):
            for file in (*TOKENIZER_FILES, *OTHER_FILES):
                _download(name, file)
    return found


def _download(name: str, file: str) -> Path | None:
    """Fetches a file from the hub into its cache; None if the repository does not have it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except LocalEntryNotFoundError:  # there is no network
        raise
    except EntryNotFoundError:
        return None


def _weight_map(index: Path) -> dict[str, str]:
    """Returns the name of the file of each array, as an index says."""
    _check_regular(index)
    content = read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise UserError(f"{index} has no 'weight_map' with the file of each array")
    # The files stand beside the index; other places are none of its business.
    if wrong := [
        file for file in files.values() if not isinstance(file, str) or file != Path(file).name
    ]:
        raise UserError(f"{index} names {shown(repr(wrong[0]))}, which is not the name of a file")
    return files


def _shards(index: Path) -> dict[str, Path]:
    files = _weight_map(index)
    shards = sorted(set(files.values()))
    if lacking := [name for name in shards if _mode(index.with_name(name)) is None]:
        raise UserError(
            f"{index} names {len(shards)} files, of which {len(lacking)} are missing, such as "
            f"{shown(lacking[0])}: fetch them to the same folder"
        )
    there = {name: set(_names(index.with_name(name))) for name in shards}
    if absent := [name for name, file in files.items() if name not in there[file]]:
        raise UserError(
            f"{index} does not fit its files: {len(absent)} of {len(files)} arrays are not where "
            f"it says, such as {shown(absent[0])} in {shown(files[absent[0]])}"
        )
    if unknown := sorted(set().union(*there.values()) - files.keys()):
        raise UserError(
            f"{index} does not fit its files: they have {len(unknown)} arrays more than it says, "
            f"such as {shown(unknown[0])}"
        )
    return {name: index.with_name(file) for name, file in files.items()}


def _check_regular(path: Path) -> None:
    """Refuses what is not a plain file: opening a FIFO or a device may never end."""
    mode = _mode(path)
    if mode is None:
        raise UserError(_absent(path))
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is not a plain file")


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    _check_regular(path)
    try:
        # Not mapped into memory: where a mapped file is cut off or its disk fails, the process is
        # killed, and reading raises an error.
        return safe_open(str(path), framework="numpy", backend="pread").__enter__()
    except SafetensorError as error:
        begin = _beginning(path)
        for magic, words in _OTHER_FORMATS.items():
            if begin.startswith(magic):
                raise UserError(f"{path} is not a safetensors file but {words}") from error
        raise UserError(f"{path} is not a safetensors file, or is cut off: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error}") from error


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(32)


def _names(path: Path) -> list[str]:
    """Returns the names of the arrays in a file whose header is right."""
    names = list(_opened(path).keys())
    # Of two arrays of the same name the library takes the last without a word.
    try:
        with path.open("rb") as file:
            header = file.read(int.from_bytes(file.read(8), "little"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    keys = [key for key, _ in json.loads(header, object_pairs_hook=list)]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"{path} has two arrays of the name {shown(twice)}")
    return names
