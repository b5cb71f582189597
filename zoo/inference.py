"""What is done with a finished run: load it, evaluate it, and ask it."""

import dataclasses
import datetime
import importlib.resources
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, UInt8
from ml_collections import ConfigDict

from zoo import building, data
from zoo import config as configs
from zoo.data import sentences
from zoo.data.folders import read_image
from zoo.data.images import image_transform
from zoo.data.messages import encode_message
from zoo.data.pairs import END, encode_source
from zoo.data.scenes import encode_caption, to_pixels
from zoo.data.series import columns, read_series
from zoo.data.speech import SAMPLE_RATE, read_wav
from zoo.data.text import read_text
from zoo.decoding import beam_search, stream
from zoo.errors import UserError
from zoo.flops import count_flops
from zoo.layers import fuse
from zoo.models import create_model, list_models
from zoo.pretrained import variables_to_reference
from zoo.pretrained.files import write_weights
from zoo.pretrained.published import example_inputs, tables_of
from zoo.tasks import Diffusion, SequenceToSequence, Task
from zoo.tasks.language_modelling import CARRY
from zoo.training.checkpoints import Checkpoints
from zoo.training.partitioning import jit, make_mesh, replicated


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A run's model with its weights.

    Attributes:
        module: the linen module.
        variables: its variables, the average of the parameters where the run kept one:
            ``module.apply(variables, ...)``.
        vocabularies: what the data's numbers stand for, by name.
        config: the run's config.
        task: the module joined with its loss and metrics.
        step: number of updates.
    """

    module: nn.Module
    variables: dict[str, Any]
    vocabularies: dict[str, data.Vocabulary]
    config: ConfigDict
    task: Task
    step: int

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of a classifier's classes, in the order of its logits.

        Raises:
            UserError: the run is no classifier.
        """
        _need(self, ("classification", "text_classification"), "labels")
        return self.vocabularies["classes"].symbols

    def preprocess(
        self, image: UInt8[np.ndarray, "height width channels"]
    ) -> Float32[np.ndarray, "image_size image_size 3"]:
        """Prepares an image for a classifier as its evaluation does.

        Raises:
            UserError: the run is no classifier of images from files.
        """
        _need(self, "classification", "preprocess")
        options = self.config.data.to_dict()
        if options.pop("name") == "digit_scenes":
            raise UserError("images cannot be prepared for data.name='digit_scenes': it draws them")
        transform = image_transform(options.pop("transform"), train=False, **options)
        example = {"image": image, "label": 0}
        return transform(example, np.random.default_rng(0))["image"]


def load(workdir: str | Path, *, checkpoint: str = "latest") -> Loaded:
    """Loads a run; neither its data nor its devices are needed.

    Args:
        workdir: the run's folder; it is only read.
        checkpoint: ``latest`` or ``best``.

    Raises:
        UserError: the folder holds no run, or has no such checkpoint.
    """
    workdir = Path(workdir)
    config = building.read_config(workdir)
    file = workdir / "vocabulary.json"
    if not file.is_file():
        raise UserError(f"the run in {workdir} is not whole: there is no {file}")
    vocabularies = data.vocabularies_from_json(file.read_text(encoding="utf-8"))
    building.start_jax(config)
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        read = checkpoints.read_state(checkpoint, replicated(make_mesh(1)))
    finally:
        checkpoints.close()
    if read is None:
        raise UserError(f"the work directory {workdir} has no {checkpoint} checkpoint")
    state, step = read
    task = building.build_task(config, vocabularies)
    params = state["ema_params"] or state["params"]
    collections = {name: v for name, v in state["model_state"].items() if name != CARRY}
    variables = {"params": params} | collections
    return Loaded(task.model, variables, vocabularies, config, task, step)


