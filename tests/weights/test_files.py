"""Files of weights that are damaged, odd or in parts: the right arrays, or an error with the name.

What is read is compared with a reader written here, of a page of the format's description.
"""

import errno
import json
import os
import random
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from chaos.inputs import MODEL, SHAPES

from zoo.errors import UserError
from zoo.families import find
from zoo.pretrained import read_variables, tables_of
from zoo.weights.files import find_weights, read_weights, write_weights

DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


def packed(header, data=b"", length=None):
    """The bytes of a file with a header, which may be wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(1,), begin=0, end=4):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def plainly_read(content):
    """The arrays of a file, read without the library."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    data = content[8 + length :]
    return {
        name: np.frombuffer(
            data[slice(*made["data_offsets"])], np.dtype(DTYPES[made["dtype"]])
        ).reshape(made["shape"])
        for name, made in header.items()
    }


LIKE = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
TABLES = tables_of(find("cnn"), MODEL, LIKE["params"])


def good():
    """A small file that fits ``MODEL``, and its bytes."""
    generator = np.random.default_rng(0)
    header, data = {}, b""
    for name, shape in SHAPES.items():
        array = generator.normal(size=shape).astype(np.float32).tobytes()
        header[name] = entry("F32", shape, len(data), len(data) + len(array))
        data += array
    return header, data


def attempt(function):
    """What a function returns, and why it refused to, one of them None."""
    try:
        return function(), None
    except UserError as error:
        return None, str(error)


def assert_right_or_refused(file, content):
    """Reads a file as a user does; True if it was read."""
    file.write_bytes(content)
    arrays, refusal = attempt(lambda: read_weights(file))
    if refusal is None:
        read, refusal = attempt(lambda: {name: arrays[name] for name in arrays})
    if refusal is not None:
        assert str(file) in refusal
        return False
    expected = plainly_read(content)
    assert set(read) == set(expected)
    for name, array in read.items():
        assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape)
        assert array.tobytes() == expected[name].tobytes()
    found, refusal = attempt(lambda: read_variables(arrays, TABLES, LIKE, str(file)))
    if refusal is not None:
        assert str(file) in refusal
        assert len(refusal.splitlines()) < 30
        return False
    variables, _ = found
    # The last bias has the same layout in both.
    np.testing.assert_array_equal(variables["params"]["fc2"]["bias"], expected["fc2.bias"])
    for leaf in jax.tree.leaves(variables):
        assert leaf.dtype == np.float32
        assert np.isfinite(leaf).all()
    return True


def test_the_good_file_is_read(tmp_path):
    assert assert_right_or_refused(tmp_path / "w.safetensors", packed(*good()))


def test_files_with_random_damage_are_read_right_or_refused_by_name(tmp_path):
    header, data = good()
    whole, chance = packed(header, data), random.Random(0)
    outcomes = []
    for case in range(400):
        damaged = bytearray(whole)
        if case % 4 == 0:  # cut off
            del damaged[chance.randrange(len(whole)) :]
        elif case % 4 == 1:  # a flipped bit
            damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        elif case % 4 == 2:  # a block of zeros or of noise, most often in the header
            begin = chance.randrange(len(whole) if case % 8 == 2 else len(whole) - len(data))
            for place in range(begin, min(begin + chance.randrange(1, 64), len(whole))):
                damaged[place] = 0 if case % 16 < 8 else chance.randrange(256)
        else:  # bytes that were lost, or came in twice
            begin = chance.randrange(len(whole))
            block = damaged[begin : begin + chance.randrange(1, 32)]
            damaged[begin : begin + (len(block) if case % 8 == 3 else 0)] = (
                b"" if case % 8 == 3 else block
            )
        outcomes.append(assert_right_or_refused(tmp_path / "w.safetensors", bytes(damaged)))
    # Neither is everything refused nor everything read.
    assert 10 < sum(outcomes) < 200


