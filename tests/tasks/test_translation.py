"""Translation: BLEU as sacreBLEU's own command gives it, and attention as PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from zoo.data.vocabulary import train_subwords
from zoo.layers.attention import WEIGHTS, MultiHeadAttention, attention_weights
from zoo.models import Transformer
from zoo.tasks.translation import Translation

SUBWORDS = train_subwords(
    ["the cat sat on the mat", "a dog ate the cat"], 300, ("<p>", "<b>", "<e>")
)
TASK = Translation(
    Transformer(300, 300, features=8, num_heads=2, num_encoder_layers=1, num_decoder_layers=2,
                feedforward_features=8),
    num_beams=2,
    subwords=SUBWORDS,
)  # fmt: skip


def rows(*sentences, length=12):
    made = np.zeros((len(sentences), length), np.int32)
    for row, sentence in zip(made, sentences, strict=True):
        tokens = SUBWORDS.encode_text(sentence)
        row[: len(tokens)] = tokens
    return made


def test_bleu_is_sacrebleus_with_all_references_of_a_sentence():
    sacrebleu = peers.peer("sacrebleu")
    made = ["the cat sat on the mat", "a dog ate the mat"]
    right = [["the cat sat on a mat", "a cat is on the mat"], ["the dog ate the cat"]]
    references = np.stack([rows(*right[0]), np.concatenate([rows(*right[1]), rows("")])])
    outputs = {"beam": rows(*made), "attention": np.zeros((2, 12, 12))}
    scores = TASK.score(outputs, {"source": rows("a", "b"), "references": references})
    expected = sacrebleu.raw_corpus_bleu(made, [[right[0][0], right[1][0]], [right[0][1], None]])
    assert scores["metrics"]["bleu"] == pytest.approx(expected.score)
    assert 0 < expected.score < 100
    assert scores["examples"][0] == {
        "source": "a", "translation": made[0], "reference": " | ".join(right[0]),
    }  # fmt: skip


def test_a_perfect_translation_has_bleu_100_and_an_empty_one_0():
    sentence = "the cat sat on the mat"
    references = {"source": rows(sentence), "references": rows(sentence)[:, None]}
    empty = np.zeros((1, 12, 12))
    assert TASK.score({"beam": rows(sentence), "attention": empty}, references)["metrics"][
        "bleu"
    ] == pytest.approx(100)
    assert TASK.score({"beam": rows(""), "attention": empty}, references)["metrics"]["bleu"] == 0


@pytest.mark.parametrize("causal", [False, True])
def test_the_kept_weights_are_pytorchs(causal):
    torch = peers.torch()
    rng = np.random.default_rng(0)
    query, key = (rng.normal(size=(2, 5, 3, 4)) for _ in range(2))
    mask = np.ones((2, 1, 1, 5), bool)
    mask[1, ..., 3:] = False
    scores = torch.einsum("bqhf,bkhf->bhqk", torch.tensor(query), torch.tensor(key)) / 2
    sees = mask & (np.tril(np.ones((5, 5), bool)) if causal else True)
    scores = scores.masked_fill(~torch.tensor(np.broadcast_to(sees, scores.shape)), -torch.inf)
    with jax.enable_x64(True):
        found = attention_weights(
            jnp.asarray(query), jnp.asarray(key), mask=jnp.asarray(mask), causal=causal
        )
    np.testing.assert_allclose(found, scores.softmax(-1), atol=1e-12)


def test_weights_are_kept_only_where_they_are_asked_for():
    x = jnp.ones((1, 3, 8))
    layer = MultiHeadAttention(2)
    variables = layer.init(jax.random.key(0), x)
    assert set(variables) == {"params"}
    _, kept = layer.apply(variables, x, mutable=[WEIGHTS])
    (weights,) = jax.tree.leaves(kept)
    assert weights.shape == (1, 2, 3, 3)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


def test_the_map_of_a_translation_says_where_the_model_looked():
    source = jnp.asarray(rows("a dog ate", "the cat", length=6))
    batch = {"source": source, "target": jnp.ones((2, 8), jnp.int32)}
    params = TASK.init(jax.random.key(0), batch)["params"]
    given = {**batch, "references": jnp.zeros((2, 1, 6), jnp.int32)}
    made = jax.jit(lambda: TASK.predict(params, {}, given, jax.random.key(0)))()
    assert made["attention"].shape == (2, 6, 6)
    np.testing.assert_allclose(made["attention"].sum(-1), 1, rtol=1e-5)
    assert not made["attention"][np.broadcast_to(np.asarray(source == 0)[:, None], (2, 6, 6))].any()