def evaluate(
    workdir: str | Path, config: ConfigDict, *, split: str = "test", checkpoint: str = "latest"
) -> dict[str, Any]:
    """Evaluates the checkpoint of a run on a split.

    Args:
        workdir: the run's folder; it is only read.
        config: the run's config, with another data set if wanted.
        split: name of the split, or several joined by ``+``.
        checkpoint: ``latest`` or ``best``.

    Returns:
        ``split, step, metrics`` and the task's scores.

    Raises:
        UserError: there is no such checkpoint, or the data do not fit the model.
    """
    config = configs.check(config)
    # Before the data, as in ``zoo.run``: it makes the settings of the process.
    loaded = load(workdir, checkpoint=checkpoint)
    config, dataset = building.with_data(config)
    dataset.open(split)
    evaluator = building.Evaluator(config, dataset, loaded.task, make_mesh(config.mesh.data))
    model_state = {name: v for name, v in loaded.variables.items() if name != "params"}
    metrics = evaluator.means(loaded.variables["params"], model_state, split)
    scores = evaluator.scores(loaded.variables["params"], model_state, split)
    metrics |= scores.pop("metrics", {})
    return {"split": split, "step": loaded.step, "metrics": metrics} | scores


def describe_models(pattern: str = "*") -> list[dict[str, Any]]:
    """Returns what is known of the models whose names match: nothing is computed.

    Each has ``name``, ``parameters``, ``gflop`` (of a forward pass, products and convolutions),
    ``input`` and ``verified``: what it was compared with, and the largest difference of gradients
    in float64, by ``zoo/pretrained/verified.json``, which the tests write.
    """
    file = importlib.resources.files("zoo.pretrained").joinpath("verified.json")
    verified = json.loads(file.read_text(encoding="utf-8"))
    rows = []
    for name in list_models(pattern):
        module = create_model(name)
        inputs = example_inputs(name, module)
        shapes = jax.eval_shape(lambda m=module, i=inputs: m.init(jax.random.key(0), **i))
        flops = count_flops(lambda v, m=module, i=inputs: m.apply(v, **i), shapes)
        known = verified.get(type(module).__name__)
        checked = f"{known['reference']} ({known['gradient']['float64']:.0e})" if known else "no"
        rows.append(
            {
                "name": name,
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])),
                "gflop": flops / 1e9,
                "input": ", ".join(f"{key} {list(x.shape)}" for key, x in inputs.items()),
                "verified": checked,
            }
        )
    return rows


def export(
    workdir: str | Path, out: str | Path | None = None, *, checkpoint: str = "latest"
) -> Path:
    """Writes a run's weights as safetensors under its reference's names, and ``config.json``.

    Args:
        workdir: the run's folder; it is only read.
        out: the folder to write to; None: ``export`` in the run's folder.
        checkpoint: ``latest`` or ``best``.

    Returns:
        The path of ``model.safetensors``.

    Raises:
        UserError: there is no such checkpoint, or the model has no table of weights.
    """
    loaded = load(workdir, checkpoint=checkpoint)
    fields = loaded.config.model.to_dict()
    table, *_ = tables_of(fields["name"], loaded.module).values()
    description = {
        "model": fields,
        "data": loaded.config.data.to_dict(),
        "labels": {name: list(v.symbols) for name, v in loaded.vocabularies.items()},
        "step": loaded.step,
    }
    arrays = variables_to_reference(loaded.variables, table)
    return write_weights(Path(out) if out else Path(workdir) / "export", arrays, description)


