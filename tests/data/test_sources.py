"""Sources: the embedded digits are what they say, and missing data are named at once."""

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from zoo import data
from zoo.data import prepare

ROOT = Path(__file__).parents[2]
TFDS = Path(os.environ.get("ZOO_DATA_DIR", ROOT.parent / "shared" / "data" / "tfds"))
needs_tfds = pytest.mark.skipif(
    not (TFDS / "mnist").is_dir(), reason=f"no MNIST in {TFDS}: set ZOO_DATA_DIR to a TFDS folder"
)


def test_the_subset_has_its_sizes_and_shares():
    info = data.describe("mnist_subset")
    assert dict(info.sizes) == {"train": 5000, "validation": 1000, "test": 1000}
    assert (info.class_names, info.image_shape) == (tuple("0123456789"), (28, 28, 1))
    # MNIST's own counts by class (LeCun et al.).
    train = np.array([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949])
    test = np.array([980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])
    for split, counts in (("train", train), ("validation", train), ("test", test)):
        source = data.open_source("mnist_subset", split)
        labels = [source[i]["label"] for i in range(len(source))]
        shares = np.bincount(labels, minlength=10) - len(source) * counts / counts.sum()
        assert abs(shares).max() < 1


@needs_tfds
def test_the_subset_is_what_the_script_makes_from_mnist():
    path = ROOT / "scripts" / "make_mnist_subset.py"
    spec = importlib.util.spec_from_file_location("make_mnist_subset", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    made = script.make_subset(str(TFDS))
    with np.load(ROOT / "zoo" / "data" / "embedded" / "mnist_subset.npz") as shipped:
        assert set(shipped) == set(made)
        for name in made:
            np.testing.assert_array_equal(shipped[name], made[name])
    assert not set(made["train_index"]) & set(made["validation_index"])


@needs_tfds
def test_tfds_folders_are_read_and_divided():
    whole = data.describe("mnist", data_dir=str(TFDS))
    assert dict(whole.sizes) == {"train": 60000, "test": 10000}
    options = {"data_dir": str(TFDS), "validation_fraction": 0.1}
    divided = data.describe("mnist", **options)
    assert dict(divided.sizes) == {"train": 54000, "validation": 6000, "test": 10000}
    parts = [data.open_source("mnist", split, **options) for split in ("train", "validation")]
    assert sorted(np.concatenate([part.indices for part in parts])) == list(range(60000))
    source = data.open_source("mnist", "train", data_dir=str(TFDS))
    first = pickle.loads(pickle.dumps(source))[0]
    assert (first["image"].shape, int(first["label"])) == ((28, 28, 1), 4)
    np.testing.assert_array_equal(first["image"], source[0]["image"])
    assert "tensorflow" not in sys.modules
    with pytest.raises(data.DataError, match=r"no split 'validation'.*validation_fraction"):
        data.open_source("mnist", "validation", data_dir=str(TFDS))


@needs_tfds
def test_the_subset_has_the_pixels_of_mnist():
    with np.load(ROOT / "zoo" / "data" / "embedded" / "mnist_subset.npz") as shipped:
        indices = shipped["test_index"]
    ours = data.open_source("mnist_subset", "test")
    theirs = data.open_source("mnist", "test", data_dir=str(TFDS))
    for i in range(0, 1000, 50):
        np.testing.assert_array_equal(ours[i]["image"], theirs[int(indices[i])]["image"])
        assert ours[i]["label"] == theirs[int(indices[i])]["label"]


@needs_tfds
def test_cifar10_has_its_classes():
    info = data.describe("cifar10", data_dir=str(TFDS))
    assert (info.num_classes, info.class_names[6], info.image_shape) == (10, "frog", (32, 32, 3))
    assert data.open_source("cifar10", "test", data_dir=str(TFDS))[0]["image"].dtype == np.uint8


@needs_tfds
def test_only_whole_versions_with_random_access_are_read(tmp_path):
    version = tmp_path / "mnist" / "3.0.1.incompleteAB12"
    version.mkdir(parents=True)
    for file in ("dataset_info.json", "features.json"):
        shutil.copy(next((TFDS / "mnist").glob(f"*/{file}")), version)
    with pytest.raises(data.DataError, match="is not in"):
        data.describe("mnist", data_dir=str(tmp_path))

    # Another version than TFDS knows by name, in TensorFlow's own format.
    version = version.rename(tmp_path / "mnist" / "2.10.0")
    info = json.loads((version / "dataset_info.json").read_text())
    (version / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    assert data.describe("mnist", data_dir=str(tmp_path)).sizes["train"] == 60000
    with pytest.raises(data.DataError, match="2.10.0 is in a format without random access"):
        data.open_source("mnist", "train", data_dir=str(tmp_path))


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_missing_set_names_folder_field_and_command(tmp_path, name):
    with pytest.raises(data.DataError) as refusal:
        data.describe(name, data_dir=str(tmp_path))
    for word in (str(tmp_path), "--config.data.data_dir", f"zoo prepare {name}", "[prepare]"):
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mnits", {}, "Did you mean 'mnist'"),
        ("mnist_subset", {"path": "x"}, "data.path='x'"),
        ("mnist_subset", {"validation_fraction": 0.1}, "validation split of its own"),
        ("mnist", {"validation_fraction": 1.0}, "validation_fraction=1.0"),
    ],
)
def test_what_a_set_cannot_do_is_named(name, options, words):
    with pytest.raises(data.DataError, match=words):
        data.describe(name, **options)


def test_an_unknown_split_lists_the_splits():
    with pytest.raises(data.DataError, match=r"no split 'tset'.*train \(5,000\)"):
        data.open_source("mnist_subset", "tset")


def test_the_embedded_set_needs_no_heavy_import():
    code = (
        "import sys; from zoo import data; data.describe('mnist_subset');"
        "print(sorted({'jax', 'tensorflow_datasets', 'tensorflow', 'grain'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_preparing_says_what_is_in_the_way(monkeypatch):
    with pytest.raises(data.DataError, match="Did you mean 'mnist'"):
        prepare.prepare("mnits")
    with pytest.raises(data.DataError, match="comes with the package"):
        prepare.prepare("mnist_subset")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(data.DataError, match=r"needs TensorFlow.*\[prepare\]"):
        prepare.prepare("mnist")


def test_preparing_without_a_network_gives_up(monkeypatch):
    def unreachable(address, timeout):
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(data.DataError, match="cannot be downloaded.*Network is unreachable"):
        prepare.prepare("mnist")

    assert prepare._PATIENCE < 10  # what the project promises
    test_is_over = threading.Event()

    def silent(address, timeout):
        test_is_over.wait()
        raise TimeoutError

    monkeypatch.setattr(urllib.request, "urlopen", silent)
    monkeypatch.setattr(prepare, "_PATIENCE", 0.1)
    with pytest.raises(data.DataError, match="no answer within 0.1 s"):
        prepare.prepare("mnist")
    test_is_over.set()
