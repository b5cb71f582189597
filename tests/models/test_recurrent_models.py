"""The speech recognizer, the text classifier and the forecaster against PyTorch classes."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import peers
import pytest

from zoo.errors import UserError
from zoo.families.rnn import rnn_table
from zoo.layers.audio import mel_filters
from zoo.models import Forecaster, SpeechRecognizer, TextClassifier


def test_speech_recognizer_computes_what_pytorch_does():
    peers.torch().manual_seed(0)
    from benchmarks.torch_peers import sequences

    theirs = sequences.SpeechRecognizer(mel_filters(8, 64, 8000), 5, 6, 2, hop=32, stack=3)
    parity.check_parity(
        SpeechRecognizer(num_symbols=5, num_mels=8, features=6, window=64, hop=32),
        theirs,
        rnn_table(2, embeds=False, bidirectional=True),
        np.random.default_rng(0).normal(size=(3, 1200)).astype(np.float32),
        np.array([1200, 500, 900]),
        axes=None,
        ours=lambda apply, samples, lengths: apply(samples, lengths)[0],
        theirs=lambda module, samples, lengths: module(samples, lengths)[0],
    )


def test_text_classifier_computes_what_pytorch_does():
    peers.torch().manual_seed(0)
    from benchmarks.torch_peers import sequences

    parity.check_parity(
        TextClassifier(num_classes=3, vocab_size=11, embed_features=5, features=6, num_layers=2),
        sequences.TextClassifier(3, 11, 5, 6, 2),
        rnn_table(2, bidirectional=True),
        np.random.default_rng(0).integers(0, 11, (4, 9)),
        np.array([9, 1, 4, 7]),
        axes=None,
    )


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_forecaster_computes_what_pytorch_does(cell):
    peers.torch().manual_seed(0)
    from benchmarks.torch_peers import sequences

    parity.check_parity(
        Forecaster(horizon=4, period=5.5, cell=cell, features=6, num_layers=2),
        sequences.Forecaster(4, 5.5, cell, 6, 2),
        rnn_table(2, embeds=False),
        np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32),
        # Whole numbers get no gradient: nothing learns from that of the date.
        np.array([0, 3, 7]),
        axes=None,
    )


def test_quantiles_do_not_cross_and_follow_level_and_scale():
    model = Forecaster(horizon=5, quantiles=(0.1, 0.3, 0.5, 0.7, 0.9), features=4)
    series = np.random.default_rng(0).normal(size=(6, 20))
    with jax.enable_x64(True):
        phase = jnp.arange(6.0)
        variables = model.init(jax.random.key(0), jnp.asarray(series), phase)
        found = model.apply(variables, series, phase)
        assert (jnp.diff(found, axis=-1) > 0).all()
        moved = model.apply(variables, 1000 * series - 3, phase)
        # Equal but for the millionth that keeps a constant series from dividing by zero.
        np.testing.assert_allclose(moved, 1000 * found - 3, rtol=1e-4)


def test_words_after_the_end_change_nothing():
    model = TextClassifier(vocab_size=11, embed_features=5, features=6)
    tokens, lengths = np.random.default_rng(0).integers(0, 11, (3, 9)), jnp.array([9, 4, 1])
    variables = model.init(jax.random.key(0), tokens, lengths)
    together = model.apply(variables, tokens, lengths)
    for row, length in enumerate(lengths):
        alone = model.apply(variables, tokens[row : row + 1, :length], length[None])
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (SpeechRecognizer(), (jnp.zeros(300), jnp.ones(1, int))),
        (TextClassifier(), (jnp.zeros(3, int), jnp.ones(1, int))),
        (Forecaster(), (jnp.zeros((2, 1)), jnp.zeros(2))),
    ],
)
def test_what_does_not_fit_is_refused(model, inputs):
    with pytest.raises(UserError, match="must be"):
        model.init(jax.random.key(0), *inputs)
