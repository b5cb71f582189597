"""Decoding against ``transformers.generate``, with the same tiny GPT-2."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from zoo.decoding import beam_search, choose, filter_logits, greedy, sample, speculate, stream
from zoo.errors import UserError
from zoo.families.gpt import gpt_table
from zoo.models import GPT
from zoo.weights.tables import from_reference

CONFIG = {"vocab_size": 37, "context": 32, "num_layers": 2, "num_heads": 2, "features": 16}


@functools.cache
def both():
    """Our model as a step in float64, its empty cache, and Hugging Face's."""
    torch, transformers = peers.torch(), peers.transformers()
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=37, n_positions=32, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=1, eos_token_id=2, pad_token_id=3, initializer_range=0.6,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).double().eval()
    ours = GPT(**CONFIG)
    with jax.enable_x64(True):
        like = jax.eval_shape(ours.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
        weights = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
        params = jax.tree.map(jnp.asarray, from_reference(weights, gpt_table(2), like))
    return ours, params, theirs


def ours_as_step():
    ours, params, _ = both()
    return lambda tokens, cache: ours.apply({"params": params}, tokens, cache)


def prompt(rows=3, time=4):
    return np.random.default_rng(1).integers(4, 37, (rows, time))


def test_greedy_is_transformers():
    ours, _, theirs = both()
    tokens = prompt()
    expected = theirs.generate(
        peers.torch().tensor(tokens), max_new_tokens=20, do_sample=False, num_beams=1
    ).numpy()[:, 4:]
    with jax.enable_x64(True):
        made = greedy(
            ours_as_step(), ours.initial_cache(3, 24), jnp.asarray(tokens),
            max_new_tokens=20, end=2, padding=3,
        )  # fmt: skip
        streamed = list(
            stream(
                ours_as_step(),
                lambda: ours.initial_cache(1, 32),
                jnp.asarray(tokens[:1]),
                jax.random.key(0),
                max_new_tokens=20,
                context=32,
                temperature=0,
            )
        )
    np.testing.assert_array_equal(made[:, : expected.shape[1]], expected)
    until_end = np.argmax(np.append(expected[0] == 2, True)) + 1
    np.testing.assert_array_equal(np.concatenate(streamed)[:until_end], expected[0][:until_end])


@pytest.mark.parametrize(
    ("num_beams", "length_penalty", "early_stopping"),
    [
        (1, 1.0, False),
        (2, 0.0, False),
        (4, 1.0, False),
        (4, 2.0, False),
        (4, 1.0, True),
        (4, 2.0, "never"),
        (3, -1.0, "never"),
    ],
)
def test_beam_search_is_transformers(num_beams, length_penalty, early_stopping):
    ours, _, theirs = both()
    tokens = prompt(rows=6)
    expected = theirs.generate(
        peers.torch().tensor(tokens), max_new_tokens=12, do_sample=False, num_beams=num_beams,
        length_penalty=length_penalty, early_stopping=early_stopping,
    ).numpy()[:, 4:]  # fmt: skip
    with jax.enable_x64(True):
        made, _ = jax.jit(
            lambda tokens: beam_search(
                ours_as_step(),
                ours.initial_cache(6, 16),
                tokens,
                num_beams=num_beams,
                max_new_tokens=12,
                end=2,
                padding=3,
                length_penalty=length_penalty,
                early_stopping=early_stopping,
            )
        )(jnp.asarray(tokens))
    np.testing.assert_array_equal(made[:, : expected.shape[1]], expected)
    assert (made[:, expected.shape[1] :] == 3).all()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.6},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.9},
        {"top_k": 100, "top_p": 0.01},
    ],
)
def test_filters_are_transformers(options):
    torch, transformers = peers.torch(), peers.transformers()
    logits = np.random.default_rng(0).normal(size=(50, 37)) * 3
    expected = torch.tensor(logits)
    if "temperature" in options:
        expected = transformers.TemperatureLogitsWarper(options["temperature"])(None, expected)
    if "top_k" in options:
        expected = transformers.TopKLogitsWarper(options["top_k"])(None, expected)
    if "top_p" in options:
        expected = transformers.TopPLogitsWarper(options["top_p"])(None, expected)
    with jax.enable_x64(True):
        filtered = filter_logits(jnp.asarray(logits), **options)
    np.testing.assert_allclose(filtered, expected.numpy(), rtol=1e-12)


def test_draws_follow_the_filtered_distribution():
    logits = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1]))
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: choose(logits, key, top_k=3, temperature=0.5))(keys)
    shares = np.bincount(drawn, minlength=4) / 4000
    wanted = np.array([0.5, 0.25, 0.15, 0]) ** 2
    wanted /= wanted.sum()
    assert shares[3] == 0
    assert (np.abs(shares - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / 4000) + 1e-9).all()


