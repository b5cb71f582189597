import io
import os
import struct
import wave

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import soundfile

from zoo.data import DataError
from zoo.data.speech import (
    decode_mu_law,
    encode_mu_law,
    load_speech,
    read_spoken_digits,
    read_wav,
    without_short,
)
from zoo.models import SpeechRecognizer
from zoo.tasks.transcription import Transcription


def load(**fields):
    return load_speech(**{"name": "spoken_digits", **fields})


def write_wav(path, samples, *, rate=8000, width=2, channels=1):
    scale = {1: 127, 2: 2**15 - 1, 4: 2**31 - 1}[width]
    numbers = np.round(samples * scale).astype({1: np.int16, 2: "<i2", 4: "<i4"}[width])
    content = (numbers + 128).astype(np.uint8) if width == 1 else numbers
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(content.tobytes())


def test_mu_law_keeps_quiet_sounds_finer_than_loud_ones():
    x = np.linspace(-1, 1, 2001).astype(np.float32)
    back = decode_mu_law(encode_mu_law(x))
    # Half of a step, whose size grows with the level: derivative of the companding curve.
    step = 2 / 255 * np.log1p(255) * (1 + 255 * np.abs(x)) / 255
    assert (np.abs(back - x) <= 0.51 * step + 1e-6).all()
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(encode_mu_law(decode_mu_law(codes)), codes)


def test_all_test_takes_are_there_and_one_speaker_is_only_heard_there():
    recordings = read_spoken_digits()
    sizes = {split: len(found) for split, found in recordings.items()}
    assert sizes["test"] + sizes["held_out"] == 300
    assert sizes["held_out"] == 50
    assert sizes["train"] + sizes["validation"] >= 1200
    for found in recordings.values():
        counts = np.bincount(found.digits, minlength=10)
        assert (counts == counts[0]).all()


def test_a_test_set_has_every_recording_as_often_and_is_always_the_same():
    dataset, again = load(), load()
    source, same = dataset.open("test"), again.open("test")
    digits = np.concatenate([source[i]["digits"] for i in range(len(source))])
    counts = np.bincount(digits)
    assert (counts == counts[0]).all()
    for i in (0, len(source) - 1):
        np.testing.assert_array_equal(source[i]["sound"], same[i]["sound"])


def test_training_strings_begin_with_their_recording_and_fit():
    dataset = load(max_symbols=3)
    transform, source = dataset.transform(True), dataset.open("train")
    lengths = set()
    for index in range(60):
        example = transform(source[index], np.random.default_rng(index))
        text = [t - 1 for t in example["target"] if t]
        lengths.add(len(text))
        assert text[0] == read_spoken_digits()["train"].digits[index]
        assert example["samples"].shape == (32000,)
        assert not example["samples"][example["length"] :].any()
    assert lengths == {1, 2, 3}


@pytest.mark.parametrize("width", [1, 2, 4])
def test_wav_files_of_all_widths_and_rates_are_heard_alike(tmp_path, width):
    t = np.arange(16000) / 16000
    tone = 0.5 * np.sin(2 * np.pi * 440 * t)
    write_wav(tmp_path / "a.wav", np.repeat(tone, 2), rate=16000, width=width, channels=2)
    heard = read_wav(tmp_path / "a.wav")
    assert heard.shape == (8000,)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    # Away from the edges, where the filter sees silence.
    np.testing.assert_allclose(heard[100:-100], expected[100:-100], atol=0.02)


def test_a_folder_of_ones_own(tmp_path):
    rows = ["split\tfile\ttext"]
    for i in range(6):
        write_wav(tmp_path / f"{i}.wav", np.zeros(1000 + i))
        rows.append(f"{'test' if i > 3 else 'train'}\t{i}.wav\t{'ab'[i % 2]}c")
    table = tmp_path / "transcripts.tsv"
    table.write_text("\n".join(rows) + "\n")
    fields = {"name": "wav_folder", "path": str(tmp_path), "max_seconds": 0.5}
    dataset = load(**fields)
    assert dataset.sizes == {"train": 4, "test": 2}
    assert dataset.vocabularies["symbols"].symbols == ("<blank>", "a", "b", "c")
    example = dataset.transform(False)(dataset.open("test")[1], np.random.default_rng(0))
    assert example["length"] == 1005
    np.testing.assert_array_equal(example["target"][:3], [2, 3, 0])
    table.write_text("split\tfile\ttext\ntrain\tno.wav\ta\n")
    with pytest.raises(DataError, match=r"line 2: there is no file .*no\.wav"):
        load(**fields)
    table.write_text("split\tfile\ttext\ntrain\t0.wav\ta\n")
    with pytest.raises(DataError, match="there must be train and test"):
        load(**fields)


