"""The transformer against ``torch.nn.Transformer``."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import peers
import pytest

from zoo.errors import UserError
from zoo.families.transformer import transformer_table
from zoo.models import Transformer
from zoo.models.transformer_blocks import TokenEmbedding

SMALL = {
    "source_vocab_size": 9, "target_vocab_size": 11, "features": 8, "num_heads": 2,
    "num_encoder_layers": 2, "num_decoder_layers": 2, "feedforward_features": 12,
}  # fmt: skip


def reference(**options):
    torch = peers.torch()
    torch.manual_seed(0)
    from benchmarks.torch_peers import sequences

    model = sequences.Transformer(9, 11, 8, 2, 2, 2, 12, **options)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter)
    return model


def batch():
    generator = np.random.default_rng(0)
    source, target = generator.integers(0, 9, (3, 6)), generator.integers(0, 11, (3, 5))
    source_counts = np.arange(6) < np.array([[6], [3], [1]])
    target_counts = np.arange(5) < np.array([[5], [2], [4]])
    return source, target, source_counts, target_counts


def made(**options):
    """A model with its variables."""
    model = Transformer(**SMALL | options)
    source, target, *_ = batch()
    return model, jax.jit(model.init)(jax.random.key(0), source, target)


def logits(apply, source, target, source_counts, target_counts):
    return apply(source, target, source_mask=source_counts, target_mask=target_counts)


class _FourInputs:
    """``init`` with the masks as further arrays."""

    def __init__(self, module):
        self.module = module

    def init(self, key, source, target, *masks):
        return self.module.init(key, source, target)

    def apply(self, *arguments, **options):
        return self.module.apply(*arguments, **options)


@pytest.mark.parametrize(("norm_first", "activation"), [(False, "relu"), (True, "gelu")])
def test_it_computes_what_pytorch_does_with_all_masks(norm_first, activation):
    ours = Transformer(norm_first=norm_first, activation=activation, **SMALL)
    theirs = reference(norm_first=norm_first, activation=activation)
    parity.check_parity(
        _FourInputs(ours), theirs, transformer_table(2, 2), *batch(), axes=None, ours=logits
    )


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_decoding_with_the_cache_is_decoding_without(positions):
    model, variables = made(positions=positions)
    source, target, source_counts, _ = batch()
    whole = jax.jit(model.apply)(variables, source, target, source_mask=source_counts)

    @jax.jit
    def begin(variables, source, source_counts):
        return model.apply(variables, source, source_counts, 5, method="begin")

    @jax.jit
    def step(variables, target, cache):
        return model.apply(variables, target, cache, method="step")

    cache, found = begin(variables, source, source_counts), []
    # The memory's keys and values are in the cache: what computes them is not needed again.
    for layer in ("layer_0", "layer_1"):
        attention = variables["params"]["decoder"][layer]["cross_attention"]
        attention["key"] = attention["value"] = None
    for first, last in ((0, 1), (1, 4), (4, 5)):
        piece, cache = step(variables, target[:, first:last], cache)
        found.append(piece)
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole, rtol=1e-4, atol=1e-5)


def test_no_gradient_from_later_targets_and_padding():
    model, variables = made(positions="learned", max_length=6)
    source, target, source_counts, _ = (jnp.asarray(x) for x in batch())

    def total(encoder_positions, decoder_positions, row, at):
        params = jax.tree.map(lambda x: x, variables["params"])
        params["encoder"]["embed"]["learned"]["embedding"] = encoder_positions
        params["decoder"]["embed"]["learned"]["embedding"] = decoder_positions
        made = logits(
            lambda *a, **k: model.apply({"params": params}, *a, **k),
            source[row][None], target[row][None], source_counts[row][None], None,
        )  # fmt: skip
        return jnp.sin(made[0, at]).sum()

    gradient = jax.jit(jax.grad(total, argnums=(0, 1)))

    tables = (
        variables["params"]["encoder"]["embed"]["learned"]["embedding"],
        variables["params"]["decoder"]["embed"]["learned"]["embedding"],
    )
    for row, at in ((0, 4), (1, 0), (1, 2), (2, 1)):
        of_source, of_target = gradient(*tables, row, at)
        reached = np.abs(of_source).sum(axis=1) > 0
        assert reached.tolist() == source_counts[row].tolist()
        reached = np.abs(of_target).sum(axis=1) > 0
        assert reached.tolist() == [position <= at for position in range(6)]


def test_in_bfloat16_it_stays_bfloat16_and_tells_late_positions_apart():
    model, variables = made()
    source, target, *_ = batch()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
    apply = jax.jit(model.apply)
    output, exact = apply(half, source, target), apply(variables, source, target)
    assert output.dtype == jnp.bfloat16
    assert np.abs(output.astype(jnp.float32) - exact).max() < 0.05 * np.abs(exact).max()

    embed = TokenEmbedding(1, 8, "sinusoidal", max_length=1, dropout_rate=0.0)
    params = {"tokens": {"embedding": jnp.zeros((1, 8), jnp.bfloat16)}}
    vectors = embed.apply({"params": params}, jnp.zeros((1, 600), jnp.int32))[0]
    assert vectors.dtype == jnp.bfloat16
    assert len(np.unique(vectors.astype(np.float32), axis=0)) == 600


def test_dropout_is_where_pytorch_has_it():
    model = Transformer(**SMALL)
    source, target, *_ = batch()

    def dropped():
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        return model.init(
            rngs,
            source,
            target,
            train=True,
            capture_intermediates=lambda module, _: type(module).__name__ == "Dropout",
        )["intermediates"]

    found = sorted(leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(dropped)))
    # The embeddings; in each layer attention's weights, each part's contribution, hidden values.
    encoder = [(3, 2, 6, 6), (3, 6, 8), (3, 6, 12), (3, 6, 8)]
    decoder = [(3, 2, 5, 5), (3, 5, 8), (3, 2, 5, 6), (3, 5, 8), (3, 5, 12), (3, 5, 8)]
    assert found == sorted([(3, 6, 8), (3, 5, 8), *2 * encoder, *2 * decoder])


def test_tied_weights_are_the_targets_vectors():
    model, variables = made(tie_weights=True)
    source, target, *_ = batch()
    assert "output" not in variables["params"]["decoder"]

    def of_token(vectors):
        decoder = variables["params"]["decoder"]
        embed = {"tokens": {"embedding": vectors}}
        params = {**variables["params"], "decoder": {**decoder, "embed": embed}}
        return jax.jit(model.apply)({"params": params}, source, target)[..., 2]

    # Token 2 is not among the targets: its vector matters to its own logit only, linearly.
    vectors = variables["params"]["decoder"]["embed"]["tokens"]["embedding"]
    assert 2 not in target
    doubled = vectors.at[2].multiply(2)
    np.testing.assert_allclose(of_token(doubled), 2 * of_token(vectors), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"positions": "leaned"}, "'leaned'"),
        ({"positions": "learned", "max_length": 4}, "max_length=4"),
        ({"num_heads": 3}, "num_heads=3"),
        ({"activation": "rleu"}, "'relu'"),
    ],
)
def test_what_does_not_fit_is_refused(attributes, words):
    source, target, *_ = batch()
    with pytest.raises(UserError, match=words):
        Transformer(**SMALL | attributes).init(jax.random.key(0), source, target)
