"""Speech: recorded digits that are joined to strings, or your own recordings."""

from __future__ import annotations

import dataclasses
import functools
import io
import wave
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from zoo.data.columns import read_columns
from zoo.data.datasets import Dataset, token_array
from zoo.data.sources import DataError, Example, Source
from zoo.data.transforms import Transform
from zoo.data.vocabulary import Vocabulary
from zoo.errors import did_you_mean

NAMES = ("spoken_digits", "wav_folder")
HELD_OUT = "theo"
TEST_TAKES = 5
SAMPLE_RATE = 8000
BLANK = "<blank>"
# Number of takes of each digit and speaker that validation gets from the training takes.
_VALIDATION_TAKES = 2
_MU = 255
# Number of passes over the recordings from which the fixed strings of evaluation are made; each
# pass uses every recording once.
_PASSES = 4
_LONGEST_STRING = 6

Sound = Float32[np.ndarray, " time"]


def encode_mu_law(samples: Sound) -> UInt8[np.ndarray, " time"]:
    """Encodes samples in [-1, 1] in 8 bits, finer near 0 (the mu-law of ITU-T G.711)."""
    shrunk = np.sign(samples) * np.log1p(_MU * np.abs(samples)) / np.log1p(_MU)
    return np.round((shrunk + 1) / 2 * 255).astype(np.uint8)


def decode_mu_law(codes: UInt8[np.ndarray, " time"]) -> Sound:
    """Decodes the result of ``encode_mu_law`` to samples in [-1, 1]."""
    shrunk = codes.astype(np.float32) / 255 * 2 - 1
    return (np.sign(shrunk) * np.expm1(np.abs(shrunk) * np.log1p(_MU)) / _MU).astype(np.float32)


def load_speech(
    name: str,
    *,
    path: str = "",
    max_seconds: float = 4.0,
    max_symbols: int = 6,
    gap_seconds: float = 0.3,
    noise: float = 0.003,
) -> Dataset:
    """Describes recordings and their transcripts.

    Token 0 is the blank of CTC.

    Args:
        name: ``spoken_digits`` comes with the package; ``wav_folder`` is your own data.
        path: the folder for ``wav_folder``: it holds ``transcripts.tsv``, with the columns
            ``split``, ``file`` and ``text``, and the WAV files that it names.
        max_seconds: length to which recordings are padded; a longer file of ``wav_folder`` raises
            a DataError when it is read.
        max_symbols: length to which texts are padded; longer ones are left out.
        gap_seconds: longest silence before, between and after digits.
        noise: largest standard deviation of the noise that training adds; full scale is 1.

    Raises:
        DataError: the files are absent or wrong, or a field has no meaning.
    """
    if name not in NAMES:
        raise DataError(f"data.name={name!r} is unknown.{did_you_mean(name, NAMES)}")
    length = round(max_seconds * SAMPLE_RATE)
    if name == "wav_folder":
        return _load_folder(path, length, max_symbols, noise)
    if path:
        raise DataError(
            f"data.path={path!r} has no meaning for data.name='spoken_digits': use "
            "data.name='wav_folder' for your own recordings"
        )
    recordings = read_spoken_digits()
    vocabulary = Vocabulary((BLANK, *map(str, range(10))), "digit")
    joiner = _Joiner(length, max_symbols, round(gap_seconds * SAMPLE_RATE))
    splits = {
        split: joiner.fixed_strings(recordings[split])
        for split in ("validation", "test", "held_out")
    }
    train = recordings["train"]

    def transform(training: bool) -> Transform:
        def apply(example: Example, generator: np.random.Generator) -> Example:
            if training:
                sound, digits = joiner.draw(train, int(example["first"]), generator)
                sound = _varied(sound, noise, generator)
            else:
                sound, digits = example["sound"], example["digits"]
            return _padded(sound, [1 + digit for digit in digits], length, max_symbols)

        return apply

    def open_split(split: str) -> Source:
        return _Firsts(len(train)) if split == "train" else splits[split]

    return Dataset(
        name=name,
        sizes={"train": len(train), **{split: len(made) for split, made in splits.items()}},
        vocabularies={"symbols": vocabulary},
        model_fields={"num_symbols": len(vocabulary)},
        open_split=open_split,
        transform=transform,
    )


@dataclasses.dataclass(frozen=True)
class Recordings:
    """Recorded digits: their sounds and their values."""

    sounds: tuple[Sound, ...]
    digits: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.digits)


@functools.cache
def read_spoken_digits() -> dict[str, Recordings]:
    """Reads the shipped recordings: ``train``, ``validation``, ``test`` and ``held_out``.

    ``test`` has the data set's own test takes of the five training speakers, ``held_out`` the test
    takes of the sixth speaker.
    """
    file = resources.files("zoo.data").joinpath("embedded/spoken_digits.npz")
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
        samples, offsets = decode_mu_law(arrays["mu_law"]), arrays["offsets"]
        digit, take, speaker = arrays["digit"], arrays["take"], arrays["speaker"]
    unseen, test = speaker == HELD_OUT, take < TEST_TAKES
    validation = ~test & (take < TEST_TAKES + _VALIDATION_TAKES)
    chosen = {
        "train": ~unseen & ~test & ~validation,
        "validation": ~unseen & validation,
        "test": ~unseen & test,
        "held_out": unseen & test,
    }
    return {
        split: Recordings(
            tuple(samples[offsets[i] : offsets[i + 1]] for i in np.flatnonzero(rows)),
            tuple(int(d) for d in digit[rows]),
        )
        for split, rows in chosen.items()
    }


@dataclasses.dataclass(frozen=True)
class _Firsts:
    """Training examples: the index of a string's first recording; the rest is drawn."""

    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        return {"first": index}


