"""``zoo transcribe --model FOLDER`` against ``transformers.generate``."""

import copy
import functools
import json
import shutil

import numpy as np
import peers
import pytest
import soundfile

from zoo import cli, transcribing
from zoo.data.speech import read_wav
from zoo.errors import UserError

RATE = 16_000
# As in published vocabularies: bytes, then what begins and ends a text, then times.
SPECIAL = [
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|haw|>", "<|translate|>",
    "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
]  # fmt: skip
TOKEN = {name: 256 + number for number, name in enumerate(SPECIAL)}
FIRST = 256 + len(SPECIAL)
VOCAB = FIRST + 51


def made_tokenizer():
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: n for n, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    tokenizer.add_tokens([f"<|{step * 0.02:.2f}|>" for step in range(51)])
    assert tokenizer.get_vocab_size() == VOCAB
    return tokenizer


@functools.cache
def reference():
    """A tiny model with windows of one second."""
    torch, transformers = peers.torch(), peers.transformers()
    torch.manual_seed(3)
    config = transformers.WhisperConfig(
        vocab_size=VOCAB, num_mel_bins=80, d_model=16, encoder_layers=1, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, max_source_positions=50, max_target_positions=24, init_std=0.5,
        pad_token_id=256, bos_token_id=256, eos_token_id=256, decoder_start_token_id=257,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).eval()
    # Times that are about as likely as text, and sounds that matter.
    model.model.decoder.embed_positions.weight.data *= 2
    generation = model.generation_config
    published = {
        "is_multilingual": True,
        "lang_to_id": {name: TOKEN[name] for name in ("<|en|>", "<|de|>", "<|haw|>")},
        "task_to_id": {task: TOKEN[f"<|{task}|>"] for task in ("translate", "transcribe")},
        "no_timestamps_token_id": TOKEN["<|notimestamps|>"],
        "suppress_tokens": [5, 7, *(TOKEN[name] for name in SPECIAL[1:10])],
        "begin_suppress_tokens": [220, 256],
        "max_initial_timestamp_index": 25,
        "max_length": 24,
        "pad_token_id": 256,
    }
    for name, value in published.items():
        setattr(generation, name, value)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    peers.transformers()
    from transformers import WhisperFeatureExtractor

    made = tmp_path_factory.mktemp("whisper")
    reference().save_pretrained(made)
    WhisperFeatureExtractor(chunk_length=1).save_pretrained(made)
    made_tokenizer().save(str(made / "tokenizer.json"))
    return made


@pytest.fixture(scope="module")
def transcriber(folder):
    return transcribing.load(folder)


