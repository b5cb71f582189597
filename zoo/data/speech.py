"""Speech: recorded digits that are joined to strings, or your own recordings."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import itertools
import math
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from zoo.data.columns import read_columns
from zoo.data.datasets import Dataset, token_array
from zoo.data.files import check_file, shown
from zoo.data.reading import composed
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
# The rates of recordings, with room on both sides: telephones have 8,000, bat detectors 500,000.
_LOWEST_RATE, _HIGHEST_RATE = 1000, 1_000_000
# Loud recordings in floats are somewhat above full scale. Integers that were written as floats are
# far above it.
_LOUDEST = 16.0
_BLOCK = 1 << 20
# Number of files that a message lists.
_LISTED = 5
# libsndfile's number of frames for a file that does not say it, such as FLAC from a pipe.
_UNKNOWN_FRAMES = 1 << 62
# A program that writes to a pipe gives about the largest length that its format or type can hold.
_UNKNOWN_LENGTH = 0x7FFF0000
_BAD_INFO = 24  # libsndfile's SFE_BAD_SF_INFO
# What libsndfile's log says of the lengths in the headers of WAV, RF64, W64, AIFF and AU.
_LENGTHS = re.compile(r"(?:data|[Rr]iff size|riff|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)")

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
            ``split``, ``file`` and ``text``, and the files that it names: see ``read_wav``.
        max_seconds: length to which recordings are padded; longer files are left out.
        max_symbols: length to which texts are padded; longer ones are left out.
        gap_seconds: longest silence before, between and after digits.
        noise: largest standard deviation of the noise that training adds; full scale is 1.

    Raises:
        DataError: the files are absent or wrong, or a field has no meaning.
    """
    if name not in NAMES:
        raise DataError(f"data.name={name!r} is unknown.{did_you_mean(name, NAMES)}")
    for field, value in (("max_seconds", max_seconds), ("gap_seconds", gap_seconds)):
        if not math.isfinite(value):
            raise DataError(f"data.{field}={value} must be finite")
    length = round(max_seconds * SAMPLE_RATE)
    if name == "wav_folder":
        return _load_folder(path, length, max_symbols, noise)
    if path:
        raise DataError(
            f"data.path={path!r} has no meaning for data.name='spoken_digits': use "
            "data.name='wav_folder' for your own recordings"
        )
    recordings = read_spoken_digits()
    longest = max(len(sound) for found in recordings.values() for sound in found.sounds)
    if length < longest:
        raise DataError(
            f"data.max_seconds={max_seconds} is too short for the longest recorded digit, which "
            f"has {longest / SAMPLE_RATE:.2f} seconds"
        )
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


def read_wav(file: Path, sample_rate: int = SAMPLE_RATE) -> Sound:
    """Reads a recording: WAV of every kind, FLAC, Ogg, MP3, AIFF, and what else libsndfile reads.

    The channels are averaged.

    Args:
        file: the recording.
        sample_rate: samples a second of the result.

    Raises:
        DataError: the file is absent, is not a recording, is empty or cut off, has a sample rate
            that no recording has, or has floats that are not finite or far above 1.
    """
    with _opened(file) as opened:
        rate, blocks = opened.samplerate, []
        # Block by block: the number of frames in a header may be unknown.
        while len(block := opened.read(_BLOCK, dtype="float32", always_2d=True)):
            blocks.append(block)
        frames = sum(map(len, blocks))
        if not frames or (_says_frames(opened) and frames < opened.frames):
            raise DataError(f"{shown(file)} is broken: it ends after {frames} samples")
    samples = np.concatenate(blocks).mean(axis=1)
    if not np.isfinite(samples).all():
        raise DataError(f"{shown(file)} has samples that are not finite")
    if (loudest := float(np.abs(samples).max())) > _LOUDEST:
        raise DataError(
            f"{shown(file)} has samples up to {loudest:g}, and full scale is 1: divide them by the "
            "largest value of their type"
        )
    if rate == sample_rate:
        return samples
    from scipy.signal import resample_poly  # type: ignore[import-untyped]

    up, down = _ratio(rate, sample_rate)
    return resample_poly(samples, up, down).astype(np.float32)


def _ratio(rate: int, wanted: int = SAMPLE_RATE) -> tuple[int, int]:
    """Returns by what to multiply and divide a number of samples to have the wanted rate."""
    common = math.gcd(rate, wanted)
    return wanted // common, rate // common


