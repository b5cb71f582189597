"""Texts of recordings, by Whisper as it is published (Radford et al. 2022)."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from zoo.decoding import greedy
from zoo.decoding.timestamps import Rules, nothing_written, ruled, segments
from zoo.errors import UserError, did_you_mean
from zoo.layers.audio import mel_filters, whisper_features
from zoo.models.whisper import Whisper
from zoo.pretrained import from_pretrained
from zoo.weights.files import read_json

TASKS = ("transcribe", "translate")
# Steps of time a second: a timestamp is a multiple of 0.02 seconds.
_STEPS = 50
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")


@dataclasses.dataclass(frozen=True)
class Sound:
    """How sound becomes features: what ``preprocessor_config.json`` says.

    Attributes:
        rate: samples a second.
        length: samples in a window.
        hop: samples from frame to frame.
        window: samples in a frame.
        num_mels: features in a frame.
    """

    rate: int = 16_000
    length: int = 480_000
    hop: int = 160
    window: int = 400
    num_mels: int = 80


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The tokens that tell the model what to do.

    Attributes:
        start: the token that begins every text.
        end: the token that ends it.
        no_timestamps: the token that says that there are no timestamps, which are the tokens after
            it.
        languages: the token of each language, such as ``en``; empty: the model knows English alone,
            and is told no language and no task.
        tasks: the token of ``transcribe`` and of ``translate``.
        never: see ``zoo.decoding.timestamps.Rules``.
        not_first: see there.
        most_first: see there.
    """

    start: int
    end: int
    no_timestamps: int
    languages: Mapping[str, int]
    tasks: Mapping[str, int]
    never: tuple[int, ...] = ()
    not_first: tuple[int, ...] = ()
    most_first: int | None = None


@dataclasses.dataclass(frozen=True)
class Transcriber:
    """A model with all that it needs to transcribe.

    Attributes:
        module: the linen module.
        variables: its weights.
        tokenizer: the ``tokenizers.Tokenizer`` of its texts.
        sound: how sound becomes features.
        prompts: the tokens that tell the model what to do.
    """

    module: Whisper
    variables: Mapping[str, Any]
    tokenizer: Any
    sound: Sound
    prompts: Prompts


@dataclasses.dataclass(frozen=True)
class Spoken:
    """What is said from one time to another.

    Attributes:
        begin: where it begins, in seconds.
        end: where it ends.
        text: what is said.
    """

    begin: float
    end: float
    text: str


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What is said in a recording.

    Attributes:
        text: all of it.
        language: the language that was given or detected in the first window, such as ``en``.
        segments: the parts of the text; without timestamps one for each window.
    """

    text: str
    language: str
    segments: tuple[Spoken, ...]


def load(folder: str | Path) -> Transcriber:
    """Reads a folder of published weights.

    Args:
        folder: it has ``config.json``, ``model.safetensors`` or its parts, ``tokenizer.json``,
            ``preprocessor_config.json`` and ``generation_config.json``.

    Raises:
        UserError: a file is missing or damaged, or does not fit the others.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"--model={folder} is not a folder: fetch one with `hf download openai/whisper-tiny "
            "--local-dir FOLDER`"
        )
    sound = _sound(folder)
    tokenizer = _tokenizer(folder)
    prompts = _prompts(folder, tokenizer)
    config = _object(folder / "config.json")
    if config.get("model_type") != "whisper":
        raise UserError(
            f"{folder / 'config.json'}: model_type={config.get('model_type')!r}, and `transcribe` "
            "needs 'whisper'"
        )
    loaded = from_pretrained("whisper_tiny", folder)
    module = loaded.module
    assert isinstance(module, Whisper)
    frames = sound.length // sound.hop
    if (frames, sound.num_mels) != (2 * module.source_length, module.num_mels):
        raise UserError(
            f"{folder}: the preprocessor makes {frames} frames of {sound.num_mels} features, and "
            f"the model reads {2 * module.source_length} of {module.num_mels}: fetch both files "
            "from one place"
        )
    largest = max(
        prompts.no_timestamps, prompts.start, prompts.end, *prompts.languages.values(),
        *prompts.tasks.values(), *prompts.never, *prompts.not_first,
    )  # fmt: skip
    if largest >= module.vocab_size:
        raise UserError(
            f"{folder}: the token {largest} of generation_config.json is not below "
            f"vocab_size={module.vocab_size}: fetch all files from one place"
        )
    return Transcriber(module, loaded.variables, tokenizer, sound, prompts)


