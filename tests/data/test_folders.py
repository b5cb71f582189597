"""Images of one's own: what is found, how it is divided, and what is refused by name."""

import collections
import json
import os
import types
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

import zoo
import zoo.inference
from zoo import cli, commands
from zoo.data import DataError, describe, folders, image_files
from zoo.data.images import load_images
from zoo.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Keeps what is remembered of images out of the user's own folder."""
    folder = tmp_path_factory.mktemp("cache")
    own = types.SimpleNamespace(cache_folder=lambda: folder)
    monkeypatch.setattr(image_files, "process", own)
    return folder


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
        (
            lambda path: [fill(path / split) for split in ("train", "val", "valid")],
            "'val' and 'valid' are both the validation split",
        ),
        (
            lambda path: (fill(path), fill(path / "val")),
            "there must be 'train' and 'test' or 'val'",
        ),
        (
            lambda path: (fill(path), fill(path / "train")),
            "there must be 'train' and 'test' or 'val'",
        ),
        (
            lambda path: (fill(path), (path / "pet").symlink_to(path / "dog")),
            "dog and .*pet are the same folder",
        ),
        (lambda path: path.write_text("no folder"), "is not a folder"),
        (
            lambda path: (fill(path), (path / "cow").mkdir(), (path / "cow/a.heic").touch()),
            r"cow has no images, but files ending in \.heic \(1\)",
        ),
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


def test_what_is_no_image_is_left_out_and_counted(tmp_path):
    path = fill(tmp_path / "photos")
    for name in (".DS_Store", "cat/._0.png", "cat/._1.png", "dog/Thumbs.db", "cat/notes", "a.png"):
        (path / name).write_bytes(b"no image")
    for folder in ("cat/.ipynb_checkpoints", "__MACOSX/cat", "dog/@eaDir"):
        (path / folder).mkdir(parents=True)
        (path / folder / "0.png").write_bytes((path / "cat" / "0.png").read_bytes())
    (path / "dog" / "gone.png").symlink_to("nothing")
    (path / "dog" / "itself.png").symlink_to("itself.png")
    os.mkfifo(path / "cat" / "pipe.png")
    (path / "cat" / "zero.png").symlink_to("/dev/zero")
    found = folders.read_folder(path, 0.0)
    assert found.classes == ("cat", "dog")
    assert sum(map(len, found.splits.values())) == 40
    (said,) = found.notes
    for words in (
        "hidden files (3)", "hidden folders (3)", "files ending in .db (1)",
        "files without a suffix (1)", "FIFOs, sockets and devices (2)",
        "links that lead nowhere (2)", "images outside the folders of classes (1)",
    ):  # fmt: skip
        assert words in said


def test_folders_are_entered_whatever_their_name_and_links_are_followed_once(tmp_path):
    path, elsewhere = fill(tmp_path / "photos"), fill(tmp_path / "more", classes=("old", "new"))
    (elsewhere / "old" / "back").symlink_to(path)
    (elsewhere / "old" / "root").symlink_to("/")
    (path / "cat" / "x.png").mkdir()
    (path / "cat" / "1.png").rename(path / "cat" / "x.png" / "1.png")
    (path / "cat" / "old").symlink_to(elsewhere / "old")
    (path / "cat" / "again").symlink_to(elsewhere / "old")
    (path / "dog" / "up").symlink_to("..")
    (path / "dog" / "cats").symlink_to(path / "cat")
    (path / "cow").symlink_to(elsewhere / "new")
    for name in ("z.png", "w.png"):
        (path / "dog" / name).symlink_to("0.png")
    found = folders.read_folder(path, 0.0)
    counts = collections.Counter(
        found.classes[label] for files in found.splits.values() for label in files.labels
    )
    assert counts == {"cat": 40, "dog": 20, "cow": 20}
    everything = [file for files in found.splits.values() for file in files.files]
    assert len({os.path.realpath(file) for file in everything}) == len(everything)
    assert "links to folders that are read already or lie above (5)" in found.notes[0]
    assert "further names of the same image (2)" in found.notes[0]


@pytest.mark.parametrize(
    ("made", "classes", "sizes"),
    [
        # ImageNet's folders, and what people call them.
        ({"train": 9, "val": 3}, 2, {"train": 18, "test": 6}),
        ({"Training": 9, "valid": 3, "Testing": 4}, 2, {"train": 18, "validation": 6, "test": 8}),
        ({"train": 9, "val": 3, "other": 5}, 2, {"train": 18, "test": 6}),
    ],
)
def test_splits_have_several_names(tmp_path, made, classes, sizes):
    for split, count in made.items():
        fill(tmp_path / split, count=count)
    found = folders.read_folder(tmp_path, 0.0)
    assert len(found.classes) == classes
    assert {split: len(files) for split, files in found.splits.items()} == sizes
    said = " ".join(found.notes)
    assert ("val is the test split" in said) == ("val" in made)
    assert ("folder 'other', which is no split with classes (1)" in said) == ("other" in made)