def _samples_in(file: Path) -> int:
    """Returns how many samples ``read_wav`` will return, without decoding if the header says it.

    Raises:
        DataError: see ``read_wav``; damage inside a file may be found only when it is read.
    """
    with _opened(file) as opened:
        said, frames, (up, down) = _says_frames(opened), opened.frames, _ratio(opened.samplerate)
    return -(-frames * up // down) if said else len(read_wav(file))


def _says_frames(sound: Any) -> bool:
    """Returns whether a recording's header says how many frames there are; MP3 may guess."""
    return sound.format != "MP3" and sound.frames < _UNKNOWN_FRAMES


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Opens a recording, and checks its header and its end."""
    import soundfile

    name = shown(file)
    check_file(file, DataError)
    try:
        with contextlib.ExitStack() as stack:
            opened = stack.enter_context(open(file, "rb"))
            sound = stack.enter_context(soundfile.SoundFile(opened))
            if not sound.frames and (mended := _with_length(file)):
                sound = stack.enter_context(soundfile.SoundFile(io.BytesIO(mended)))
            if not sound.frames:
                raise DataError(f"{name} is empty or cut off: it has no samples")
            if not _LOWEST_RATE <= sound.samplerate <= _HIGHEST_RATE:
                raise DataError(
                    f"{name} has {sound.samplerate:,} samples a second: it must have between "
                    f"{_LOWEST_RATE:,} and {_HIGHEST_RATE:,}"
                )
            if _is_cut(file, sound):
                raise DataError(f"{name} is cut off: its end is missing")
            yield sound
    except soundfile.LibsndfileError as error:
        # libsndfile's word for this is "Internal error".
        header = "the header gives an impossible sample rate or number of channels"
        reason = header if error.code == _BAD_INFO else error.error_string
        raise DataError(f"{name} is not a recording that can be read: {reason}") from error
    except (OSError, TypeError, ValueError) as error:
        raise DataError(f"{name} is not a recording that can be read: {error}") from error


def _is_cut(file: Path, sound: Any) -> bool:
    """Returns whether the end of a recording is missing."""
    if sound.format == "FLAC" and _says_frames(sound):
        import soundfile

        try:
            sound.seek(sound.frames - 1)
            last = sound.read(1)
            sound.seek(0)
        except soundfile.LibsndfileError:
            return True
        return not len(last)
    if sound.format == "OGG":
        with open(file, "rb") as opened:
            # A page of Ogg has at most 65,307 bytes; the last one has a flag (RFC 3533, section 6).
            opened.seek(-min(file.stat().st_size, 2 * 65_307), io.SEEK_END)
            tail = opened.read()
        page = tail[max(0, tail.rfind(b"OggS")) :]
        segments = page[26] if len(page) > 26 else 0
        size = 27 + segments + sum(page[27 : 27 + segments])
        return len(page) < size or not page[5] & 4
    # libsndfile compares lengths with the file's, and takes what is there.
    lengths = [(int(stated), int(there)) for stated, there in _LENGTHS.findall(sound.extra_info)]
    return any(there < stated < _UNKNOWN_LENGTH for stated, there in lengths)


def _with_length(file: Path) -> bytes:
    """Returns a WAV file whose header says that it is empty, with a length; else nothing.

    A program that writes to a pipe, or that is killed, cannot go back to write the length.
    """
    content = bytearray(file.read_bytes())
    at = content.find(b"data\0\0\0\0")
    rest = bytes(content[at + 8 :])
    # After a recording that is really empty there may be other parts, which begin with a name.
    if content[:4] != b"RIFF" or at < 0 or not rest or rest[:4].strip().isalnum():
        return b""
    content[at + 4 : at + 8] = struct.pack("<I", 0xFFFFFFFF)
    return bytes(content)


def _load_folder(path: str, length: int, max_symbols: int, noise: float) -> Dataset:
    if not path:
        raise DataError("data.name='wav_folder' needs data.path: a folder with transcripts.tsv")
    table = Path(path).expanduser() / "transcripts.tsv"
    rows = _read_rows(table)
    if not {"train", "test"} <= {row.split for row in rows}:
        splits = sorted({row.split for row in rows})
        raise DataError(f"{table} has the splits {splits}: there must be train and test")
    longest = max(len(row.text) for row in rows)
    rows, notes = _kept(
        rows,
        [len(row.text) <= max_symbols for row in rows],
        f"{table}: data.max_symbols={max_symbols} leaves out",
        f"whose texts are longer; the longest has {longest} symbols",
    )
    with concurrent.futures.ThreadPoolExecutor() as pool:
        counts = _read_all(list(pool.map(_counted, [row.file for row in rows])))
    kept = [count <= length for count in counts]
    rows = [
        dataclasses.replace(row, samples=count) for row, count in zip(rows, counts, strict=True)
    ]
    rows, more = _kept(
        rows,
        kept,
        f"{table}: data.max_seconds={length / SAMPLE_RATE} leaves out",
        f"whose recordings are longer; the longest has {max(counts) / SAMPLE_RATE:.1f} seconds",
    )
    symbols = sorted({symbol for row in rows for symbol in row.text})
    vocabulary = Vocabulary((BLANK, *symbols), "character")

    def transform(training: bool) -> Transform:
        def apply(example: Example, generator: np.random.Generator) -> Example:
            sound = read_wav(example["file"])
            if len(sound) > length:
                raise DataError(
                    f"{shown(example['file'])} is longer than its header says and than "
                    f"data.max_seconds={length / SAMPLE_RATE}"
                )
            sound = _varied(sound, noise, generator) if training else sound
            tokens = vocabulary.encode(example["text"])
            return _padded(sound, tokens.tolist(), length, max_symbols)

        return apply

    sources: dict[str, list[Example]] = {}
    for row in rows:
        example = {"file": row.file, "text": row.text, "samples": row.samples}
        sources.setdefault(row.split, []).append(example)
    return Dataset(
        name="wav_folder",
        sizes={split: len(examples) for split, examples in sources.items()},
        vocabularies={"symbols": vocabulary},
        model_fields={"num_symbols": len(vocabulary)},
        open_split=lambda split: sources[split],
        transform=transform,
        notes=notes + more,
    )


@dataclasses.dataclass(frozen=True)
class _Row:
    """A row of ``transcripts.tsv``; ``samples`` is known once the file's header was read."""

    split: str
    file: Path
    text: str
    samples: int = 0


def _read_rows(table: Path) -> list[_Row]:
    rows = []
    for number, row in read_columns(table, ("split", "file", "text")):
        if not row["text"]:
            raise DataError(f"{table}, line {number}: the text is empty")
        file = table.parent / row["file"]
        if not os.path.isfile(file):
            raise DataError(f"{table}, line {number}: there is no file {shown(file)}")
        rows.append(_Row(row["split"], file, composed(row["text"])))
    return rows


def _counted(file: Path) -> int | DataError:
    try:
        return _samples_in(file)
    except DataError as error:
        return error


def _read_all(counts: Sequence[int | DataError]) -> list[int]:
    """Returns the counts; one error names the files that cannot be read."""
    broken = [count for count in counts if isinstance(count, DataError)]
    if broken:
        more = f"; and {len(broken) - _LISTED:,} more" if len(broken) > _LISTED else ""
        raise DataError(
            f"{len(broken):,} of {len(counts):,} recordings cannot be used: "
            f"{'; '.join(map(str, broken[:_LISTED]))}{more}. Mend them, or remove their rows"
        )
    return [count for count in counts if not isinstance(count, DataError)]


def _kept(
    rows: Sequence[_Row], kept: Sequence[bool], cause: str, which: str
) -> tuple[list[_Row], tuple[str, ...]]:
    """Leaves rows out, and says how many and why.

    Raises:
        DataError: nothing is left of ``train`` or of ``test``.
    """
    left = [row for row, keep in zip(rows, kept, strict=True) if keep]
    if len(left) == len(rows):
        return left, ()
    said = f"{cause} {len(rows) - len(left):,} of {len(rows):,} rows, {which}"
    for split in ("train", "test"):
        if split not in {row.split for row in left}:
            raise DataError(f"{said}. Nothing is left of the split {split!r}: raise the field")
    return left, (said,)


def without_short(dataset: Dataset, count_frames: Callable[[int], int]) -> Dataset:
    """Leaves out recordings that are too short for their texts.

    CTC gives each frame at most one symbol, and two equal symbols need a blank between them (Graves
    et al. 2006, section 3.1). With fewer frames a text has the probability 0, and the loss is
    infinite.

    Args:
        dataset: the result of ``load_speech``.
        count_frames: returns the number of the model's frames for a number of samples.

    Raises:
        DataError: nothing is left of a split, or the made strings of ``spoken_digits`` are too
            short.
    """
    spoken = dataset.name == "spoken_digits"
    sources: dict[str, list[Example]] = {}
    short: list[str] = []
    for split in dataset.sizes:
        if spoken and split == "train":
            continue
        sources[split] = []
        source = dataset.open(split)
        for example in (source[index] for index in range(len(source))):
            text = example["digits"] if spoken else example["text"]
            samples = len(example["sound"]) if spoken else example["samples"]
            frames, needed = max(0, count_frames(samples)), _frames_needed(text)
            if frames >= needed:
                sources[split].append(example)
            else:
                name = "a string" if spoken else shown(example["file"])
                short.append(f"{name} ({split}: {frames} frames, its text needs {needed})")
    if not short:
        return dataset
    total = sum(dataset.sizes[split] for split in sources)
    more = f"; and {len(short) - _LISTED:,} more" if len(short) > _LISTED else ""
    said = (
        f"{len(short):,} of {total:,} recordings are too short for their texts: "
        f"{'; '.join(short[:_LISTED])}{more}"
    )
    remedy = "make frames shorter with model.hop or model.stack"
    if spoken or not all(sources.values()):
        empty = [split for split, examples in sources.items() if not examples]
        what = f"nothing is left of the split {empty[0]!r}" if empty else "they are made so"
        raise DataError(f"{said}. As {what}, {remedy}")
    return dataclasses.replace(
        dataset,
        sizes={split: len(examples) for split, examples in sources.items()},
        open_split=lambda split: sources[split],
        notes=(*dataset.notes, f"left out: {said} ({remedy})"),
    )


def _frames_needed(text: Sequence[Any]) -> int:
    return len(text) + sum(one == other for one, other in itertools.pairwise(text))