HEADERS = {
    "no bytes": b"",
    "seven bytes": b"1234567",
    "a length of zero": struct.pack("<Q", 0),
    "a huge length": packed(b"{}", length=2**63),
    "a length above the file's": packed(b"{}", length=3),
    "no JSON": packed(b"{:"),
    "deep JSON": packed(b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "a list": packed(b"[]"),
    "a number": packed(b"3"),
    "names that are not UTF-8": packed(b'{"\xff":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "half a surrogate": packed(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'),
    "an unknown type": packed({"a": entry("F31")}, bytes(4)),
    "no type": packed({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "a negative size": packed({"a": entry(shape=(-1,))}, bytes(4)),
    "a size of text": packed({"a": entry(shape=("1",))}, bytes(4)),
    "a size that is no whole number": packed({"a": entry(shape=(1.5,))}, bytes(4)),
    "sizes whose product overflows": packed({"a": entry(shape=(2**62, 8), end=0)}),
    "sizes beyond the data": packed({"a": entry(shape=(2**40,))}, bytes(4)),
    "an axis too long for numpy": packed({"a": entry(shape=(0, 2**63), end=0)}),
    "axes too many for numpy": packed({"a": entry(shape=(1,) * 100)}, bytes(4)),
    "offsets out of range": packed({"a": entry(begin=4, end=8)}, bytes(4)),
    "offsets in the wrong order": packed({"a": entry(begin=4, end=0)}, bytes(4)),
    "negative offsets": packed({"a": entry(begin=-4, end=0)}, bytes(4)),
    "offsets that overlap": packed(
        {"a": entry(shape=(2,), end=8), "b": entry(shape=(2,), begin=4, end=12)}, bytes(12)
    ),
    "a hole between arrays": packed({"a": entry(), "b": entry(begin=8, end=12)}, bytes(12)),
    "data that belong to no array": packed({"a": entry()}, bytes(8)),
    "a type of another width": packed({"a": entry("F16")}, bytes(4)),
    "one name twice": packed(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "metadata that are no text": packed({"__metadata__": {"a": 3}, "b": entry()}, bytes(4)),
    "float8": packed({"a": entry("F8_E4M3", (4,))}, bytes(4)),
    "float4": packed({"a": entry("F4", (8,))}, bytes(4)),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_are_wrong_are_refused_by_the_files_name(name, tmp_path):
    assert not assert_right_or_refused(tmp_path / "w.safetensors", HEADERS[name])


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_are_read_as_they_are_whatever_their_type(dtype, tmp_path):
    file, width = tmp_path / "w.safetensors", np.dtype(DTYPES[dtype]).itemsize
    content = packed(
        {
            "scalar": entry(dtype, (), 0, width), "none": entry(dtype, (0, 3), width, width),
            "matrix": entry(dtype, (2, 3), width, 7 * width),
        },
        bytes([1, 0] * 28)[: 7 * width],
    )  # fmt: skip
    file.write_bytes(content)
    arrays, expected = read_weights(file), plainly_read(content)
    assert len(arrays) == 3
    for name in expected:
        assert arrays[name].shape == expected[name].shape
        assert arrays[name].dtype == expected[name].dtype
        assert arrays[name].tobytes() == expected[name].tobytes()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><title>Sign in</title>", "a web page"),
        (b"PK\x03\x04" + bytes(40), "a zip archive, such as a file of torch.save"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a pickled file of torch.save"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file"),
    ],
)
def test_other_formats_under_the_name_are_called_by_theirs(content, words, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError, match=words) as refusal:
        read_weights(find_weights(file))
    assert str(file) in str(refusal.value)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    def refused(path, words):
        with pytest.raises(UserError, match=words) as refusal:
            read_weights(find_weights(path))
        assert str(path)[:60] in str(refusal.value)

    os.mkfifo(tmp_path / "pipe.safetensors")
    refused(tmp_path / "pipe.safetensors", "not a plain file")
    (tmp_path / "folder" / "model.safetensors").mkdir(parents=True)
    refused(tmp_path / "folder", "not a plain file")
    (tmp_path / "dangling.safetensors").symlink_to(tmp_path / "gone")
    refused(tmp_path / "dangling.safetensors", "a link to what does not exist")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "model.safetensors").symlink_to(tmp_path / "blob")
    refused(tmp_path / "cache", "a link to what does not exist")
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")
    refused(tmp_path / "loop.safetensors", os.strerror(errno.ELOOP))
    refused(tmp_path / "w.safetensors" / "below", "there is no file")
    refused("~nobody-of-this-name/w.safetensors", "home directory")
    refused(tmp_path / ("x" * 300), os.strerror(errno.ENAMETOOLONG))
    with pytest.raises(UserError, match="is not a path"):
        find_weights("w\0.safetensors")
    refused("/dev/null", "not a plain file")


def test_a_file_that_is_cut_while_it_is_open_is_an_error_not_a_signal(tmp_path):
    file = tmp_path / "w.safetensors"
    file.write_bytes(packed({"a": entry(shape=(10_000,), end=40_000)}, bytes(40_000)))
    arrays = read_weights(file)
    os.truncate(file, 4_000)
    with pytest.raises(UserError, match="a cannot be read"):
        arrays["a"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["pytorch_model.bin"], "pytorch_model.bin is a pickled file.*convert it with"),
        (["unet.safetensors", "text.safetensors"], "give the path of one file.*text.safetensors"),
        (["model-00001-of-00002.safetensors"], "no model.safetensors.index.json for its 1 parts"),
        (["checkpoints", "config.json"], "the folder of a run.*zoo export --workdir"),
        ([], "has no model.safetensors and no model.safetensors.index.json"),
    ],
)
def test_a_folder_without_the_file_says_what_it_has(names, words, tmp_path):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=words):
        find_weights(tmp_path)


