"""Makes the small files in ``examples/`` from the data that come with the package.

    python scripts/make_examples.py --out=examples

The commands in the README and in ``docs/using.md`` use them. The same data give the same files.
"""

import argparse
import csv
import gzip
import io
import json
import wave
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.data.pairs import read_cmudict
from zoo.data.speech import SAMPLE_RATE, Recordings, Sound, read_spoken_digits
from zoo.data.text import tatoeba_pairs

# Weeks of the series: enough for windows of a year's forecast in each of the three splits.
WEEKS = 624
CHARACTERS = 20_000
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IMAGES_OF_A_CLASS = 10
SPOKEN = (3, 1, 4, 1, 5)
GAP = round(0.15 * SAMPLE_RATE)


def write_images(out: Path) -> None:
    """Writes one image of each digit, a folder of two classes, and an npz file."""
    with np.load(io.BytesIO(_embedded("mnist_subset.npz"))) as arrays:
        train_images, train_labels = arrays["train_image"], arrays["train_label"]
        test_images, test_labels = arrays["test_image"], arrays["test_label"]

    def write(path: Path, image: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)

    write(out / "digit.png", test_images[np.flatnonzero(test_labels == 7)[0]])
    for digit in (3, 8):
        for number, index in enumerate(np.flatnonzero(train_labels == digit)[:IMAGES_OF_A_CLASS]):
            write(out / "digits" / NAMES[digit] / f"{number}.png", train_images[index])
    np.savez_compressed(
        out / "digits.npz",
        x_train=train_images[:100, ..., 0],
        y_train=train_labels[:100],
        x_test=test_images[:20, ..., 0],
        y_test=test_labels[:20],
    )


def write_sounds(out: Path) -> None:
    """Writes a string of digits, and a folder of single ones with its table."""
    recordings = read_spoken_digits()
    test = recordings["test"]
    gap = np.zeros(GAP, np.float32)
    parts = [gap]
    for digit in SPOKEN:
        parts += [test.sounds[test.digits.index(digit)], gap]
    _write_wav(out / "digits.wav", np.concatenate(parts))
    rows = [("split", "file", "text")]
    for split, most in (("train", 12), ("test", 4)):
        for number, (sound, digit) in enumerate(_spread(recordings[split], most)):
            file = f"{split}-{number}.wav"
            _write_wav(out / "recordings" / file, sound)
            rows.append((split, file, str(digit)))
    _write_table(out / "recordings" / "transcripts.tsv", rows, "\t")


def write_texts(out: Path) -> None:
    """Writes running text, sentences, messages and pairs."""
    (out / "play.txt").write_text(_text("tiny_shakespeare.txt.gz")[:CHARACTERS], encoding="utf-8")
    sentences = list(dict.fromkeys(german for german, _ in tatoeba_pairs()))[::100]
    (out / "sentences.txt").write_text("".join(f"{s}\n" for s in sentences), encoding="utf-8")
    # Every 50th pair: short ones and long ones, with some sentences that have two translations.
    _write_table(out / "translations.tsv", [("german", "english"), *tatoeba_pairs()[::50]], "\t")
    messages = [line.partition("\t") for line in _text("sms_spam.tsv.gz").splitlines()[::20]]
    _write_table(
        out / "messages.csv",
        [("text", "label"), *((text, label) for label, _, text in messages)],
    )
    words = list(read_cmudict(_text("cmudict.dict.gz")).items())[::300]
    _write_table(
        out / "words.tsv",
        [("word", "phonemes"), *((word, " ".join(targets[0])) for word, targets in words)],
        "\t",
    )
    lines = [
        json.dumps({"word": word, "phonemes": " ".join(targets[0])}) for word, targets in words
    ]
    (out / "words.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_series(out: Path) -> None:
    """Writes the end of the series, with the header that ``configs/forecast.py`` reads."""
    header, *rows = _text("co2_weekly.csv.gz").splitlines()
    (out / "co2.csv").write_text("\n".join([header, *rows[-WEEKS:]]) + "\n", encoding="utf-8")


def _spread(recordings: Recordings, most: int) -> list[tuple[Sound, int]]:
    chosen = np.linspace(0, len(recordings) - 1, most).astype(int)
    return [(recordings.sounds[index], recordings.digits[index]) for index in chosen]


def _embedded(name: str) -> bytes:
    return resources.files("zoo.data").joinpath("embedded", name).read_bytes()


def _text(name: str) -> str:
    return gzip.decompress(_embedded(name)).decode("utf-8")


def _write_wav(path: Path, sound: Sound) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(SAMPLE_RATE)
        opened.writeframes(np.round(np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())


def _write_table(path: Path, rows: Sequence[Sequence[str]], delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened, delimiter=delimiter, lineterminator="\n").writerows(rows)


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for write in (write_images, write_sounds, write_texts, write_series):
        write(out)
    files = [file for file in out.rglob("*") if file.is_file()]
    print(f"{out}: {len(files)} files, {sum(file.stat().st_size for file in files):,} bytes")


if __name__ == "__main__":
    main()
