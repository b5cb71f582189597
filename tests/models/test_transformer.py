"""The transformer against ``torch.nn.Transformer``."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import peers
import pytest

from zoo.errors import UserError
from zoo.models import Transformer
from zoo.pretrained import transformer_table

SMALL = {
    "source_vocab_size": 9, "target_vocab_size": 11, "features": 8, "num_heads": 2,
    "num_encoder_layers": 2, "num_decoder_layers": 2, "feedforward_features": 12,
}  # fmt: skip


def reference(**options):
    torch = peers.torch()
    torch.manual_seed(0)

    class Reference(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.source_embed = torch.nn.Embedding(9, 8)
            self.target_embed = torch.nn.Embedding(11, 8)
            self.transformer = torch.nn.Transformer(
                8, 2, 2, 2, 12, dropout=0.1, batch_first=True, **options
            )
            self.output = torch.nn.Linear(8, 11)

        def forward(self, source, target, source_counts, target_counts):
            def embedded(embed, tokens):
                # Section 3.5, written anew.
                position = torch.arange(tokens.shape[1], dtype=torch.float64)[:, None]
                rate = 10_000 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
                table = torch.stack(
                    [torch.sin(position * rate), torch.cos(position * rate)], -1
                ).flatten(1)
                vectors = embed(tokens)
                return vectors * 8**0.5 + table.to(vectors.dtype)

            time = target.shape[1]
            hidden = self.transformer(
                embedded(self.source_embed, source),
                embedded(self.target_embed, target),
                tgt_mask=torch.ones(time, time).triu(1).bool(),
                src_key_padding_mask=~source_counts,
                memory_key_padding_mask=~source_counts,
                tgt_key_padding_mask=~target_counts,
            )
            return self.output(hidden)

    model = Reference()
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


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_it_computes_what_pytorch_does_with_all_masks(norm_first, activation):
    ours = Transformer(norm_first=norm_first, activation=activation, **SMALL)
    theirs = reference(norm_first=norm_first, activation=activation)
    parity.check_parity(
        _FourInputs(ours), theirs, transformer_table(2, 2), *batch(), axes=None, ours=logits
    )


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_decoding_with_the_cache_is_decoding_without(positions):
    model = Transformer(positions=positions, **SMALL)
    source, target, source_counts, _ = batch()
    variables = model.init(jax.random.key(0), source, target)
    whole = model.apply(variables, source, target, source_mask=source_counts)
    cache = model.apply(variables, source, source_counts, 5, method="begin")
    found = []
    for begin, end in ((0, 1), (1, 4), (4, 5)):
        step, cache = model.apply(variables, target[:, begin:end], cache, method="step")
        found.append(step)
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole, rtol=1e-4, atol=1e-5)


def test_no_gradient_from_later_targets_and_padding():
    model = Transformer(positions="learned", max_length=6, **SMALL)
    source, target, source_counts, _ = (jnp.asarray(x) for x in batch())
    variables = model.init(jax.random.key(0), source, target)

    def total(encoder_positions, decoder_positions, row, at):
        params = jax.tree.map(lambda x: x, variables["params"])
        params["encoder"]["embed"]["learned"]["embedding"] = encoder_positions
        params["decoder"]["embed"]["learned"]["embedding"] = decoder_positions
        made = logits(
            lambda *a, **k: model.apply({"params": params}, *a, **k),
            source[row : row + 1], target[row : row + 1], source_counts[row : row + 1], None,
        )  # fmt: skip
        return jnp.sin(made[0, at]).sum()

    tables = (
        variables["params"]["encoder"]["embed"]["learned"]["embedding"],
        variables["params"]["decoder"]["embed"]["learned"]["embedding"],
    )
    for row, at in ((0, 4), (1, 0), (1, 2), (2, 1)):
        of_source, of_target = jax.grad(total, argnums=(0, 1))(*tables, row, at)
        reached = np.abs(of_source).sum(axis=1) > 0
        assert reached.tolist() == source_counts[row].tolist()
        reached = np.abs(of_target).sum(axis=1) > 0
        assert reached.tolist() == [position <= at for position in range(6)]


def test_tied_weights_are_the_targets_vectors():
    model = Transformer(tie_weights=True, **SMALL)
    source, target, *_ = batch()
    variables = model.init(jax.random.key(0), source, target)
    assert "output" not in variables["params"]["decoder"]
    assert model.apply(variables, source, target).shape == (3, 5, 11)


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