def test_what_cannot_be_written_is_an_error_and_leaves_what_was_there(tmp_path):
    arrays = {"a": np.ones((2, 3), np.float32).T}
    file = write_weights(tmp_path / "out", arrays, {})
    np.testing.assert_array_equal(read_weights(file)["a"], arrays["a"])
    assert sorted(path.name for path in file.parent.iterdir()) == [
        "checksums.json",
        "config.json",
        "model.safetensors",
    ]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to .*file"):
        write_weights(tmp_path / "file", arrays, {})


def shards(folder):
    """A folder of two files with an index, and their arrays."""
    from safetensors.numpy import save_file

    arrays = {name: np.full((2, 2), i, np.float32) for i, name in enumerate(("a", "b", "c"))}
    parts = {
        "model-00001-of-00002.safetensors": ("a", "b"),
        "model-00002-of-00002.safetensors": ("c",),
    }
    for file, names in parts.items():
        save_file({name: arrays[name] for name in names}, str(folder / file))
    where = {name: file for file, names in parts.items() for name in names}
    index = {"metadata": {"total_size": 48}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return arrays


def test_files_in_parts_are_read_as_one(tmp_path):
    expected = shards(tmp_path)
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        arrays = read_weights(find_weights(path))
        assert set(arrays) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(arrays[name], array)
    with pytest.raises(UserError, match="only some of the arrays"):
        read_weights(find_weights(tmp_path / "model-00001-of-00002.safetensors"))


PLACES = {"a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "has no 'weight_map'"),
        ('{"weight_map": {}}', "has no 'weight_map'"),
        ('{"weight_map": {"a": 3}}', "names 3, which is not the name of a file"),
        ('{"weight_map": {"a": "../a.safetensors"}}', "which is not the name of a file"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "1 are missing, such as gone.safetensors"),
        (json.dumps({"weight_map": PLACES | {"c": PLACES["a"]}}), "1 of 3 arrays .* such as c in"),
        (json.dumps({"weight_map": {"a": PLACES["a"]}}), "1 arrays more .* such as b"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(index, words, tmp_path):
    shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=words) as refusal:
        read_weights(find_weights(tmp_path))
    assert "model.safetensors.index.json" in str(refusal.value)


def test_the_hub_gives_one_file_or_the_parts_and_their_description(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    expected = shards(tmp_path)
    asked = []

    def download(name, file):
        asked.append(file)
        if not (tmp_path / file).exists():
            raise EntryNotFoundError(file)
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert set(read_weights(find_weights("owner/model"))) == set(expected)
    assert asked == [
        "model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors", "config.json",
    ]  # fmt: skip
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match="owner/model has no model.safetensors on the hub"):
        find_weights("owner/model")
