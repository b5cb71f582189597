import jax
import jax.numpy as jnp
import numpy as np
import parity
import peers
import pytest

from zoo.errors import UserError
from zoo.layers import Embed
from zoo.weights.tables import Entry

TABLE = [Entry("weight", "embedding")]


def test_it_is_pytorchs():
    reference = peers.torch().nn.Embedding(7, 4)
    tokens = np.array([[0, 6, 3], [3, 3, 1]])
    parity.check_parity(Embed(7, 4), reference, TABLE, tokens, axes=None)


def test_tied_logits_are_products_with_every_vector():
    reference = peers.torch().nn.Embedding(7, 4)
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)

    class Tied(Embed):
        def __call__(self, x):
            return self.logits(x)

    parity.check_parity(
        Tied(7, 4), reference, TABLE, x, axes=None, theirs=lambda embed, x: x @ embed.weight.T
    )


@pytest.mark.parametrize("std", [1.0, 0.02])
def test_it_begins_normal_with_the_given_deviation(std):
    embedding = Embed(500, 40, std=std).init(jax.random.key(0), jnp.zeros(1, jnp.int32))
    values = np.asarray(embedding["params"]["embedding"])
    assert values.std() == pytest.approx(std, rel=0.02)
    assert abs(values.mean()) < 0.05 * std


def test_compiled_an_unknown_token_is_nan_not_another_ones_vector():
    embed, tokens = Embed(7, 4), jnp.array([6, 7, 0, -1])
    vectors = jax.jit(embed.apply)(embed.init(jax.random.key(0), tokens[:1]), tokens)
    assert np.isfinite(vectors[0]).all()
    assert np.isnan(vectors[1]).all()
    assert np.isfinite(vectors[2]).all()
    assert np.isnan(vectors[3]).all()


@pytest.mark.parametrize("token", [-1, 7, 2**31 - 1])
@pytest.mark.parametrize("array", [np.array, jnp.array])
def test_a_known_token_out_of_range_is_refused(token, array):
    embed, tokens = Embed(7, 4), array([[0, 6], [token, 1]], np.int32)
    variables = embed.init(jax.random.key(0), jnp.zeros(1, jnp.int32))
    words = rf"Embed: the token {token} is out of range: with vocab_size=7, .* from 0 to 6\."
    with pytest.raises(UserError, match=words):
        embed.apply(variables, tokens)
    # Known although the rest is traced.
    with pytest.raises(UserError, match=words):
        jax.jit(lambda variables: embed.apply(variables, tokens))(variables)


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_no_tokens_have_no_vectors(shape):
    embed, tokens = Embed(7, 4), jnp.zeros(shape, jnp.int32)
    assert embed.init_with_output(jax.random.key(0), tokens)[0].shape == (*shape, 4)


def test_tokens_must_be_integers():
    with pytest.raises(UserError, match="float32"):
        Embed(7, 4).init(jax.random.key(0), jnp.zeros(3))
