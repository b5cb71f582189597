"""Files that people bring, damaged: they are read, or refused by name."""

import csv
import io
import json
import random
import struct
import wave
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import soundfile
from PIL import Image
from safetensors.numpy import save

from chaos.damage import damaged, edited
from chaos.kinds import Kind
from zoo import building, commands
from zoo.config import check
from zoo.data.datasets import Dataset
from zoo.errors import UserError
from zoo.families import find
from zoo.models import CNN
from zoo.pretrained import read_variables, tables_of
from zoo.weights.files import read_weights

ROOT = Path(__file__).parents[2]
# What a run reads of a data set before it trains, and more: every example of every split.
REFUSED, READ = "refused by name", "read"


def opened(config: str, **fields: object) -> Dataset:
    """Opens data as ``train.py`` does."""
    overrides = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    made = commands.override(
        commands.load_config(str(ROOT / "configs" / f"{config}.py")), overrides
    )
    return building.with_data(check(made))[1]


def read_all(open_data: Callable[[], Dataset], folder: Path) -> str:
    """Reads every example; what is refused is refused with the name of something that is there.

    Raises:
        Exception: anything but a ``UserError`` with the name of the folder, or with the field that
            says how to read it.
    """
    try:
        dataset = open_data()
        generator = np.random.default_rng(0)
        for split in dataset.sizes:
            source, transform = dataset.open(split), dataset.transform(False)
            for index in range(len(source)):
                example = transform(source[index], generator)
                for name, value in example.items():
                    numbers = np.asarray(value)
                    if np.issubdtype(numbers.dtype, np.floating):
                        assert np.isfinite(numbers).all(), f"{split}/{index}: {name} is not finite"
    except UserError as error:
        said = str(error)
    else:
        return READ
    assert str(folder) in said or "data." in said, f"refused without a name: {said}"
    return REFUSED


def _image(chance: random.Random, form: str) -> bytes:
    mode = chance.choice(("RGB", "L", "RGBA", "P", "1", "I;16" if form == "png" else "RGB"))
    if form in ("jpeg", "bmp") and mode in ("RGBA", "P", "I;16"):
        mode = "RGB"
    if form == "webp" and mode in ("1", "P", "I;16"):
        mode = "RGB"
    side = chance.randrange(1, 12)
    plain = Image.effect_noise((side, chance.randrange(1, 12)), 50)
    picture = plain.convert("I").convert("I;16") if mode == "I;16" else plain.convert(mode)
    file = io.BytesIO()
    picture.save(file, form)
    return file.getvalue()


def images(chance: random.Random, folder: Path) -> str:
    """A folder of images of two classes, a few of them damaged, with stray files."""
    for label in ("cat", "dog"):
        (folder / label).mkdir()
        for number in range(6):
            form = chance.choice(("png", "jpeg", "gif", "bmp", "webp", "tiff"))
            content = _image(chance, form)
            if chance.random() < 0.15:
                content = damaged(content, chance)
            (folder / label / f"{number}.{form}").write_bytes(content)
    stray = chance.choice(("._0.png", "Thumbs.db", ".ipynb_checkpoints", "x.png", "sub"))
    if chance.random() < 0.5:
        (folder / "cat" / stray).mkdir()
        (folder / "cat" / stray / "0.png").write_bytes(_image(chance, "png"))
    else:
        (folder / "cat" / stray).write_bytes(chance.randbytes(9))
    skip = chance.choice((0, 0, 12))
    return read_all(
        lambda: opened(
            "cnn", data__name="image_folder", data__path=folder, data__image_size=8,
            data__skip_broken=skip,
        ),
        folder,
    )  # fmt: skip


