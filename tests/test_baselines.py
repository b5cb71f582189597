"""The models that a network must beat, against what must hold of them."""

import itertools
import math

import numpy as np
import pytest

from benchmarks.baselines import KneserNey
from zoo.data.sentences import END

SENTENCES = [(2, 3, 4), (2, 3, 5), (2, 3, 4), (6, 3, 4, 5), (2,), (5, 5, 5, 6)]


def test_probabilities_after_any_history_add_up_to_one():
    model = KneserNey(SENTENCES, vocab_size=9)
    for history in itertools.product(range(9), repeat=2):
        total = math.fsum(model.probability(history, word) for word in range(9))
        assert total == pytest.approx(1), history


def test_a_bigram_model_is_that_by_hand():
    """Words a (1) and b (2): after a comes b once and a once, after b the end twice."""
    model = KneserNey([(1, 2), (1, 1, 2)], vocab_size=3, order=2)
    # Bigrams: (END a) 2, (a b) 2, (a a) 1, (b END) 2: one once, three twice.
    discount = 1 / (1 + 2 * 3)
    # Different words before a, b and the end: 2 of 4 (the END before sentences, a), 1 and 1.
    lower = 2 / (2 + 2 * 1)
    unigram = {w: (n - lower + lower * 3 / 3) / 4 for w, n in {1: 2, 2: 1, END: 1}.items()}
    assert model.probability((1,), 2) == pytest.approx(
        (2 - discount + discount * 2 * unigram[2]) / 3
    )
    assert model.probability((2,), 1) == pytest.approx(discount * 1 * unigram[1] / 2)


def test_an_exact_memory_is_hardly_surprised_and_a_stranger_much():
    generator = np.random.default_rng(0)
    sentences = [tuple(generator.integers(1, 50, 6).tolist()) for _ in range(30)]
    others = [tuple(generator.integers(1, 50, 6).tolist()) for _ in range(30)]
    model = KneserNey(sentences, vocab_size=50)
    assert model.perplexity(sentences) < 10
    assert 25 < model.perplexity(others) < 100