def test_validation_comes_from_train_where_val_is_the_test_split(tmp_path):
    fill(tmp_path / "train", count=10)
    fill(tmp_path / "val", count=3)
    (tmp_path / "test").mkdir()  # ImageNet's has images without classes
    Image.fromarray(picture(0)).save(tmp_path / "test" / "0.png")
    found = folders.read_folder(tmp_path, 0.2)
    sizes = {split: len(files) for split, files in found.splits.items()}
    assert sizes == {"train": 16, "validation": 4, "test": 6}
    assert {file.parents[1].name for file in found.splits["validation"].files} == {"train"}
    assert {file.parents[1].name for file in found.splits["test"].files} == {"val"}


@pytest.mark.parametrize(
    "names", [("bus", "car", "train"), ("test", "control"), ("train", "val", "x")]
)
def test_a_class_may_be_called_as_a_split_is(tmp_path, names):
    found = folders.read_folder(fill(tmp_path, classes=names), 0.0)
    assert found.classes == tuple(sorted(names))
    assert sum(map(len, found.splits.values())) == 20 * len(names)


def test_names_need_not_be_utf8(tmp_path, capsys):
    fill(tmp_path, classes=("dog",))
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    content = (tmp_path / "dog" / "0.png").read_bytes()
    for index in range(20):
        with open(os.fsencode(tmp_path) + b"/caf\xe9/\xff%d.png" % index, "wb") as file:
            file.write(content)
    with open(os.fsencode(tmp_path) + b"/caf\xe9/x.b\xe9", "wb") as file:
        file.write(b"no image")
    found = folders.read_folder(tmp_path, 0.0)
    assert found.classes == (r"caf\xe9", "dog")
    assert len(found.splits["train"]) == 32
    print(*found.classes, *found.notes)
    json.dumps(found.classes).encode()
    assert r"files ending in .b\udce9 (1)" in capsys.readouterr().out
    with open(os.fsencode(tmp_path) + b"/caf\xe9/\xff0.png", "wb") as file:
        file.write(content[:60])
    with pytest.raises(UserError, match=r"caf\\udce9/\\udcff0\.png is broken"):
        folders.read_folder(tmp_path, 0.1)


def damage(path, *names):
    for name in names:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: len(content) // 2])


def test_broken_images_are_named_before_training_and_may_be_left_out(tmp_path):
    path = fill(tmp_path)
    damage(path, "cat/3.png", "dog/5.png")
    words = r"2 of 40 images cannot be used.*skip_broken=0.*cat/3\.png is.*dog/5\.png is.*_broken=2"
    with pytest.raises(UserError, match=words):
        folders.read_folder(path, 0.0)
    with pytest.raises(UserError, match="data.skip_broken=1 are allowed"):
        describe("image_folder", path=str(path), skip_broken=1)
    fields = {"path": str(path), "transform": "cifar", "image_size": 8}
    dataset = load_images("image_folder", skip_broken=2, **fields)
    assert sum(dataset.sizes.values()) == 38
    assert "left out as broken (2)" in dataset.notes[0]
    assert sum(len(dataset.open(split)) for split in dataset.sizes) == 38
    for name in ("mnist_subset", "digit_scenes"):
        with pytest.raises(DataError, match="data.skip_broken=2"):
            load_images(name, skip_broken=2)
    damage(path, *(f"dog/{index}.png" for index in range(20)))
    with pytest.raises(UserError, match="all images of the class 'dog' are broken"):
        folders.read_folder(path, 0.0, skip_broken=30)