def sound(chance: random.Random, folder: Path) -> str:
    """Recordings and their texts, a few damaged."""
    lines = ["split\tfile\ttext"]
    for number in range(8):
        form, kind = chance.choice(
            (("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "ULAW"),
             ("FLAC", "PCM_16"), ("OGG", "VORBIS"))
        )  # fmt: skip
        rate = chance.choice((8000, 16000, 44100))
        samples = np.random.default_rng(number).uniform(-0.5, 0.5, chance.randrange(1, 2 * rate))
        channels = np.stack([samples] * chance.choice((1, 2)), axis=1)
        file = io.BytesIO()
        soundfile.write(file, channels, rate, format=form, subtype=kind)
        content = file.getvalue()
        if chance.random() < 0.2:
            content = damaged(content, chance)
        name = f"{number}.{form.lower()}"
        (folder / name).write_bytes(content)
        split = ("train", "train", "validation", "test")[number % 4]
        lines.append(f"{split}\t{name}\t{'one two three'[: chance.randrange(3, 13)]}")
    table = "\n".join(lines) + "\n"
    written = edited(table, chance) if chance.random() < 0.3 else table.encode()
    (folder / "transcripts.tsv").write_bytes(written)
    return read_all(
        lambda: opened("speech", data__name="wav_folder", data__path=folder, data__max_symbols=16),
        folder,
    )


def odd_wav(chance: random.Random, folder: Path) -> str:
    """WAV files whose header says what cannot be."""
    for number in range(4):
        file = io.BytesIO()
        with wave.open(file, "wb") as made:
            made.setnchannels(1)
            made.setsampwidth(2)
            made.setframerate(8000)
            made.writeframes(bytes(4000))
        content = bytearray(file.getvalue())
        if number == 0:
            field = chance.choice(
                ((22, "H"), (24, "I"), (28, "I"), (32, "H"), (34, "H"), (40, "I"))
            )
            size = {"H": 2, "I": 4}[field[1]]
            value = chance.choice((0, 1, 2 ** (8 * size) - 1, chance.randrange(2 ** (8 * size))))
            content[field[0] : field[0] + size] = struct.pack("<" + field[1], value)
        (folder / f"{number}.wav").write_bytes(content)
    splits = ("train", "train", "validation", "test")
    rows = "".join(f"{split}\t{number}.wav\tone\n" for number, split in enumerate(splits))
    (folder / "transcripts.tsv").write_text("split\tfile\ttext\n" + rows)
    return read_all(lambda: opened("speech", data__name="wav_folder", data__path=folder), folder)


def arrays(chance: random.Random, folder: Path) -> str:
    """An .npz of images and labels with wrong shapes, types or bytes."""
    generator = np.random.default_rng(chance.randrange(10**6))
    images = generator.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(20) % 2
    wrong = chance.choice(("none", "labels", "type", "shape", "large", "scalar", "bytes", "names"))
    if wrong == "labels":
        labels = labels[: chance.randrange(20)]
    elif wrong == "type":
        images = images.astype(chance.choice(("float32", "float64", "int64", "complex64", "bool")))
    elif wrong == "shape":
        images = images.reshape(chance.choice(((20, 64, 3), (20, 192), (60, 8, 8), (1, -1))))
    elif wrong == "large":
        labels = labels + chance.choice((10**8, -1, 2**40))
    elif wrong == "scalar":
        labels = np.int64(1)
    x, y = ("a", "b") if wrong == "names" else ("x", "y")
    path = folder / "data.npz"
    np.savez(path, **{x: images, y: labels})
    if wrong == "bytes":
        path.write_bytes(damaged(path.read_bytes(), chance))
    return read_all(lambda: opened("cnn", data__name="npz", data__path=path), path)


def _rows(form: str, rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    if form == "jsonl":
        lines = [json.dumps(dict(zip(header, row, strict=True))) for row in rows]
        return "\n".join(lines) + "\n"
    file = io.StringIO()
    writer = csv.writer(file, delimiter="\t" if form == "tsv" else ",", lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()


def tables(chance: random.Random, folder: Path) -> str:
    """Labelled messages as CSV, TSV or JSON lines with odd pieces."""
    form = chance.choice(("csv", "tsv", "jsonl"))
    rows = [(chance.choice(("spam", "ham")), f"message {n}, with a comma") for n in range(40)]
    path = folder / f"table.{form}"
    path.write_bytes(edited(_rows(form, rows, ("label", "text")), chance))
    return read_all(lambda: opened("classify_text", data__name="messages", data__path=path), path)


def pairs(chance: random.Random, folder: Path) -> str:
    """Pairs of source and target as CSV, TSV or JSON lines with odd pieces."""
    form = chance.choice(("csv", "tsv", "jsonl"))
    rows = [(f"word{n}", f"target {n % 7}") for n in range(200)]
    shares = {"data__validation_fraction": 0.2, "data__test_fraction": 0.2}
    path = folder / f"pairs.{form}"
    path.write_bytes(edited(_rows(form, rows, ("source", "target")), chance))
    return read_all(
        lambda: opened("transformer", data__name="pairs", data__path=path, **shares), path
    )


def texts(chance: random.Random, folder: Path) -> str:
    """A plain text with odd pieces, for characters and for words."""
    path = folder / "text.txt"
    path.write_bytes(edited("To be, or not to be: that is the question.\n" * 60, chance))
    if chance.random() < 0.5:
        return read_all(
            lambda: opened(
                "lstm", data__name="text", data__path=path, data__context=16, data__eval_context=32
            ),
            path,
        )
    return read_all(lambda: opened("word_lm", data__name="sentences", data__path=path), path)


def series(chance: random.Random, folder: Path) -> str:
    """A table of values in time with odd pieces, gaps and steps of the calendar."""
    step = chance.choice(("D", "W", "MS", "ME", "B", "h", "QS", "YS"))
    import pandas

    times = pandas.date_range("1981-03-01", periods=400, freq=step)
    kept = [time for time in times if chance.random() > 0.02]
    text = "".join(f"{time.isoformat()},{chance.gauss(10, 1):.3f}\n" for time in kept)
    table = "time,value\n" + text
    path = folder / "series.csv"
    path.write_bytes(edited(table, chance) if chance.random() < 0.7 else table.encode())
    return read_all(
        lambda: opened(
            "forecast", data__name="series", data__path=path, data__time_column="time",
            data__value_column="value", data__context=24, data__period=12, data__horizon=6,
            model__horizon=6, model__period=12.0,
        ),
        path,
    )  # fmt: skip


MODEL = CNN(num_classes=2, features=(2, 2, 2), hidden_features=3)
# Its weights as PyTorch has them.
SHAPES = {
    "conv1.weight": (2, 3, 3, 3), "conv1.bias": (2,), "conv2.weight": (2, 2, 3, 3),
    "conv2.bias": (2,), "conv3.weight": (2, 2, 3, 3), "conv3.bias": (2,),
    "fc1.weight": (3, 8), "fc1.bias": (3,), "fc2.weight": (2, 3), "fc2.bias": (2,),
}  # fmt: skip


def weights() -> Callable[[random.Random, Path], str]:
    """Returns the cases of damaged files of weights."""
    like = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    tables = tables_of(find("cnn"), MODEL, like["params"])
    generator = np.random.default_rng(0)
    made = {name: generator.normal(size=shape).astype("f4") for name, shape in SHAPES.items()}

    def case(chance: random.Random, folder: Path) -> str:
        path = folder / "model.safetensors"
        types = ("float32", "float32", "float64", "float16", "int8", "complex64")
        dtype = chance.choice(types)
        content = save({name: array.astype(dtype) for name, array in made.items()})
        path.write_bytes(damaged(content, chance))
        try:
            arrays = read_weights(path)
            variables, _ = read_variables(arrays, tables, like, str(path))
        except UserError as error:
            said = str(error)
        else:
            for leaf in jax.tree.leaves(variables):
                assert leaf.dtype == np.float32
                assert np.isfinite(leaf).all()
            return READ
        assert str(path) in said, f"refused without the name: {said}"
        assert len(said.splitlines()) < 30, "refused in too many lines"
        return REFUSED

    return case


def kinds() -> list[Kind]:
    """Returns the kinds of damaged files."""
    read = "read, or refused with the name of the file"
    return [
        Kind("weights", "files of weights: damaged bytes, other types", read, weights(), 10_000),
        Kind("images", "folders of images: damaged bytes, stray files", read, images, 1000),
        Kind("sound", "WAV, FLAC and OGG: damaged bytes and tables", read, sound, 500),
        Kind("wav", "headers of WAV that cannot be", read, odd_wav, 500),
        Kind("npz", "arrays: wrong shapes, types, labels, bytes", read, arrays, 1000),
        Kind("tables", "labelled texts as CSV, TSV, JSON lines: odd pieces", read, tables, 1000),
        Kind("pairs", "pairs as CSV, TSV, JSON lines: odd pieces", read, pairs, 1000),
        Kind("texts", "plain texts: odd pieces, other encodings", read, texts, 1000),
        Kind("series", "values in time: odd pieces, gaps, steps", read, series, 500),
    ]