def clips(count):
    """Sounds of several lengths: tones that glide, and noise."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(count):
        time = np.arange(generator.integers(3000, RATE)) / RATE
        low, high = generator.uniform(80, 4000, 2)
        tone = np.sin(2 * np.pi * (low + (high - low) * time) * time)
        made.append(tone * generator.uniform(0.05, 0.9) + 0.01 * generator.normal(size=len(time)))
    return [clip.astype(np.float32) for clip in made]


def expected_tokens(sounds, **options):
    """What transformers writes for each sound, without prompt, end and padding."""
    torch = peers.torch()
    peers.transformers()
    from transformers import WhisperFeatureExtractor

    features = WhisperFeatureExtractor(chunk_length=1)(
        sounds, sampling_rate=RATE, return_tensors="pt"
    ).input_features
    with torch.no_grad():
        made = reference().generate(features, force_unique_generate_call=True, **options)
    found = []
    for row in made.tolist():
        prompt = {*range(257, FIRST)} - {TOKEN["<|nospeech|>"]}
        while row and row[0] in prompt:
            row = row[1:]
        found.append(row[: row.index(256)] if 256 in row else row)
    return found


def window(clip):
    return np.pad(clip, (0, RATE - len(clip)))


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize(("language", "task"), [("de", "translate"), ("", "transcribe")])
def test_tokens_are_those_of_transformers(transcriber, language, task, timestamps):
    sounds = clips(50)
    found = [
        transcribing.decode_window(
            transcriber, window(clip), language=language, task=task, timestamps=timestamps
        )
        for clip in sounds
    ]
    # One by one: a batch would share its prompt's language.
    expected = []
    groups = {spoken for _, spoken in found}
    for spoken in sorted(groups):
        of_group = [clip for clip, (_, other) in zip(sounds, found, strict=True) if other == spoken]
        # Without a language it is detected for each sound.
        expected.append((spoken, expected_tokens(
            of_group, language=language or None, task=task, return_timestamps=timestamps
        )))  # fmt: skip
    for spoken, texts in expected:
        assert [tokens for tokens, other in found if other == spoken] == texts
    assert len({tuple(tokens) for tokens, _ in found}) > 5
    if timestamps:
        assert any(token >= FIRST for tokens, _ in found for token in tokens)


def test_the_language_is_detected_as_transformers_does(transcriber):
    torch = peers.torch()
    peers.transformers()
    from transformers import WhisperFeatureExtractor

    sounds = clips(20)
    features = WhisperFeatureExtractor(chunk_length=1)(
        sounds, sampling_rate=RATE, return_tensors="pt"
    ).input_features
    with torch.no_grad():
        expected = reference().detect_language(features).tolist()
    found = [transcribing.decode_window(transcriber, window(clip))[1] for clip in sounds]
    assert [TOKEN[f"<|{language}|>"] for language in found] == expected


def test_a_long_recording_is_read_window_by_window(transcriber):
    sound = np.concatenate(clips(6))[: 2 * RATE + 9000]
    made = transcribing.transcribe(transcriber, sound, language="en")
    windows = [sound[:RATE], sound[RATE : 2 * RATE], sound[2 * RATE :]]
    texts = [
        transcriber.tokenizer.decode([token for token in tokens if token < 256]).strip()
        for tokens in expected_tokens(
            windows, language="en", task="transcribe", return_timestamps=False
        )
    ]
    assert made.text == " ".join(filter(None, texts))
    assert made.language == "en"
    times = [(part.begin, part.end) for part in made.segments]
    assert times == [
        time for time, text in zip([(0, 1), (1, 2), (2, 2.58)], texts, strict=True) if text
    ]


def test_with_timestamps_the_next_window_begins_where_the_last_segment_ends(
    transcriber, monkeypatch
):
    given, texts = [], [
        [FIRST, 65, FIRST + 20, FIRST + 20, 66, FIRST + 30, FIRST + 35, 67],
        [FIRST + 5, 68, 69, FIRST + 25],
        [70],
    ]  # fmt: skip

    def decoded(transcriber, window, *, language, task, timestamps):
        given.append((window.copy(), language))
        return texts[len(given) - 1], "de"

    monkeypatch.setattr(transcribing, "decode_window", decoded)
    sound = np.arange(2 * RATE, dtype=np.float32) / RATE
    made = transcribing.transcribe(transcriber, sound, timestamps=True)
    # The text after the last pair is read again, from 0.6 seconds on; then all of that window.
    assert [(round(float(window[0]), 4), language) for window, language in given] == [
        (0.0, ""), (0.6, "de"), (1.6, "de"),
    ]  # fmt: skip
    np.testing.assert_array_equal(given[2][0][6400:], 0)
    assert [(round(p.begin, 2), round(p.end, 2)) for p in made.segments] == [
        (0.0, 0.4), (0.4, 0.6), (0.6, 1.1), (1.6, 2.0),
    ]  # fmt: skip
    letters = [transcriber.tokenizer.decode(piece) for piece in ([65], [66], [68, 69], [70])]
    assert [part.text for part in made.segments] == letters
    assert made.text == " ".join(letters)


def test_the_command_prints_texts_and_json(folder, transcriber, tmp_path, capsys):
    files = []
    for number, (clip, rate) in enumerate(zip(clips(2), (RATE, 44_100), strict=True)):
        files.append(str(tmp_path / f"{number}.wav"))
        soundfile.write(files[-1], np.stack([clip, clip], axis=1), rate)
    made = [
        transcribing.transcribe(transcriber, read_wav(tmp_path / f"{n}.wav", RATE))
        for n in range(2)
    ]
    cli.main(["transcribe", f"--model={folder}", *files])
    assert capsys.readouterr().out == "".join(
        f"{file}\t{one.text}\n" for file, one in zip(files, made, strict=True)
    )
    cli.main(
        [
            "transcribe",
            "--model",
            str(folder),
            "--json",
            "--timestamps",
            "--language",
            "de",
            files[0],
        ]
    )
    shown = json.loads(capsys.readouterr().out)
    with_times = transcribing.transcribe(
        transcriber, read_wav(tmp_path / "0.wav", RATE), language="de", timestamps=True
    )
    assert (shown["input"], shown["output"]) == (files[0], with_times.text)
    assert shown["language"] == "de"
    assert [part["text"] for part in shown["segments"]] == [p.text for p in with_times.segments]


def test_broken_files_do_not_stop_the_others(folder, tmp_path, capsys):
    good, cut, empty, text = (tmp_path / name for name in ("a.wav", "cut.wav", "no.wav", "t.wav"))
    soundfile.write(good, clips(1)[0], RATE)
    cut.write_bytes(good.read_bytes()[:-1000])
    soundfile.write(empty, np.zeros(0), RATE)
    text.write_text("no sound at all")
    with pytest.raises(SystemExit) as ended:
        cli.main(
            ["transcribe", f"--model={folder}", *map(str, (cut, empty, good, text)), "no-such.wav"]
        )
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{good}\t")
    for words in ("cut.wav is cut off", "no.wav is empty", "t.wav is not a recording", "no-such"):
        assert words in shown.err


def changed(folder, tmp_path, name, change):
    """A copy of the folder, in which a JSON file has other values, or is absent."""
    shutil.copytree(folder, tmp_path / "changed")
    file = tmp_path / "changed" / name
    if change is None:
        file.unlink()
    elif isinstance(change, str):
        file.write_text(change)
    else:
        content = {**json.loads(file.read_text()), **change}
        file.write_text(json.dumps({k: v for k, v in content.items() if v != "absent"}))
    return tmp_path / "changed"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("tokenizer.json", None, r"has no tokenizer\.json"),
        ("tokenizer.json", "{}", r"tokenizer\.json is not the file of a tokenizer"),
        ("preprocessor_config.json", None, r"has no preprocessor_config\.json"),
        ("preprocessor_config.json", {"feature_size": 128}, "100 frames of 128 features"),
        ("preprocessor_config.json", {"chunk_length": 30}, "3000 frames .* reads 100 of 80"),
        ("preprocessor_config.json", {"hop_length": "x"}, "hop_length='x' must be an integer"),
        ("preprocessor_config.json", {"dither": 0.1}, "dither=0.1"),
        ("generation_config.json", None, r"has no generation_config\.json"),
        ("generation_config.json", {"lang_to_id": [1]}, "lang_to_id must be an object"),
        ("generation_config.json", {"suppress_tokens": 3}, "suppress_tokens must be a list"),
        ("generation_config.json", {"no_timestamps_token_id": 999}, "999 .* vocab_size=318"),
        ("config.json", {"model_type": "bart"}, "model_type='bart'"),
        ("model.safetensors", None, r"has no model\.safetensors"),
    ],
)
def test_folders_that_do_not_fit_are_refused(folder, tmp_path, name, change, words):
    with pytest.raises(UserError, match=words):
        transcribing.load(changed(folder, tmp_path, name, change))


def test_a_folder_must_be_there_and_a_language_known(folder, transcriber):
    with pytest.raises(UserError, match="--model=no-such is not a folder: fetch one"):
        transcribing.load("no-such")
    second = np.zeros(RATE, np.float32)
    with pytest.raises(UserError, match="language='hav' is unknown .* Did you mean 'haw'"):
        transcribing.transcribe(transcriber, second, language="hav")
    with pytest.raises(UserError, match="task='summarize' must be one of"):
        transcribing.transcribe(transcriber, second, task="summarize")
    with pytest.raises(UserError, match="the recording is empty"):
        transcribing.transcribe(transcriber, second[:0])


def test_older_folders_lack_tables_that_the_tokenizer_has(folder, transcriber, tmp_path):
    absent = dict.fromkeys(
        ("lang_to_id", "task_to_id", "is_multilingual", "no_timestamps_token_id"), "absent"
    )
    older = changed(folder, tmp_path, "generation_config.json", absent)
    assert transcribing.load(older).prompts == transcriber.prompts


def test_the_newer_file_of_a_processor_is_read(folder, transcriber, tmp_path):
    newer = changed(folder, tmp_path, "preprocessor_config.json", {})
    file = newer / "preprocessor_config.json"
    content = {"feature_extractor": json.loads(file.read_text())}
    (newer / "processor_config.json").write_text(json.dumps(content))
    file.unlink()
    assert transcribing.load(newer).sound == transcriber.sound


def test_a_model_for_english_is_told_no_language(folder, tmp_path):
    english = changed(
        folder, tmp_path, "generation_config.json",
        {"is_multilingual": False, "lang_to_id": "absent", "task_to_id": "absent"},
    )  # fmt: skip
    transcriber = transcribing.load(english)
    sounds = clips(3)
    model, before = reference(), reference().generation_config
    try:
        model.generation_config = copy.deepcopy(before)
        model.generation_config.is_multilingual = False
        del model.generation_config.lang_to_id, model.generation_config.task_to_id
        expected = expected_tokens(sounds, return_timestamps=False)
    finally:
        model.generation_config = before
    found = [transcribing.decode_window(transcriber, window(clip)) for clip in sounds]
    assert found == [(tokens, "en") for tokens in expected]
    with pytest.raises(UserError, match="task='translate': this model knows English alone"):
        transcribing.decode_window(transcriber, window(sounds[0]), task="translate")
    with pytest.raises(UserError, match="language='de'"):
        transcribing.decode_window(transcriber, window(sounds[0]), language="de")


def test_help_says_both_forms_and_a_run_is_still_asked(capsys):
    cli.main(["transcribe", "--help"])
    shown = capsys.readouterr().out
    assert "windows of 30 seconds" in shown
    assert "task.name='transcription'" in shown
    cli.main(["--help"])
    published = capsys.readouterr().out.partition("Published models, with --model FOLDER:")[2]
    assert "\n  transcribe" in published
    with pytest.raises(SystemExit):
        cli.main(["transcribe", "a.wav"])
    assert "--workdir is missing" in capsys.readouterr().err
