import wave

import numpy as np
import pytest

from zoo.data import DataError
from zoo.data.speech import decode_mu_law, encode_mu_law, load_speech, read_spoken_digits, read_wav


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
    with pytest.raises(DataError, match="is not a WAV file"):
        read_wav(file)
    with pytest.raises(DataError, match="needs data.path"):
        load(name="wav_folder")
    with pytest.raises(DataError, match="has no meaning for data.name='spoken_digits'"):
        load(path=str(tmp_path))
    with pytest.raises(DataError, match="Did you mean 'spoken_digits'"):
        load(name="spoken_digit")