def generate(
    loaded: Loaded,
    prompt: str,
    *,
    max_new_tokens: int = 200,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    num_beams: int = 1,
) -> Iterator[str]:
    """Continues a text with a run's language model, one symbol after the other as they come.

    Args:
        loaded: a run of ``configs/gpt.py``, ``configs/lstm.py`` or ``configs/word_lm.py``.
        prompt: the beginning, at least one symbol; it is not repeated. Words that are not in the
            vocabulary of a model of words are read as the unknown word.
        max_new_tokens: how many symbols to add, at least 1; a sentence may end before.
        seed: the same seed gives the same text.
        temperature: 0: always the likeliest symbol; see ``zoo.decoding.filter_logits``.
        top_k: see there.
        top_p: see there.
        num_beams: above 1: the likeliest whole text that a beam search of this width finds, all at
            once; temperature, ``top_k`` and ``top_p`` have no meaning then.

    Raises:
        UserError: the run is no language model, the prompt is empty or has unknown symbols, or a
            number is out of range.
    """
    _need(loaded, "language_modelling", "zoo generate")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if not prompt:
        raise UserError("the prompt is empty: give at least one character")
    tokens, end, spelled = _read_prompt(loaded, prompt)
    # None: a recurrent state has room for any text.
    context = loaded.config.model.get("context")
    model: Any = loaded.module

    def step(tokens: Any, cache: Any) -> Any:
        return model.apply(loaded.variables, tokens, cache)

    if num_beams > 1:
        length = tokens.shape[1] + max_new_tokens
        if context and length > context:
            raise UserError(
                f"beam search over {length} symbols is more than the model's context of "
                f"{context}: shorten the prompt or lower max_new_tokens"
            )
        found, _ = beam_search(
            step,
            model.initial_cache(1, length),
            tokens,
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            end=end,
        )
        return map(spelled, itertools.takewhile(lambda t: t != end, np.asarray(found[0]).tolist()))
    new = stream(
        step,
        lambda: model.initial_cache(1, context or 0),
        tokens,
        jax.random.key(seed),
        max_new_tokens=max_new_tokens,
        context=context,
        end=None if end < 0 else end,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    return map(spelled, itertools.takewhile(lambda t: t != end, (int(token[0]) for token in new)))


def next_words(loaded: Loaded, prompt: str, *, most: int = 10) -> list[tuple[str, float]]:
    """Returns the likeliest next symbols after the beginning of a text, with probabilities.

    Args:
        loaded: a run of a language model; ``configs/word_lm.py`` has words as symbols.
        prompt: the beginning; empty: what sentences begin with, of a model of words.
        most: how many.

    Raises:
        UserError: the run is no language model, or the prompt is longer than its context, or empty
            for a model of characters.
    """
    _need(loaded, "language_modelling", "zoo predict")
    tokens, _, _ = _read_prompt(loaded, prompt)
    if not tokens.size:
        raise UserError("the text is empty: give at least one character")
    (vocabulary,) = loaded.vocabularies.values()
    made: Any = jit(loaded.module.apply)(loaded.variables, tokens)
    shares = np.asarray(jax.nn.softmax(made[0][0, -1]))
    return [(vocabulary.symbols[i], float(shares[i])) for i in np.argsort(-shares)[:most]]


def unknown_words(loaded: Loaded, text: str) -> list[str]:
    """Returns the words of a text that a run's model of words or texts reads as the unknown word.

    Of a run without words in its vocabulary there are none.
    """
    if "words" not in loaded.vocabularies:
        return []
    known = loaded.vocabularies["words"].numbers
    cased = loaded.config.task.name == "language_modelling"
    return [w for w in sentences.words_of(text if cased else text.lower()) if w not in known]


def _read_prompt(
    loaded: Loaded, prompt: str
) -> tuple[Int[Array, "1 time"], int, Callable[[int], str]]:
    """Returns the tokens of a prompt, the token that ends a text or -1, and how tokens are spelled.

    Characters must all be known; of words, those that are not are one symbol.
    """
    if "words" in loaded.vocabularies:
        words = loaded.vocabularies["words"]
        numbers = [sentences.END, *sentences.encode(prompt, words)]
        return (
            jnp.asarray(numbers, jnp.int32)[None],
            sentences.END,
            lambda token: sentences.spaced(words.symbols[token]),
        )
    characters = loaded.vocabularies["characters"]
    return jnp.asarray(characters.encode(prompt))[None], -1, characters.symbols.__getitem__


def predict_classes(
    loaded: Loaded, files: Sequence[str | Path], *, most: int = 5
) -> list[list[tuple[str, float]]]:
    """Returns the likeliest classes of images in files, each with its probability.

    Args:
        loaded: a run of an image classifier, such as ``configs/cnn.py``.
        files: the images.
        most: how many classes of each.

    Raises:
        UserError: the run is of another task, or a file cannot be read; all those are named.
    """
    classes = loaded.labels
    images, broken = [], []
    for file in files:
        try:
            images.append(loaded.preprocess(read_image(file)))
        except UserError as error:
            broken.append(str(error))
    if broken:
        raise UserError("\n".join(broken))
    task: Any = loaded.task
    state = {name: v for name, v in loaded.variables.items() if name != "params"}
    predict = jit(
        fuse(
            lambda image: task.predict(
                loaded.variables["params"], state, {"image": image}, jax.random.key(0)
            )["probability"]
        )
    )
    # One by one: any number of files with one compilation.
    probabilities = [np.asarray(predict(image[None]))[0] for image in images]
    return _likeliest(classes, probabilities, most)


def predict_labels(
    loaded: Loaded, texts: Sequence[str], *, most: int = 5
) -> list[list[tuple[str, float]]]:
    """Returns the likeliest classes of texts, each with its probability.

    Args:
        loaded: a run of ``configs/classify_text.py``.
        texts: what to classify.
        most: how many classes of each.

    Raises:
        UserError: the run is of another task.
    """
    _need(loaded, "text_classification", "zoo predict")
    words, length = loaded.vocabularies["words"], loaded.config.data.max_length
    examples = [encode_message(text, words, length) for text in texts]
    batch = {name: np.stack([one[name] for one in examples]) for name in examples[0]}
    made = jit(loaded.task.predict)(loaded.variables["params"], {}, batch, jax.random.key(0))
    return _likeliest(loaded.labels, np.asarray(made["probability"]), most)


def _likeliest(
    classes: Sequence[str], probabilities: Any, most: int
) -> list[list[tuple[str, float]]]:
    return [
        [(classes[index], float(row[index])) for index in np.argsort(-row)[:most]]
        for row in probabilities
    ]


def transcribe(loaded: Loaded, files: Sequence[str | Path]) -> list[str]:
    """Returns what is said in WAV files.

    Args:
        loaded: a run of ``configs/speech.py``.
        files: sounds of any length and rate; they are heard at the run's own rate.

    Raises:
        UserError: the run is of another task, or a file cannot be read; all those are named.
    """
    _need(loaded, "transcription", "zoo transcribe")
    sounds, broken = [], []
    for file in files:
        try:
            sounds.append(read_wav(Path(file)))
        except UserError as error:
            broken.append(str(error))
    if broken:
        raise UserError("\n".join(broken))
    predict = jit(loaded.task.predict)
    symbols = loaded.vocabularies["symbols"]
    # As long as in training, or a multiple: few lengths are compiled.
    step = round(loaded.config.data.max_seconds * SAMPLE_RATE)
    texts = []
    for sound in sounds:
        samples = np.pad(sound, (0, -len(sound) % step))
        batch = {"samples": samples[None], "length": np.asarray([len(sound)], np.int32)}
        made = predict(loaded.variables["params"], {}, batch, jax.random.key(0))
        texts.append("".join(symbols.decode([t for t in np.asarray(made["text"])[0] if t])))
    return texts


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What comes after a series.

    Attributes:
        dates: of the values that are forecast.
        probabilities: of the quantiles, increasing; the middle one is the forecast.
        quantiles: for each date.
        series: the values before, that the forecast was made from.
        filled: how many missing values of the whole file were filled along a straight line.
    """

    dates: tuple[datetime.date, ...]
    probabilities: tuple[float, ...]
    quantiles: Float32[np.ndarray, "horizon quantiles"]
    series: Float32[np.ndarray, " context"]
    filled: int


def forecast(loaded: Loaded, path: str) -> Forecast:
    """Returns quantiles of the values that follow a series.

    Args:
        loaded: a run of ``configs/forecast.py``.
        path: a CSV file with the run's own columns of time and value.

    Raises:
        UserError: the run is of another task, the file is wrong in a named line, or the series is
            shorter than what the model reads.
    """
    _need(loaded, "forecasting", "zoo predict")
    fields = loaded.config.data
    names = columns(fields.name, fields.time_column, fields.value_column)
    series = read_series(path, read_text(path), *names)
    if len(series.values) < fields.context:
        raise UserError(
            f"{path} has {len(series.values)} values; this run reads data.context={fields.context}"
        )
    model: Any = loaded.module
    last = len(series.values) - 1
    seen = series.values[-fields.context :].astype(np.float32)
    phase = np.asarray([series.phase(last)], np.float32)
    made: Any = jit(model.apply)(loaded.variables, seen[None], phase)
    return Forecast(
        dates=tuple(series.date(last + 1 + i) for i in range(model.horizon)),
        probabilities=tuple(model.quantiles),
        quantiles=np.asarray(made)[0],
        series=seen,
        filled=len(series.filled),
    )


def predict_targets(
    loaded: Loaded, sources: Sequence[str], *, num_beams: int | None = None
) -> list[list[str]]:
    """Returns the target of each source, such as the phonemes of words.

    Args:
        loaded: a run of ``configs/transformer.py``.
        sources: what to read.
        num_beams: width of the beam search, 1 for greedy decoding; None: the run's own.

    Raises:
        UserError: the run is of another task, or a source is too long or has unknown characters.
    """
    _need(loaded, "sequence_to_sequence", "zoo predict")
    task = loaded.task
    assert isinstance(task, SequenceToSequence)
    fields = loaded.config.data
    encoded = np.stack(
        [
            encode_source(source, loaded.vocabularies["source"], fields.max_source_length)
            for source in sources
        ]
    )
    beams = num_beams or task.num_beams
    decode = jit(
        lambda variables, source: task.decode(
            variables["params"], source, fields.max_target_length, num_beams=beams
        )
    )
    targets = loaded.vocabularies["target"]
    return [
        targets.decode([token for token in row if token > END])
        for row in np.asarray(decode(loaded.variables, encoded))
    ]


def draw(
    loaded: Loaded,
    prompt: str,
    *,
    num: int = 16,
    steps: int = 50,
    guidance: float = 3.0,
    seed: int = 0,
) -> UInt8[np.ndarray, "num height width channels"]:
    """Draws images for a caption.

    Args:
        loaded: a run of ``configs/diffusion.py``.
        prompt: the caption.
        num: how many images, at least 1.
        steps: number of sampling steps, at most the noise schedule's.
        guidance: 1: as the caption says; above: more so.
        seed: the same seed draws the same images.

    Raises:
        UserError: the run is of another task, a number is out of range, or training never showed
            some words; they are named.
    """
    _need(loaded, "diffusion", "zoo sample")
    task = loaded.task
    assert isinstance(task, Diffusion)
    if num < 1:
        raise UserError(f"num={num} must be at least 1")
    tokens = np.repeat(encode_caption(prompt, loaded.vocabularies["words"])[None], num, axis=0)
    images = jit(
        lambda variables, tokens, key: task.sample(
            variables["params"], tokens, key, shape=(32, 32, 3), guidance=guidance, steps=steps
        )
    )(loaded.variables, tokens, jax.random.key(seed))
    return to_pixels(np.asarray(images))


def _need(loaded: Loaded, task: str | tuple[str, ...], command: str) -> None:
    tasks = (task,) if isinstance(task, str) else task
    if loaded.config.task.name not in tasks:
        raise UserError(
            f"{command} needs a run with task.name={' or '.join(map(repr, tasks))}; this one has "
            f"{loaded.config.task.name!r}"
        )