def test_what_is_no_wav_is_named(tmp_path):
    file = tmp_path / "a.wav"
    with pytest.raises(DataError, match="there is no such file"):
        read_wav(file)
    file.write_bytes(b"RIFF but not")
    with pytest.raises(DataError, match="is not a recording that can be read"):
        read_wav(file)
    with pytest.raises(DataError, match="needs data.path"):
        load(name="wav_folder")
    with pytest.raises(DataError, match="has no meaning for data.name='spoken_digits'"):
        load(path=str(tmp_path))
    with pytest.raises(DataError, match="Did you mean 'spoken_digits'"):
        load(name="spoken_digit")


def make_table(folder, rows):
    """Writes sounds and their table from (split, samples, text)."""
    lines = ["split\tfile\ttext"]
    for index, (split, samples, text) in enumerate(rows):
        generator = np.random.default_rng(index)
        write_wav(folder / f"{index}.wav", 0.1 * generator.normal(size=samples).clip(-3, 3))
        lines.append(f"{split}\t{index}.wav\t{text}")
    (folder / "transcripts.tsv").write_text("\n".join(lines) + "\n")
    return {"name": "wav_folder", "path": str(folder)}


@pytest.mark.parametrize("width", [1, 2, 4])
def test_integers_are_read_as_pythons_wave_module_reads_them(tmp_path, width):
    sound = np.random.default_rng(0).uniform(-1, 1, 2000)
    write_wav(tmp_path / "a.wav", sound, width=width, channels=2)
    with wave.open(str(tmp_path / "a.wav"), "rb") as file:
        content = file.readframes(file.getnframes())
    dtype, zero = {1: (np.uint8, 128), 2: ("<i2", 0), 4: ("<i4", 0)}[width]
    numbers = np.frombuffer(content, dtype).astype(np.float32) - zero
    expected = (numbers / 2 ** (8 * width - 1)).reshape(-1, 2).mean(axis=1)
    np.testing.assert_array_equal(read_wav(tmp_path / "a.wav"), expected)


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.wav", {"subtype": "FLOAT"}, 1e-7), ("a.wav", {"subtype": "DOUBLE"}, 1e-7),
        ("a.wav", {"subtype": "PCM_24"}, 1e-6), ("a.wav", {"subtype": "ULAW"}, 0.02),
        ("a.wav", {"subtype": "ALAW"}, 0.02), ("a.wav", {"subtype": "IMA_ADPCM"}, 0.1),
        ("a.wav", {"format": "WAVEX", "subtype": "PCM_16"}, 1e-4),
        ("a.wav", {"format": "WAVEX", "subtype": "PCM_24"}, 1e-6),
        ("a.wav", {"format": "WAVEX", "subtype": "FLOAT"}, 1e-7),
        ("a.wav", {"format": "RF64"}, 1e-4), ("a.flac", {}, 1e-4), ("a.aiff", {}, 1e-4),
        ("a.ogg", {"subtype": "VORBIS"}, 0.1),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}, 0.1),
        ("a.flac", {"subtype": "PCM_24"}, 1e-6), ("wrong.wav", {"format": "FLAC"}, 1e-4),
    ],
)  # fmt: skip
def test_recordings_of_every_kind_are_read_and_counted(tmp_path, name, options, tolerance):
    t = np.arange(12_000) / 8000
    tone = 0.5 * np.sin(2 * np.pi * 220 * t) * np.minimum(1, 20 * t)
    soundfile.write(tmp_path / name, tone, 8000, **options)
    heard = read_wav(tmp_path / name)
    assert heard.dtype == np.float32
    # ADPCM has blocks of a fixed length.
    assert len(tone) <= len(heard) < len(tone) + 600
    np.testing.assert_allclose(heard[: len(tone)], tone, atol=tolerance)