def transcribe(
    transcriber: Transcriber,
    samples: Float32[np.ndarray, " time"],
    *,
    language: str = "",
    task: str = "transcribe",
    timestamps: bool = False,
) -> Transcript:
    """Returns what is said in a recording, by greedy decoding of windows of 30 seconds.

    Each window is decoded by itself, and by one compiled program. Without timestamps a window
    begins where the last one ends, which may be in the middle of a word. With timestamps it begins
    where the last whole segment ends. The tokens of a window are those of ``transformers.generate``
    for the same window. Its repetitions at higher temperatures, and its skipping of silence, are
    not done.

    Args:
        transcriber: the model.
        samples: the recording in [-1, 1], with ``transcriber.sound.rate`` samples a second.
        language: the language that is spoken, such as ``en``; empty: it is detected in the first
            window, as the likeliest token of a language after the one that begins a text.
        task: ``transcribe``, or ``translate`` to English.
        timestamps: whether to say when what is said.

    Raises:
        UserError: the recording is empty, or the model does not know the language or the task.
    """
    sound, first_timestamp = transcriber.sound, transcriber.prompts.no_timestamps + 1
    if not len(samples):
        raise UserError("the recording is empty")
    # A timestamp is a whole number of steps.
    step = sound.rate // _STEPS
    made: list[Spoken] = []
    at = 0
    while at < len(samples):
        piece = samples[at : at + sound.length]
        window = np.pad(piece, (0, sound.length - len(piece))).astype(np.float32)
        tokens, language = decode_window(
            transcriber, window, language=language, task=task, timestamps=timestamps
        )
        length = -(-len(piece) // step)
        if timestamps:
            found, ahead = segments(tokens, first_timestamp, length)
            parts = [(part.begin, part.end, part.tokens) for part in found]
        else:
            parts, ahead = [(0, length, tuple(tokens))], length
        begin = at / sound.rate
        made += [
            Spoken(begin + first / _STEPS, begin + last / _STEPS, _text(transcriber, part))
            for first, last, part in parts
        ]
        # By one step at least: a damaged model may write anything.
        at += max(ahead, 1) * step
    made = [part for part in made if part.text]
    return Transcript(" ".join(part.text for part in made), language, tuple(made))


def decode_window(
    transcriber: Transcriber,
    window: Float32[np.ndarray, " length"],
    *,
    language: str = "",
    task: str = "transcribe",
    timestamps: bool = False,
) -> tuple[list[int], str]:
    """Returns the tokens of one window, without the prompt and the end, and the language.

    Args:
        transcriber: the model.
        window: ``transcriber.sound.length`` samples.
        language: see ``transcribe``.
        task: see ``transcribe``.
        timestamps: see ``transcribe``.

    Raises:
        UserError: the model does not know the language or the task.
    """
    module, prompts, variables = transcriber.module, transcriber.prompts, transcriber.variables
    _check(prompts, language, task)
    cache = _begin(module, transcriber.sound, variables, window)
    prompt = [prompts.start]
    if prompts.languages:
        if not language:
            logits = np.asarray(_first_logits(module, variables, cache, jnp.array([prompt])))
            language = max(prompts.languages, key=lambda name: logits[prompts.languages[name]])
        prompt += [prompts.languages[language], prompts.tasks[task]]
    if not timestamps:
        prompt.append(prompts.no_timestamps)
    rules = Rules(
        prompts.end,
        prompts.never,
        prompts.not_first,
        prompts.no_timestamps + 1 if timestamps else None,
        prompts.most_first,
    )
    made = np.asarray(_decode(module, rules, variables, cache, jnp.array([prompt])))[0]
    ends = np.flatnonzero(made == prompts.end)
    return made[: ends[0] if len(ends) else None].tolist(), language or "en"


def _check(prompts: Prompts, language: str, task: str) -> None:
    if task not in TASKS:
        raise UserError(f"task={task!r} must be one of {', '.join(map(repr, TASKS))}")
    if not prompts.languages:
        if language not in ("", "en") or task != "transcribe":
            raise UserError(
                f"language={language or 'en'!r} and task={task!r}: this model knows English alone, "
                "and translates nothing. Take one of many languages, such as openai/whisper-tiny"
            )
    elif language and language not in prompts.languages:
        near = did_you_mean(language, prompts.languages)
        raise UserError(f"language={language!r} is unknown to the model.{near}")
    elif task not in prompts.tasks:
        raise UserError(f"task={task!r} is unknown to the model: it has no token for it")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _begin(module: Whisper, sound: Sound, variables: Any, window: Float[Array, " length"]) -> Any:
    """Returns the cache before the first token of a window."""
    filters = mel_filters(sound.num_mels, sound.window, sound.rate, slaney=True)
    features = whisper_features(window[None], filters, hop=sound.hop, length=sound.length)
    return module.apply(variables, features, method="begin")


@functools.partial(jax.jit, static_argnums=0)
def _first_logits(
    module: Whisper, variables: Any, cache: Any, start: Int[Array, "1 1"]
) -> Float[Array, " vocab"]:
    logits: Array = module.apply(variables, start, cache, method="step")[0]
    return logits[0, -1]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode(
    module: Whisper, rules: Rules, variables: Any, cache: Any, prompt: Int[Array, "1 time"]
) -> Int[Array, "1 new_tokens"]:
    step = ruled(functools.partial(module.apply, variables, method="step"), rules)
    return greedy(
        step,
        (cache, nothing_written(1)),
        prompt,
        max_new_tokens=module.max_length - prompt.shape[1],
        end=rules.end,
        padding=rules.end,
    )


def _text(transcriber: Transcriber, tokens: tuple[int, ...]) -> str:
    # Timestamps and what says what to do are no text; some tokenizers do not know them.
    words = [token for token in tokens if token < transcriber.prompts.end]
    return str(transcriber.tokenizer.decode(words, skip_special_tokens=True)).strip()


def _object(file: Path) -> dict[str, Any]:
    """Reads a JSON object; a file that is missing is an error that names it."""
    if not file.exists():
        raise UserError(f"{file.parent} has no {file.name}: fetch all files of the model")
    content = read_json(file)
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object")
    return content


def _sound(folder: Path) -> Sound:
    file, older = folder / "preprocessor_config.json", True
    if not file.exists() and (folder / "processor_config.json").exists():
        file, older = folder / "processor_config.json", False
    content = _object(file)
    given = content if older else content.get("feature_extractor")
    if not isinstance(given, dict):
        raise UserError(f"{file} has no 'feature_extractor'")
    kind = given.get("feature_extractor_type", "WhisperFeatureExtractor")
    if kind != "WhisperFeatureExtractor":
        raise UserError(f"{file}: feature_extractor_type={kind!r} is not that of Whisper")
    for name in ("dither", "padding_value", "do_normalize"):
        if given.get(name):
            raise UserError(f"{file}: {name}={given[name]!r}, and the zoo needs none")
    numbers = {
        name: given.get(name, usual)
        for name, usual in (
            ("sampling_rate", 16_000), ("chunk_length", 30), ("hop_length", 160), ("n_fft", 400),
            ("feature_size", 80),
        )
    }  # fmt: skip
    for name, value in numbers.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{file}: {name}={value!r} must be an integer of at least 1")
    rate = numbers["sampling_rate"]
    if rate % _STEPS:
        raise UserError(f"{file}: sampling_rate={rate} must be a multiple of {_STEPS}")
    return Sound(
        rate,
        numbers["chunk_length"] * rate,
        numbers["hop_length"],
        numbers["n_fft"],
        numbers["feature_size"],
    )


def _tokenizer(folder: Path) -> Any:
    import tokenizers

    file = folder / "tokenizer.json"
    if not file.exists():
        raise UserError(
            f"{folder} has no tokenizer.json: fetch it, or write it with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    try:
        return tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises no class of its own
        raise UserError(f"{file} is not the file of a tokenizer: {error}") from error


def _prompts(folder: Path, tokenizer: Any) -> Prompts:
    """Returns what ``generation_config.json`` says; what it lacks, the tokenizer's names say."""
    file = folder / "generation_config.json"
    given = _object(file)
    known: Mapping[str, int] = tokenizer.get_vocab(with_added_tokens=True)

    def token(key: str, name: str) -> int:
        value = given.get(key)
        value = known.get(name) if value is None else value
        if type(value) is not int or value < 0:
            raise UserError(
                f"{file}: {key}={given.get(key)!r} must be a token, and the tokenizer has no {name}"
            )
        return value

    def table(key: str, usual: Mapping[str, int]) -> dict[str, int]:
        value = given.get(key, usual)
        if not isinstance(value, dict) or any(type(number) is not int for number in value.values()):
            raise UserError(f"{file}: {key} must be an object of names with their tokens")
        return value

    def tokens(key: str) -> tuple[int, ...]:
        value = given.get(key) or []
        if not isinstance(value, list) or any(type(number) is not int for number in value):
            raise UserError(f"{file}: {key} must be a list of tokens")
        return tuple(value)

    languages: dict[str, int] = {}
    tasks: dict[str, int] = {}
    # The tokenizers of models for English have the tokens of languages too, and older files lack
    # the key.
    english = given.get("is_multilingual", "lang_to_id" in given or _speaks(folder)) is False
    if not english:
        named = {name: number for name, number in known.items() if _LANGUAGE.fullmatch(name)}
        languages = {
            name.strip("<|>"): number for name, number in table("lang_to_id", named).items()
        }
        named = {task: known[f"<|{task}|>"] for task in TASKS if f"<|{task}|>" in known}
        tasks = table("task_to_id", named)
        if not languages:
            raise UserError(f"{file}: lang_to_id has no language, and is_multilingual is not false")
    most = given.get("max_initial_timestamp_index")
    if most is not None and type(most) is not int:
        raise UserError(f"{file}: max_initial_timestamp_index={most!r} must be an integer")
    return Prompts(
        token("decoder_start_token_id", "<|startoftranscript|>"),
        token("eos_token_id", "<|endoftext|>"),
        token("no_timestamps_token_id", "<|notimestamps|>"),
        languages,
        tasks,
        tokens("suppress_tokens"),
        tokens("begin_suppress_tokens"),
        most,
    )


def _speaks(folder: Path) -> bool:
    """Returns whether a model knows many languages, by the size of its vocabulary."""
    return _object(folder / "config.json").get("vocab_size", Whisper.vocab_size) != 51864
