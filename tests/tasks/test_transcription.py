"""Connectionist temporal classification against PyTorch's loss, and decoding by its definition."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import peers

from zoo.models import SpeechRecognizer
from zoo.tasks.transcription import Transcription, best_path

FRAMES, SYMBOLS = 9, 4


class Given(nn.Module):
    """A model whose logits are the sound itself."""

    @nn.compact
    def __call__(self, samples, lengths, train=False):
        shift = self.param("shift", nn.initializers.zeros, (SYMBOLS,))
        return samples.reshape(len(samples), FRAMES, SYMBOLS) + shift, lengths


def batch():
    generator = np.random.default_rng(0)
    return {
        "samples": generator.normal(size=(4, FRAMES * SYMBOLS)).astype(np.float32),
        "length": np.array([9, 5, 7, 9], np.int32),
        "target": np.array([[1, 2, 2], [3, 0, 0], [1, 1, 0], [2, 1, 3]], np.int32),
        "mask": np.array([1, 1, 1, 0], np.float32),
    }


def test_the_loss_and_its_gradient_are_pytorchs():
    torch = peers.torch()
    task, given = Transcription(Given()), batch()
    variables = task.init(jax.random.key(0), given)

    def total(samples):
        return task.loss(variables["params"], {}, given | {"samples": samples}, jax.random.key(0))

    with jax.enable_x64(True):
        samples = jnp.asarray(given["samples"], jnp.float64)
        (loss, (weight, *_)), gradient = jax.value_and_grad(total, has_aux=True)(samples)
    theirs = torch.tensor(given["samples"], dtype=torch.double, requires_grad=True)
    logits = theirs.reshape(4, FRAMES, SYMBOLS).transpose(0, 1).log_softmax(-1)
    lengths = torch.tensor((given["target"] > 0).sum(axis=1))
    losses = torch.nn.functional.ctc_loss(
        logits, torch.tensor(given["target"]), torch.tensor(given["length"]), lengths,
        reduction="none",
    )  # fmt: skip
    expected = (losses * torch.tensor(given["mask"])).sum()
    expected.backward()
    assert weight == 3
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad, rtol=1e-4, atol=1e-5)


def test_repeated_symbols_count_once_and_blanks_not_at_all():
    paths = list(itertools.product(range(3), repeat=5))
    logits = jax.nn.one_hot(jnp.array(paths), 3)
    for frames in (5, 3):
        found = np.asarray(best_path(logits, jnp.full(len(paths), frames)))
        for path, text in zip(paths, found, strict=True):
            expected = [symbol for symbol, _ in itertools.groupby(path[:frames]) if symbol]
            assert text.tolist() == expected + [0] * (5 - len(expected))


def test_a_whole_text_is_right_or_wrong():
    task = Transcription(Given())
    given = batch()
    path = np.array([[1, 1, 0, 2, 0, 2, 0, 0, 0], [3] * 9, [1, 0, 1, 2, 0, 0, 0, 0, 0], [0] * 9])
    samples = 9 * np.eye(SYMBOLS)[path].reshape(4, -1)
    variables = task.init(jax.random.key(0), given)
    sums = task.evaluate(
        variables["params"], {}, given | {"samples": jnp.asarray(samples)}, jax.random.key(0)
    )
    assert sums["accuracy"] == (2, 3)
    outputs = task.predict(
        variables["params"], {}, given | {"samples": jnp.asarray(samples)}, jax.random.key(0)
    )
    scores = task.score(jax.tree.map(np.asarray, outputs), {"target": given["target"]})
    # One symbol too many in the third text, three missing in the fourth, of nine.
    assert scores["metrics"] == {"token_error": 4 / 9, "sequence_error": 0.5}


def test_error_rates_are_jiwers():
    jiwer = peers.peer("jiwer")
    generator = np.random.default_rng(0)
    right = generator.integers(1, 10, (40, 6)) * (np.arange(6) < generator.integers(1, 7, (40, 1)))
    heard = np.where(generator.random((40, 6)) < 0.2, generator.integers(0, 10, (40, 6)), right)
    scores = Transcription(Given(), symbols=tuple("_123456789")).score(
        {"text": heard}, {"target": right}
    )
    said, understood = (
        [" ".join(str(t) for t in row if t) for row in rows] for rows in (right, heard)
    )
    assert scores["metrics"]["token_error"] == jiwer.wer(said, understood)
    first = scores["examples"][0]
    assert first["said"] != first["heard"]
    assert first["said"] in [text.replace(" ", "") for text in said]


def test_silence_after_the_end_changes_nothing():
    model = SpeechRecognizer(num_symbols=5, features=6, num_layers=2, num_mels=8)
    samples = np.random.default_rng(0).normal(size=(2, 4000)).astype(np.float32)
    lengths = jnp.array([4000, 2600])
    variables = model.init(jax.random.key(0), samples, lengths)
    together, frames = model.apply(variables, samples, lengths)
    alone, alone_frames = model.apply(variables, samples[1:, :2600], lengths[1:])
    assert alone_frames == frames[1] < frames[0]
    count = int(frames[1])
    np.testing.assert_allclose(together[1, :count], alone[0, :count], rtol=1e-4, atol=1e-5)

    def total(samples):
        logits, frames = model.apply(variables, samples, lengths)
        counts = jnp.arange(logits.shape[1]) < frames[:, None]
        return (logits * counts[..., None]).sum()

    reached = np.asarray(jax.grad(total)(samples))[1] != 0
    assert reached[:2600].any()
    assert not reached[2600:].any()
