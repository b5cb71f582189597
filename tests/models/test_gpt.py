"""GPT against Hugging Face's ``GPT2LMHeadModel``."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import parity
import peers
import pytest

from zoo.errors import UserError
from zoo.families.gpt import gpt_table
from zoo.models import GPT
from zoo.weights.tables import from_reference, to_reference

SMALL = GPT(vocab_size=23, context=12, num_layers=2, num_heads=2, features=8)


def tokens(rows=3, time=9):
    return np.random.default_rng(0).integers(0, 23, (rows, time))


def made():
    return jax.jit(SMALL.init)(jax.random.key(0), tokens())


def test_it_computes_what_gpt2_does():
    torch, transformers = peers.torch(), peers.transformers()
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=23, n_positions=12, n_embd=8, n_layer=2, n_head=2,
        bos_token_id=1, eos_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    parity.check_parity(
        SMALL,
        transformers.GPT2LMHeadModel(config),
        gpt_table(2),
        tokens(),
        axes=None,
        ours=lambda apply, tokens: apply(tokens)[0],
        theirs=lambda model, tokens: model(tokens).logits,
    )


def test_it_begins_as_gpt2_does():
    torch, transformers = peers.torch(), peers.transformers()
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=200, n_positions=50, n_embd=64, n_layer=3, n_head=2, bos_token_id=1,
        eos_token_id=1,
    )  # fmt: skip
    theirs = dict(transformers.GPT2LMHeadModel(config).named_parameters())
    ours = GPT(vocab_size=200, context=50, num_layers=3, num_heads=2, features=64)
    params = ours.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    for name, array in to_reference(params, gpt_table(3)).items():
        expected = theirs[name].detach().numpy()
        assert array.shape == expected.shape
        np.testing.assert_allclose(array.std(), expected.std(), rtol=0.1, err_msg=name)
        np.testing.assert_allclose(array.mean(), expected.mean(), atol=3e-3, err_msg=name)


def test_the_cache_changes_no_logits():
    variables, text, apply = made(), tokens(time=12), jax.jit(SMALL.apply)
    whole, nothing = apply(variables, text)
    assert nothing is None
    for pieces in ([1] * 12, [5, 1, 4, 2]):
        cache, begin, found = SMALL.initial_cache(3, 12), 0, []
        for piece in pieces:
            logits, cache = apply(variables, text[:, begin : begin + piece], cache)
            found.append(logits)
            begin += piece
        np.testing.assert_allclose(np.concatenate(found, axis=1), whole, rtol=1e-4, atol=1e-5)


def test_padding_before_a_text_changes_nothing_in_it():
    variables, text, apply = made(), tokens(time=6), jax.jit(SMALL.apply)
    padding = np.array([0, 1, 4])
    cache, found = SMALL.initial_cache(3, 9, padding=padding), []
    for begin, end in ((0, 5), (5, 6)):
        logits, cache = apply(variables, text[:, begin:end], cache)
        found.append(logits)
    found = np.concatenate(found, axis=1)
    for row, before in enumerate(padding):
        alone = apply(variables, text[row : row + 1, before:])[0][0]
        np.testing.assert_allclose(found[row, before:], alone, rtol=1e-4, atol=1e-5)


def test_the_cache_works_in_bfloat16_and_can_be_donated():
    variables, text = made(), tokens(time=4)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
    step = jax.jit(SMALL.apply, donate_argnums=2)
    logits, cache = step(half, text, SMALL.initial_cache(3, 12, jnp.bfloat16))
    assert (logits.dtype, cache[0].key.dtype) == (jnp.bfloat16, jnp.bfloat16)
    exact = SMALL.apply(variables, text)[0]
    assert np.abs(logits.astype(jnp.float32) - exact).max() < 0.05 * np.abs(exact).max()


def test_no_gradient_from_the_future():
    variables, text = made(), jnp.asarray(tokens(rows=1))

    @jax.jit
    @jax.grad
    def gradient(positions, at):
        changed = {**variables["params"], "positions": {"embedding": positions}}
        return SMALL.apply({"params": changed}, text)[0][0, at].sum()

    for at in (0, 4, 8):
        of_positions = gradient(variables["params"]["positions"]["embedding"], at)
        reached = np.abs(of_positions[:9]).sum(axis=1) > 0
        assert reached.tolist() == [position <= at for position in range(9)]


def test_dropout_is_where_gpt2_has_it():
    def dropped():
        return SMALL.init(
            {"params": jax.random.key(0), "dropout": jax.random.key(1)},
            tokens(),
            train=True,
            capture_intermediates=lambda module, _: type(module).__name__ == "Dropout",
        )["intermediates"]

    found = sorted(leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(dropped)))
    # The sum of the embeddings, and in each block attention's weights and both contributions.
    assert found == sorted([(3, 9, 8)] + 2 * [(3, 2, 9, 9), (3, 9, 8), (3, 9, 8)])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: SMALL.init(jax.random.key(0), jnp.zeros(4, jnp.int32)), r"\(4,\)"),
        (lambda: SMALL.init(jax.random.key(0), jnp.zeros((1, 13), jnp.int32)), "context=12"),
        (lambda: SMALL.init(jax.random.key(0), jnp.zeros((1, 3))), "float32"),
        (lambda: SMALL.initial_cache(1, 13), "context=12"),
        (lambda: GPT(features=10, num_heads=3).init(
            jax.random.key(0), jnp.zeros((1, 3), jnp.int32)), "num_heads=3"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(UserError, match=words):
        call()


SCANNED = dataclasses.replace(SMALL, scan_layers=True)


def stacked(params):
    """The parameters of ``SMALL`` as ``SCANNED`` has them."""
    rest = dict(params)
    blocks = [rest.pop(f"block_{layer}") for layer in range(SMALL.num_layers)]
    return {**rest, "blocks": jax.tree.map(lambda *each: jnp.stack(each), *blocks)}


def test_scanned_blocks_compute_the_same_with_every_gradient():
    text = tokens()

    def found(model, params):
        logits, backward = jax.vjp(lambda p: model.apply({"params": p}, text)[0], params)
        return logits, *backward(jnp.cos(logits))

    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: 10 * x.astype(jnp.float64), made()["params"])
        logits, gradient = jax.jit(found, static_argnums=0)(SMALL, params)
        ours, of_stacked = jax.jit(found, static_argnums=0)(SCANNED, stacked(params))
        np.testing.assert_allclose(ours, logits, rtol=1e-12, atol=1e-12)
        expected = stacked(gradient)
        assert jax.tree.structure(of_stacked) == jax.tree.structure(expected)
        # The gradient of the keys' biases is zero: a softmax does not see them.
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
        for a, b in zip(jax.tree.leaves(of_stacked), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12 * largest)


def test_scanned_blocks_begin_each_with_its_own_numbers():
    params = jax.jit(SCANNED.init)(jax.random.key(0), tokens())["params"]
    shapes = jax.tree.map(jnp.shape, stacked(made()["params"]))
    assert jax.tree.map(jnp.shape, params) == shapes
    first, second = params["blocks"]["up"]["kernel"]
    assert not np.array_equal(first, second)
    np.testing.assert_allclose([first.std(), second.std()], 0.02, rtol=0.2)


def test_scanned_blocks_keep_a_cache_for_each_layer():
    params, text = stacked(made()["params"]), tokens(time=12)
    apply = jax.jit(SCANNED.apply)
    whole, _ = apply({"params": params}, text)
    cache, found = SCANNED.initial_cache(3, 12), []
    for begin in (0, 4, 8):
        logits, cache = apply({"params": params}, text[:, begin : begin + 4], cache)
        found.append(logits)
    assert jax.tree.structure(cache) == jax.tree.structure(SMALL.initial_cache(3, 12))
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole, rtol=1e-4, atol=1e-5)


def test_scanned_blocks_drop_out_each_for_itself():
    def kept(key):
        _, seen = SCANNED.apply(
            {"params": stacked(made()["params"])}, tokens(), train=True, rngs={"dropout": key},
            mutable="intermediates",
            capture_intermediates=lambda module, _: type(module).__name__ == "Dropout",
        )  # fmt: skip
        return [x for x in jax.tree.leaves(seen) if x.shape == (2, 3, 2, 9, 9)]

    # The share kept of attention's weights, of both layers.
    (weights,) = jax.jit(kept)(jax.random.key(1))
    assert not np.array_equal(weights[0] == 0, weights[1] == 0)


def test_weights_of_both_forms_are_one_file():
    params = made()["params"]
    arrays = to_reference(params, gpt_table(2))
    table = gpt_table(2, scan_layers=True)
    read = from_reference(arrays, table, stacked(params))
    for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(stacked(params)), strict=True):
        np.testing.assert_array_equal(a, b)
    for name, array in to_reference(read, table).items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
    del arrays["transformer.h.1.mlp.c_fc.weight"]
    with pytest.raises(UserError, match=r"h\.1\.mlp\.c_fc\.weight is missing"):
        from_reference(arrays, table, stacked(params))
