"""Images of one's own: what is found, how it is divided, and what is refused by name."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import zoo
import zoo.inference
from zoo import cli, commands
from zoo.data import folders
from zoo.data.images import load_images
from zoo.errors import UserError


def picture(seed, side=9):
    return np.random.default_rng(seed).integers(0, 256, (side, side + 1, 3), dtype=np.uint8)


def fill(folder, classes=("cat", "dog"), count=20):
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(picture(100 * label + index)).save(folder / name / f"{index}.png")
    return folder


def names(files):
    return {file.relative_to(file.parents[1]).as_posix() for file in files.files}


def test_a_folder_of_classes_is_divided_by_class_and_for_good(tmp_path):
    found = folders.read_folder(fill(tmp_path / "a"), 0.0)
    classes, splits = found.classes, found.splits
    assert classes == ("cat", "dog")
    assert {split: len(files) for split, files in splits.items()} == {
        "train": 32, "validation": 4, "test": 4,
    }  # fmt: skip
    for files in splits.values():
        assert files.labels.count(0) == files.labels.count(1)
    everything = [names(files) for files in splits.values()]
    assert len(set.union(*everything)) == 40 == sum(map(len, everything))
    again = folders.read_folder(fill(tmp_path / "b"), 0.0).splits
    assert all(names(again[split]) == names(splits[split]) for split in splits)


def test_one_more_image_moves_few_others(tmp_path):
    before = folders.read_folder(fill(tmp_path / "a", count=50), 0.0).splits
    after = folders.read_folder(fill(tmp_path / "b", count=51), 0.0).splits
    assert len(names(before["train"]) - names(after["train"])) <= 4


def test_splits_of_its_own_stay(tmp_path):
    for split, count in (("train", 10), ("test", 3)):
        fill(tmp_path / split, count=count)
    splits = folders.read_folder(tmp_path, 0.0).splits
    assert {split: len(files) for split, files in splits.items()} == {"train": 20, "test": 6}
    splits = folders.read_folder(tmp_path, 0.2).splits
    assert {s: len(f) for s, f in splits.items()} == {"train": 16, "test": 6, "validation": 4}


def test_the_data_set_is_read_by_name_and_path(tmp_path):
    fields = {"name": "image_folder", "path": str(fill(tmp_path)), "transform": "cifar"}
    dataset = load_images(**(fields | {"image_size": 8}))
    assert dataset.vocabularies["classes"].symbols == ("cat", "dog")
    assert dataset.model_fields == {"num_classes": 2}
    example = dataset.transform(True)(dataset.open("train")[0], np.random.default_rng(0))
    assert example["image"].shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "there is no such folder"),
        (lambda path: fill(path, classes=("cat",)), "has 1 folders"),
        (lambda path: fill(path, count=2), "too few to keep some back"),
        (
            lambda path: (path / "train" / "a").mkdir(parents=True),
            "there must be 'train' and 'test'",
        ),
        (lambda path: [fill(path / split) for split in ("train", "val")], "call it 'validation'"),
        (
            lambda path: [fill(path / "train"), fill(path / "test", classes=("cat", "cow"))],
            "'train' has no class 'cow'",
        ),
        (lambda path: (fill(path), (path / "empty").mkdir()), "empty has no images"),
    ],
)
def test_folders_laid_out_otherwise_are_refused(tmp_path, make, words):
    make(tmp_path / "data")
    with pytest.raises(UserError, match=words):
        folders.read_folder(tmp_path / "data", 0.0)


def saved(folder, image, name, **options):
    image.save(folder / name, **options)
    return folder / name


def test_unusual_images_are_seen_as_they_look(tmp_path):
    pixels = picture(0)
    rgb = Image.fromarray(pixels)
    np.testing.assert_array_equal(folders.read_image(saved(tmp_path, rgb, "a.png")), pixels)
    gray = saved(tmp_path, rgb.convert("L"), "gray.png")
    assert folders.read_image(gray).shape == pixels.shape
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    found = folders.read_image(saved(tmp_path, deep, "deep.png"))
    np.testing.assert_array_equal(found, np.repeat(pixels[..., :1], 3, axis=-1))
    cmyk = folders.read_image(saved(tmp_path, rgb.convert("CMYK"), "cmyk.tif"))
    np.testing.assert_array_equal(cmyk, np.asarray(rgb.convert("CMYK").convert("RGB")))
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (folders.read_image(saved(tmp_path, clear, "clear.png")) == 255).all()
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    moving = saved(tmp_path, frames[0], "moving.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(folders.read_image(moving)[0, 0], [255, 0, 0])
    turned = Image.new("RGB", (6, 4))
    exif = turned.getexif()
    exif[0x0112] = 6
    assert folders.read_image(saved(tmp_path, turned, "turned.jpg", exif=exif)).shape == (6, 4, 3)


def test_broken_and_enormous_images_are_named(tmp_path):
    whole = saved(tmp_path, Image.fromarray(picture(0, side=60)), "whole.jpg")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[:900])
    with pytest.raises(UserError, match=r"cut\.jpg is broken or cut off"):
        folders.read_image(cut)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text\.png cannot be read as an image"):
        folders.read_image(tmp_path / "text.png")
    with pytest.raises(UserError, match="there is no such file"):
        folders.read_image(tmp_path / "absent.png")
    huge = saved(tmp_path, Image.new("1", (12_000, 12_000)), "huge.png")
    with pytest.raises(UserError, match=r"huge\.png has 12000 x 12000 pixels"):
        folders.read_image(huge)


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_npz_files_are_read(tmp_path):
    x, y = np.zeros((30, 5, 5), np.uint8), np.arange(30) % 3
    classes, splits = folders.read_npz(npz(tmp_path / "one.npz", x=x, y=y))
    assert classes == ("0", "1", "2")
    assert {split: images.shape for split, (images, _) in splits.items()} == {
        "test": (3, 5, 5, 1), "validation": (3, 5, 5, 1), "train": (24, 5, 5, 1),
    }  # fmt: skip
    file = npz(tmp_path / "two.npz", x_train=x, y_train=y[:, None], x_test=x, y_test=y)
    assert set(folders.read_npz(file)[1]) == {"train", "test"}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x_train": np.zeros((2, 3, 3), np.uint8)}, "it must have x_train, y_train"),
        ({"x": np.zeros((30, 3, 3)), "y": np.zeros(30, int)}, "float64"),
        ({"x": np.zeros((30, 3, 3), np.uint8), "y": np.zeros(30)}, "one integer for each"),
        ({"x": np.zeros((30, 3, 3), np.uint8), "y": np.zeros(30, int) - 1}, "labels begin with 0"),
        ({"x": np.zeros((30, 3, 3, 4), np.uint8), "y": np.zeros(30, int)}, "4 channels"),
    ],
)
def test_npz_files_of_other_arrays_are_refused(tmp_path, arrays, words):
    with pytest.raises(UserError, match=words):
        folders.read_npz(npz(tmp_path / "x.npz", **arrays))


def test_a_run_on_a_folder_is_asked_about_files(tmp_path, capsys):
    generator = np.random.default_rng(0)
    for name, level in (("bright", 200), ("dark", 20)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(30):
            pixels = generator.integers(level, level + 40, (12, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
    options = [
        "--config.data.name=image_folder", f"--config.data.path={tmp_path / 'photos'}",
        "--config.data.image_size=8", "--config.model.num_classes=0",
        "--config.model.features=(4, 4, 4)", "--config.model.hidden_features=8",
        "--config.model.dropout_rate=0.0", "--config.optimizer.learning_rate=0.01",
        "--config.train.steps=40", "--config.train.batch_size=16", "--config.mesh.data=1",
    ]  # fmt: skip
    workdir = tmp_path / "run"
    zoo.run(commands.override(commands.load_config("configs/cnn.py"), options), workdir)
    capsys.readouterr()
    files = [str(tmp_path / "photos" / name / "0.png") for name in ("bright", "dark")]
    cli.main(["predict", f"--workdir={workdir}", "--json", *files])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [max(row["output"], key=row["output"].get) for row in rows] == ["bright", "dark"]
    loaded = zoo.load(workdir)
    assert loaded.labels == ("bright", "dark")
    images = np.stack([loaded.preprocess(folders.read_image(file)) for file in files])
    shares = jax.nn.softmax(loaded.module.apply(loaded.variables, images))
    for row, expected in zip(rows, shares, strict=True):
        found = [row["output"][name] for name in loaded.labels]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(UserError, match=r"absent\.png: there is no such file"):
        zoo.tasks.classification.predict(loaded, [files[0], "absent.png"])