def test_speculation_at_temperature_0_is_greedy():
    ours, params, _ = both()
    options = {"max_new_tokens": 12, "end": (2, 7), "padding": 3}

    def begin():
        # Room for the prompt, the new tokens and those of the last round.
        return ours.initial_cache(1, 4 + 12 + 4 + 1)

    with jax.enable_x64(True):
        # The draft is the target a little changed: it is often right, not always.
        keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(params))))
        other = jax.tree.map(
            lambda x: x + 0.05 * x.std() * jax.random.normal(next(keys), x.shape), params
        )
        draft = lambda tokens, cache: ours.apply({"params": other}, tokens, cache)  # noqa: E731

        def each(row):
            return speculate(
                ours_as_step(), begin(), draft, begin(), row[None], jax.random.key(0),
                temperature=0, **options,
            )  # fmt: skip

        tokens = jnp.asarray(prompt(rows=12))
        made, calls = jax.jit(jax.vmap(each))(tokens)
        expected = jax.jit(
            lambda tokens: greedy(ours_as_step(), ours.initial_cache(12, 16), tokens, **options)
        )(tokens)
    np.testing.assert_array_equal(made[:, 0], expected)
    lengths = (np.cumsum(np.isin(expected, (2, 7)), axis=1) == 0).sum(axis=1) + 1
    assert (calls < np.minimum(lengths, 12)).any(), "some proposals were accepted"
    assert (calls > 1 + np.ceil((np.minimum(lengths, 12) - 1) / 5)).any(), "and some were not"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt": jnp.ones((2, 1), int)}, "one row, not 2"),
        ({"prompt": jnp.ones((1, 0), int)}, "prompt is empty"),
        ({"ahead": 0}, "ahead=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
    ],
)
def test_speculation_that_cannot_start_says_why(options, words):
    step, _ = bigrams()
    given = {"prompt": jnp.ones((1, 1), int), "max_new_tokens": 3, "key": jax.random.key(0)}
    with pytest.raises(UserError, match=words):
        speculate(step, jnp.zeros((1, 1)), step, jnp.zeros((1, 1)), **given | options)


def test_a_text_longer_than_the_context_goes_on_with_its_newer_half():
    read = []

    def step(tokens, cache):
        read.append(tokens.shape[1])
        return jax.nn.one_hot(tokens + 1, 50), cache

    made = stream(
        step, lambda: 0, jnp.array([[7]]), jax.random.key(0),
        max_new_tokens=12, context=4, temperature=0,
    )  # fmt: skip
    assert np.concatenate(list(made)).tolist() == list(range(8, 20))
    assert set(read) == {1, 2}, "compiled for the prompt and for the half, then for single tokens"


def bigrams(seed=0, vocab=5):
    """A step whose cache is [batch, 1], the last token; each next one depends on it alone."""
    table = jnp.asarray(np.random.default_rng(seed).normal(size=(vocab, vocab)) * 2, jnp.float32)
    return (lambda tokens, cache: (table[tokens], tokens[:, -1:])), jnp.log(jax.nn.softmax(table))


@pytest.mark.parametrize("length_penalty", [0.0, 1.5])
def test_a_wide_beam_finds_the_best_of_all_sequences(length_penalty):
    step, table = bigrams()
    end, longest = 4, 4
    scores = {}

    def visit(sequence, log_probability):
        if len(sequence) > 1 and (sequence[-1] == end or len(sequence) == longest + 1):
            length = len(sequence) - 1
            scores[tuple(sequence[1:])] = log_probability / length**length_penalty
            return
        for token in range(5):
            visit([*sequence, token], log_probability + float(table[sequence[-1], token]))

    visit([1], 0.0)
    found, score = beam_search(
        step,
        jnp.zeros((1, 1), int),
        jnp.array([[1]]),
        num_beams=300,
        max_new_tokens=longest,
        end=end,
        padding=end,
        length_penalty=length_penalty,
        early_stopping="never",
    )
    best = max(scores, key=scores.__getitem__)
    assert found[0].tolist() == [*best, *[end] * (longest - len(best))]
    assert score[0] == pytest.approx(scores[best], rel=1e-5)


def test_a_sample_is_what_a_stream_yields_and_ends_with_the_last_row():
    step, _ = bigrams()
    prompt, key = jnp.array([[1], [2], [3]]), jax.random.key(4)
    options = {"max_new_tokens": 40, "end": 0, "padding": 4, "temperature": 1.2, "top_p": 0.95}
    cache = jnp.zeros((3, 1), int)
    drawn = np.asarray(jax.jit(lambda cache: sample(step, cache, prompt, key, **options))(cache))
    yielded = np.stack(list(stream(step, lambda: jnp.zeros((3, 1), int), prompt, key, **options)))
    ends = [row.tolist().index(0) for row in drawn]
    assert len(set(ends)) > 1
    assert len(yielded) == max(ends) + 1 < 40
    np.testing.assert_array_equal(drawn[:, : len(yielded)], yielded.T)
    for row, last in zip(drawn, ends, strict=True):
        assert (row[last + 1 :] == 4).all()


def test_pairs_of_tokens_are_as_frequent_as_the_model_says():
    step, table = bigrams()
    rows = 4000
    drawn = sample(
        step, jnp.zeros((rows, 1), int), jnp.ones((rows, 1), int), jax.random.key(0),
        max_new_tokens=2,
    )  # fmt: skip
    counts = np.bincount(drawn[:, 0] * 5 + drawn[:, 1], minlength=25)
    wanted = np.exp(table[1][:, None] + table).reshape(-1)
    # 44.3 is exceeded with a probability of 1 % where the draws are right.
    assert (np.square(counts - rows * wanted) / (rows * wanted)).sum() < 44.3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 0}, "num_beams=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"early_stopping": "allways"}, "'allways'"),
        ({"prompt": jnp.zeros((1, 0), int)}, "the prompt is empty"),
    ],
)
def test_a_search_that_cannot_start_says_why(options, words):
    step, _ = bigrams()
    given = {"prompt": jnp.ones((1, 1), int), "num_beams": 2, "max_new_tokens": 3, "end": 4}
    with pytest.raises(UserError, match=words):
        beam_search(step, jnp.zeros((1, 1), int), **given | options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0.0}, "top_p=0.0"),
    ],
)
def test_numbers_out_of_range_are_named(options, words):
    with pytest.raises(UserError, match=words):
        filter_logits(jnp.zeros(4), **options)