def test_whole_images_are_remembered_until_they_change(tmp_path, cache, monkeypatch):
    path, read = fill(tmp_path), []
    whole = image_files.read_image
    monkeypatch.setattr(
        image_files,
        "read_image",
        lambda file, **options: (read.append(file), whole(file, **options)),
    )

    def count(skip_broken):
        read.clear()
        folders.read_folder.cache_clear()
        folders.read_folder(path, 0.0, skip_broken)
        return len(read)

    assert (count(9), count(9)) == (40, 0)
    damage(path, "cat/3.png")
    assert (count(9), count(9)) == (1, 1)
    Image.fromarray(picture(7)).save(path / "cat" / "3.png")
    assert (count(9), count(9)) == (1, 0)
    (memory,) = (cache / "images").iterdir()
    memory.write_bytes(memory.read_bytes()[:83])
    assert (count(9), count(9)) == (30, 0)
    memory.write_bytes(np.random.default_rng(0).bytes(1000))
    assert (count(9), count(9)) == (40, 0)
    memory.unlink()
    memory.mkdir()
    folders.read_folder.cache_clear()
    (said,) = folders.read_folder(path, 0.0).notes
    assert "the next run reads all images again" in said


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
        (
            {"x": np.zeros((60, 3, 3), np.uint8), "y": np.zeros(40, int)},
            "each of the 60 images of x",
        ),
        (
            {"x": np.zeros((40, 3, 3), np.uint8), "y": np.zeros(60, int)},
            "each of the 40 images of x",
        ),
        ({"x": np.zeros((30, 3, 3), np.uint8), "y": np.array(3)}, r"y is int64\[\]"),
        ({"x": np.array(3, np.uint8), "y": np.zeros(30, int)}, r"x is uint8\[\]"),
        ({"x": np.zeros((30, 0, 3), np.uint8), "y": np.zeros(30, int)}, r"x is uint8\[30, 0, 3\]"),
        ({"x": np.zeros((2, 3, 3), np.uint8), "y": np.arange(2)}, "has 2 images: too few"),
        ({"x": np.zeros((30, 3, 3), np.uint8), "y": np.full(30, 10**8)}, "the label 100000000"),
        (
            {"x": np.zeros((30, 3, 3), np.uint8), "y": np.full(30, 2**64 - 1, np.uint64)},
            "the label 18446744073709551615",
        ),
        ({"x": np.zeros((30, 3, 3), np.uint8), "y": np.array(["a"] * 30)}, "one integer for each"),
        ({"x": np.zeros((30, 3, 3), np.uint8), "y": np.array([{}] * 30)}, "array 'y', cannot be"),
        ({"y": np.zeros(30, int)}, "has 'y' but no 'x'"),
        (
            {
                "x_train": np.zeros((9, 3, 3), np.uint8),
                "y_train": np.zeros(9, int),
                "x_test": np.zeros((5, 3, 3), np.uint8),
                "y_test": np.zeros(4, int),
            },
            "y_test is int64.*each of the 5 images of x_test",
        ),
    ],
)
def test_npz_files_of_other_arrays_are_refused(tmp_path, arrays, words):
    with pytest.raises(UserError, match=words):
        folders.read_npz(npz(tmp_path / "x.npz", **arrays))


def test_npz_files_that_are_something_else_are_named(tmp_path):
    x, y = np.zeros((30, 5, 5), np.uint8), np.arange(30) % 3
    whole = npz(tmp_path / "whole.npz", x=x, y=y)
    for share in (0.0, 0.1, 0.5, 0.99):
        (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
        with pytest.raises(UserError, match=r"cut\.npz.* cannot be read as an npz file"):
            folders.read_npz(tmp_path / "cut.npz")
    np.save(tmp_path / "one.npy", x)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(UserError, match=r"one\.npz holds one array"):
        folders.read_npz(tmp_path / "one.npz")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as file:
        file.writestr("x.npy", "no array")
        file.writestr("y.npy", "no array")
    with pytest.raises(UserError, match=r"other\.npz, array 'x', cannot be read"):
        folders.read_npz(tmp_path / "other.npz")
    with pytest.raises(UserError, match="is a folder, not a file"):
        folders.read_npz(tmp_path)
    with pytest.raises(UserError, match=r"data\.path='.*absent\.npz': there is no such file"):
        folders.read_npz(tmp_path / "absent.npz")


def test_npz_files_may_hold_other_arrays_and_labels_of_true_and_false(tmp_path):
    x = np.zeros((30, 5, 5), np.uint8)
    file = npz(tmp_path / "a.npz", x=x, y=np.arange(30) % 2 == 0, names=np.array([{}]))
    classes, splits = folders.read_npz(file)
    assert classes == ("0", "1")
    assert sorted(np.concatenate([labels for _, labels in splits.values()])) == [0] * 15 + [1] * 15


def test_a_run_on_a_folder_is_asked_about_files(tmp_path, capsys):
    generator = np.random.default_rng(0)
    for name, level in (("bright", 200), ("dark", 20)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(30):
            pixels = generator.integers(level, level + 40, (12, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
        (tmp_path / "photos" / name / "._0.png").write_bytes(b"no image")
    options = [
        "--config.data.name=image_folder", f"--config.data.path={tmp_path / 'photos'}",
        "--config.data.image_size=8", "--config.model.num_classes=0",
        "--config.model.features=(4, 4, 4)", "--config.model.hidden_features=8",
        "--config.model.dropout_rate=0.0", "--config.optimizer.learning_rate=0.01",
        "--config.train.steps=40", "--config.train.batch_size=16", "--config.mesh.data=1",
    ]  # fmt: skip
    workdir = tmp_path / "run"
    zoo.run(commands.override(commands.load_config("configs/cnn.py"), options), workdir)
    assert "photos: hidden files (2)" in capsys.readouterr().out
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