@dataclasses.dataclass(frozen=True)
class _Joiner:
    """Joins recordings, with gaps between them, while they fit into ``length``."""

    length: int
    most: int
    gap: int

    def draw(
        self, recordings: Recordings, first: int, generator: np.random.Generator
    ) -> tuple[Sound, list[int]]:
        """Returns a string of 1 to ``most`` digits that begins with the recording ``first``."""
        more = generator.integers(len(recordings), size=generator.integers(self.most))
        sound, used = self._joined(recordings, [first, *more.tolist()], generator)
        return sound, [recordings.digits[i] for i in used]

    def fixed_strings(self, recordings: Recordings) -> list[Example]:
        """Returns strings for evaluation, the same every time."""
        generator = np.random.default_rng(0)
        made: list[Example] = []
        for _ in range(_PASSES):
            waiting = generator.permutation(len(recordings)).tolist()
            while waiting:
                wanted = waiting[: int(generator.integers(1, self.most + 1))]
                sound, used = self._joined(recordings, wanted, generator)
                waiting = waiting[len(used) :]
                made.append({"sound": sound, "digits": [recordings.digits[i] for i in used]})
        return made

    def _joined(
        self, recordings: Recordings, chosen: Sequence[int], generator: np.random.Generator
    ) -> tuple[Sound, list[int]]:
        parts: list[Sound] = []
        used: list[int] = []
        room = self.length - self.gap
        for index in chosen:
            silence = np.zeros(generator.integers(self.gap + 1), np.float32)
            sound = recordings.sounds[index]
            if used and len(silence) + len(sound) > room:
                break
            parts += [silence, sound]
            room -= len(silence) + len(sound)
            used.append(index)
        parts.append(np.zeros(generator.integers(self.gap + 1), np.float32))
        return np.concatenate(parts)[: self.length], used


def _varied(sound: Sound, noise: float, generator: np.random.Generator) -> Sound:
    louder = generator.uniform(0.5, 1.5)
    hiss = generator.normal(size=len(sound)) * generator.uniform(0, noise)
    return (louder * sound + hiss).astype(np.float32)


def _padded(sound: Sound, tokens: Sequence[int], length: int, most: int) -> Example:
    samples = np.zeros(length, np.float32)
    samples[: len(sound)] = sound
    return {
        "samples": samples,
        "length": np.asarray(len(sound), np.int32),
        "target": token_array(tokens, most),
    }


def read_wav(file: Path) -> Sound:
    """Reads a WAV file of 8, 16 or 32 bits.

    The channels are averaged, and the result has 8,000 samples a second.

    Raises:
        DataError: the file is absent, or is not a WAV file of 8, 16 or 32 bits.
    """
    try:
        with wave.open(str(file), "rb") as opened:
            rate, channels, width = (
                opened.getframerate(),
                opened.getnchannels(),
                opened.getsampwidth(),
            )
            content = opened.readframes(opened.getnframes())
    except FileNotFoundError as error:
        raise DataError(f"{file}: there is no such file") from error
    except (wave.Error, EOFError) as error:
        raise DataError(f"{file} is not a WAV file of integers: {error}") from error
    if width not in (1, 2, 4):
        raise DataError(f"{file} has {8 * width} bits a sample; it must have 8, 16 or 32")
    if width == 1:
        samples = np.frombuffer(content, np.uint8).astype(np.float32) / 128 - 1
    else:
        samples = np.frombuffer(content, f"<i{width}").astype(np.float32) / 2 ** (8 * width - 1)
    samples = samples.reshape(-1, channels).mean(axis=1)
    if rate == SAMPLE_RATE:
        return samples
    from scipy.signal import resample_poly  # type: ignore[import-untyped]

    common = int(np.gcd(rate, SAMPLE_RATE))
    return resample_poly(samples, SAMPLE_RATE // common, rate // common).astype(np.float32)


def _load_folder(path: str, length: int, max_symbols: int, noise: float) -> Dataset:
    if not path:
        raise DataError("data.name='wav_folder' needs data.path: a folder with transcripts.tsv")
    table = Path(path).expanduser() / "transcripts.tsv"
    found: dict[str, list[tuple[Path, str]]] = {}
    for number, row in read_columns(table, ("split", "file", "text")):
        if not row["text"]:
            raise DataError(f"{table}, line {number}: the text is empty")
        file = table.parent / row["file"]
        if not file.is_file():
            raise DataError(f"{table}, line {number}: there is no file {file}")
        if len(row["text"]) <= max_symbols:
            found.setdefault(row["split"], []).append((file, row["text"]))
    if not {"train", "test"} <= found.keys():
        raise DataError(f"{table} has the splits {sorted(found)}: there must be train and test")
    symbols = sorted({symbol for pairs in found.values() for _, text in pairs for symbol in text})
    vocabulary = Vocabulary((BLANK, *symbols), "character")

    def transform(training: bool) -> Transform:
        def apply(example: Example, generator: np.random.Generator) -> Example:
            sound = read_wav(example["file"])
            if len(sound) > length:
                raise DataError(
                    f"{example['file']} is longer than data.max_seconds={length / SAMPLE_RATE}"
                )
            sound = _varied(sound, noise, generator) if training else sound
            tokens = vocabulary.encode(example["text"])
            return _padded(sound, tokens.tolist(), length, max_symbols)

        return apply

    sources = {
        split: [{"file": file, "text": text} for file, text in pairs]
        for split, pairs in found.items()
    }
    return Dataset(
        name="wav_folder",
        sizes={split: len(examples) for split, examples in sources.items()},
        vocabularies={"symbols": vocabulary},
        model_fields={"num_symbols": len(vocabulary)},
        open_split=lambda split: sources[split],
        transform=transform,
    )
