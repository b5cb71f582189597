"""The recurrent language model against a PyTorch class of the same layers."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import peers
import pytest

from zoo.errors import UserError
from zoo.families.rnn import rnn_table
from zoo.models import RNN
from zoo.models.rnn import gradient_by_distance

SMALL = {"vocab_size": 11, "embed_features": 5, "features": 6, "num_layers": 2}


def reference(cell):
    peers.torch().manual_seed(0)
    from benchmarks.torch_peers.sequences import LanguageModel

    return LanguageModel(cell, 11, 5, 6, 2)


def tokens(rows=3, time=9):
    return np.random.default_rng(0).integers(0, 11, (rows, time))


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_it_computes_what_pytorch_does(cell):
    parity.check_parity(
        RNN(cell=cell, **SMALL),
        reference(cell),
        rnn_table(2),
        tokens(),
        axes=None,
        ours=lambda apply, tokens: apply(tokens)[0],
    )


@pytest.mark.parametrize("cell", ["rnn", "rnn_relu", "lstm", "gru"])
def test_a_text_in_pieces_is_the_whole_text(cell):
    model, text = RNN(cell=cell, **SMALL), tokens()
    variables = model.init(jax.random.key(0), text)
    whole, end = model.apply(variables, text)
    cache, found = model.initial_cache(3, 9), []
    for begin, stop in ((0, 1), (1, 6), (6, 9)):
        logits, cache = model.apply(variables, text[:, begin:stop], cache)
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole, rtol=1e-5, atol=1e-6)
    for a, b in zip(jax.tree.leaves(cache), jax.tree.leaves(end), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_gradient_by_distance_has_its_closed_form():
    """One layer of relu that never cuts off is linear: each step is one product with the kernel."""
    model = RNN(**SMALL | {"num_layers": 1, "cell": "rnn_relu"})
    text, targets = jnp.asarray(tokens()), jnp.array([1, 5, 0])
    with jax.enable_x64(True):
        params = model.init(jax.random.key(0), text)["params"]
        params = jax.tree.map(lambda x: np.abs(np.asarray(x, np.float64)) * 0.3, params)
        found = gradient_by_distance(model, params, text, targets)
        logits = model.apply({"params": params}, text)[0][:, -1]
        error = np.asarray(jax.nn.softmax(logits)) - np.eye(11)[targets]
    flowing = error @ params["output"]["kernel"].T
    for distance in range(9):
        expected = np.linalg.norm(flowing @ params["layers"]["input_kernel_0"].T, axis=-1)
        np.testing.assert_allclose(found[:, distance], expected, rtol=1e-9)
        flowing = flowing @ params["layers"]["recurrent_kernel_0"].T


def test_what_does_not_fit_is_refused():
    model = RNN(**SMALL)
    with pytest.raises(UserError, match=r"\(4,\)"):
        model.init(jax.random.key(0), jnp.zeros(4, jnp.int32))
    variables = model.init(jax.random.key(0), tokens())
    with pytest.raises(UserError, match="the states .* must have the shapes"):
        model.apply(variables, tokens(), model.initial_cache(2, 9))