def riff(samples, *, rate=8000, size=None, more=b""):
    """Returns a WAV file of 16 bits with a header of our own."""
    content = samples.astype("<i2").tobytes()
    size = len(content) if size is None else size
    form = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate % 2**32, 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size)
    body += content + more
    return b"RIFF" + struct.pack("<I", len(body)) + body


SOUND = (1000 * np.sin(np.arange(4000) / 5)).astype(np.int16)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000, 0x80000000])
def test_a_stream_is_read_to_its_end(tmp_path, size):
    # A program that writes to a pipe cannot write the length.
    (tmp_path / "a.wav").write_bytes(riff(SOUND, size=size))
    np.testing.assert_array_equal(read_wav(tmp_path / "a.wav"), SOUND / np.float32(2**15))


def compressed(kind):
    file = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 40_000)
    soundfile.write(file, noise, 8000, format=kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a recording"),
        (riff(SOUND[:0]), "is empty"),
        (riff(SOUND[:0], more=b"LIST" + struct.pack("<I", 4) + b"INFO"), "is empty"),
        (riff(SOUND)[:2001], "is cut off"),
        (riff(SOUND)[:-1], "is cut off"),
        (riff(SOUND)[:30], "not a recording"),
        (riff(SOUND, rate=0), "impossible sample rate"),
        (riff(SOUND, rate=1), "has 1 samples a second"),
        (riff(SOUND, rate=2**31 - 1), "2,147,483,647 samples a second"),
        (riff(SOUND, rate=2**32 - 1), "impossible sample rate"),
        (compressed("FLAC")[:20_000], "is cut off"),
        (compressed("OGG")[:-1], "is cut off"),
        (compressed("OGG")[:10_000], "cut off"),
        (compressed("AIFF")[:20_000], "is cut off"),
        (b"ID3\3" + bytes(500), "not a recording"),
    ],
)
def test_damaged_recordings_are_named(tmp_path, content, words):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.wav.* {words}"):
        read_wav(tmp_path / "a.wav")
    fields = make_table(tmp_path, [("train", 2000, "a"), ("test", 2000, "a"), ("train", 900, "b")])
    (tmp_path / "2.wav").write_bytes(content)
    with pytest.raises(DataError, match=rf"1 of 3 recordings cannot be used.*2\.wav.* {words}"):
        load(**fields)


@pytest.mark.parametrize(("loudest", "words"), [(np.nan, "not finite"), (30_000, "up to 3")])
def test_floats_that_are_no_sound_are_named(tmp_path, loudest, words):
    soundfile.write(tmp_path / "a.wav", np.array([0.0, loudest] * 500), 8000, subtype="FLOAT")
    with pytest.raises(DataError, match=rf"a\.wav has samples .*{words}"):
        read_wav(tmp_path / "a.wav")


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(DataError, match=r"a\.wav is a FIFO"):
        read_wav(tmp_path / "a.wav")
    (tmp_path / "transcripts.tsv").write_text("split\tfile\ttext\ntrain\ta.wav\ta\n")
    with pytest.raises(DataError, match=r"line 2: there is no file .*a\.wav"):
        load(name="wav_folder", path=str(tmp_path))


@hypothesis.given(
    kind=st.sampled_from(["WAV", "FLAC", "OGG", "AIFF"]),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.binary(min_size=1, max_size=8)), max_size=6),
    cut=st.floats(0, 1),
)
@hypothesis.settings(max_examples=100)
def test_a_damaged_recording_is_read_or_named(tmp_path_factory, kind, changes, cut):
    content = bytearray(compressed(kind))
    for where, replaced in changes:
        # Half of the changes are in the header.
        at = int(where * len(content)) if where > 0.5 else int(where * 200)
        content[at : at + len(replaced)] = replaced
    file = tmp_path_factory.getbasetemp() / "damaged"
    file.write_bytes(content[: round(cut * len(content))] if not changes else content)
    try:
        result = np.isfinite(read_wav(file)).all()
    except DataError as error:
        result = str(file) in str(error)
    assert result


