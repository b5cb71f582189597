"""Draws against exact probabilities, which numpy computes from their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import scipy.stats

from zoo.decoding import filter_logits, penalize, sample, speculate

VOCAB, ROWS = 6, 4000
TABLE = np.random.default_rng(5).normal(size=(VOCAB, VOCAB))


def step_of(table):
    """A model whose next token depends on the last one; its cache is how many tokens it read."""
    table = jnp.asarray(table, jnp.float32)
    return lambda tokens, cache: (table[tokens], cache + tokens.shape[1])


def exact(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The probabilities of the next token, one token at a time as the papers define them."""
    shares = np.exp(logits / temperature)
    shares /= shares.sum()
    order = sorted(range(len(shares)), key=lambda token: -shares[token])
    kept = order[: top_k or len(order)]
    total, nucleus = sum(shares[token] for token in kept), []
    for token in kept:
        if sum(shares[t] for t in nucleus) / total >= top_p:
            break
        nucleus.append(token)
    kept = [token for token in nucleus if shares[token] >= min_p * shares[order[0]]]
    made = np.zeros(len(shares))
    made[kept] = shares[kept] / shares[kept].sum()
    return made


def check_counts(drawn, wanted):
    """Chi-squared; a right sampler fails with a probability of 1 in 1000, and seeds are fixed."""
    counts = np.bincount(drawn, minlength=len(wanted))
    assert counts[wanted == 0].sum() == 0
    # Chi-squared needs five of each: what is rarer counts together with the most frequent.
    rare = wanted * len(drawn) < 5
    most = np.argmax(wanted)
    counts[most] += counts[rare].sum()
    wanted = wanted.copy()
    wanted[most] += wanted[rare].sum()
    assert (~rare).sum() > 3, "almost nothing is compared"
    counts, wanted = counts[~rare], wanted[~rare] * len(drawn)
    assert scipy.stats.chisquare(counts, wanted).pvalue > 1e-3


OPTIONS = [
    {"temperature": 0.6},
    {"top_k": 3},
    {"top_p": 0.7},
    {"min_p": 0.05},
    {"temperature": 1.5, "top_k": 5, "top_p": 0.9, "min_p": 0.15},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_pairs_of_draws_have_their_exact_probabilities(options):
    step, prompt = step_of(TABLE), jnp.full((ROWS, 1), 2)
    drawn = jax.jit(
        lambda key: sample(step, jnp.zeros((), int), prompt, key, max_new_tokens=2, **options)
    )(jax.random.key(3))
    each = np.stack([exact(row, **options) for row in TABLE])
    check_counts(np.asarray(drawn[:, 0] * VOCAB + drawn[:, 1]), (each[2][:, None] * each).ravel())


@pytest.mark.parametrize("options", [{}, *OPTIONS[-1:]])
@pytest.mark.parametrize("ahead", [1, 3])
def test_speculation_draws_what_the_target_would(options, ahead):
    other = np.random.default_rng(8).normal(size=(VOCAB, VOCAB)) * 1.5

    def three(key):
        begin = jnp.zeros((), jnp.int32)
        return speculate(
            step_of(TABLE), begin, step_of(other), begin, jnp.array([[2]]), key,
            max_new_tokens=3, ahead=ahead, **options,
        )  # fmt: skip

    drawn, calls = jax.jit(jax.vmap(three))(jax.random.split(jax.random.key(1), ROWS))
    drawn = np.asarray(drawn)[:, 0]
    each = np.stack([exact(row, **options) for row in TABLE])
    wanted = (each[2][:, None, None] * each[:, :, None] * each[None]).ravel()
    check_counts(drawn @ np.array([VOCAB**2, VOCAB, 1]), wanted)
    assert (calls < 3).any(), "some proposals are accepted"
    assert len(np.unique(calls)) > 1, "some are not"


def test_a_draft_that_is_the_target_is_always_accepted():
    step, begin = step_of(TABLE), jnp.zeros((), jnp.int32)
    _, calls = speculate(
        step, begin, step, begin, jnp.array([[1]]), jax.random.key(0), max_new_tokens=13, ahead=3
    )
    assert calls == 1 + 3, "one call for the first token, then four tokens a call"


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_penalty_is_that_of_transformers(penalty):
    torch, transformers = peers.torch(), peers.transformers()
    generator = np.random.default_rng(2)
    logits, tokens = generator.normal(size=(5, 9)), generator.integers(0, 9, (5, 4))
    theirs = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    expected = theirs(torch.tensor(tokens), torch.tensor(logits)).numpy()
    seen = np.zeros((5, 9), bool)
    np.put_along_axis(seen, tokens, True, axis=1)
    with jax.enable_x64(True):
        made = penalize(jnp.asarray(logits), jnp.asarray(seen), penalty)
    np.testing.assert_allclose(made, expected, rtol=1e-14)


def test_min_p_is_that_of_transformers_after_the_other_filters():
    torch, transformers = peers.torch(), peers.transformers()
    logits = np.random.default_rng(0).normal(size=(50, 37)) * 3
    options = {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.1}
    expected = torch.tensor(logits)
    for warper in (
        transformers.TemperatureLogitsWarper(1.3), transformers.TopKLogitsWarper(20),
        transformers.TopPLogitsWarper(0.9), transformers.MinPLogitsWarper(0.1),
    ):  # fmt: skip
        expected = warper(None, expected)
    with jax.enable_x64(True):
        made = filter_logits(jnp.asarray(logits), **options)
    np.testing.assert_allclose(made, expected.numpy(), rtol=1e-12)