def test_rows_that_a_field_leaves_out_are_counted(tmp_path):
    rows = [("train", 3000, "ab"), ("train", 3000, "abcabc"), ("train", 9000, "ab")]
    fields = make_table(tmp_path, [*rows, ("test", 3000, "cab")])
    dataset = load(**fields, max_symbols=4, max_seconds=1.0)
    assert dataset.sizes == {"train": 1, "test": 1}
    texts, sounds = dataset.notes
    assert "data.max_symbols=4 leaves out 1 of 4 rows" in texts
    assert "the longest has 6 symbols" in texts
    assert "data.max_seconds=1.0 leaves out 1 of 3 rows" in sounds
    assert "the longest has 1.1 seconds" in sounds
    assert load(**fields).notes == ()
    with pytest.raises(DataError, match=r"data\.max_symbols=1 leaves out 4 of 4 rows.*'train'"):
        load(**fields, max_symbols=1)
    with pytest.raises(DataError, match=r"data\.max_symbols=2 leaves out 2 of 4 rows.*'test'"):
        load(**fields, max_symbols=2)
    with pytest.raises(DataError, match=r"data\.max_seconds=0\.1 leaves out 4 of 4 rows"):
        load(**fields, max_seconds=0.1)


def test_recordings_too_short_for_their_texts_are_left_out_by_name(tmp_path):
    model = SpeechRecognizer()
    # Frames are stacks of three windows of 256 samples, 80 apart.
    assert [model.count_frames(n) for n in (0, 255, 415, 416, 655, 656)] == [-1, 0, 0, 1, 1, 2]
    logits, counted = jax.eval_shape(
        lambda: model.init_with_output(
            jax.random.key(0), np.zeros((1, 656), np.float32), np.array([656])
        )
    )[0]
    assert logits.shape[1] == 2
    assert counted.shape == (1,)
    rows = [
        ("train", 656, "ab"), ("train", 655, "ab"), ("train", 656, "aa"), ("train", 896, "aa"),
        ("test", 656, "ba"), ("test", 300, "b"),
    ]  # fmt: skip
    dataset = without_short(load(**make_table(tmp_path, rows)), model.count_frames)
    assert dataset.sizes == {"train": 2, "test": 1}
    assert [dataset.open("train")[i]["text"] for i in range(2)] == ["ab", "aa"]
    (said,) = dataset.notes
    assert "3 of 6 recordings are too short for their texts" in said
    assert "1.wav (train: 1 frames, its text needs 2)" in said
    assert "2.wav (train: 2 frames, its text needs 3)" in said
    assert "5.wav (test: 0 frames, its text needs 1)" in said
    coarse = SpeechRecognizer(hop=800)
    with pytest.raises(DataError, match=r"nothing is left of the split 'train'.*model\.hop"):
        without_short(load(**make_table(tmp_path, rows)), coarse.count_frames)
    assert without_short(load(), model.count_frames).sizes == load().sizes
    with pytest.raises(DataError, match=r"too short for their texts.*model\.hop"):
        without_short(load(), SpeechRecognizer(hop=2000).count_frames)


def test_kept_recordings_have_a_finite_loss_and_left_out_ones_not():
    model = SpeechRecognizer(num_symbols=3, features=4, num_layers=1, num_mels=8)
    task = Transcription(model)
    # Two frames hold "ab" but not "aa", and one frame holds neither.
    batch = {
        "samples": np.zeros((3, 656), np.float32),
        "length": np.array([656, 656, 655], np.int32),
        "target": np.array([[1, 2], [1, 1], [1, 2]], np.int32),
    }
    variables = task.init(jax.random.key(0), batch)
    losses = [
        float(task.sums(variables["params"], batch | {"mask": np.eye(3, dtype=np.float32)[i]})[
            "loss"
        ][0])
        for i in range(3)
    ]  # fmt: skip
    assert losses[0] < 100
    assert min(losses[1:]) > 10_000


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_seconds": 0.3}, "max_seconds=0.3 is too short for the longest recorded digit"),
        ({"max_seconds": float("inf")}, "max_seconds=inf must be finite"),
        ({"gap_seconds": float("inf")}, "gap_seconds=inf must be finite"),
    ],
)
def test_lengths_without_a_meaning_are_named(fields, words):
    with pytest.raises(DataError, match=words):
        load(**fields)
