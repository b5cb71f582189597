import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import parity
import peers
import pytest

from zoo.errors import UserError
from zoo.families.transformer import attention_table
from zoo.layers import MultiHeadAttention, attention, dot_product_attention


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_multi_head_attention_is_pytorchs(context, masked):
    torch = peers.torch()
    torch.manual_seed(0)
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    torch.nn.init.normal_(reference.in_proj_bias)
    torch.nn.init.normal_(reference.out_proj.bias)
    keys = 5 if context else 4
    counts = np.ones((3, keys), bool)
    if masked:
        counts[1, 2:] = False
    inputs = [normal(3, 4, 8), *([normal(3, keys, 8, seed=1)] if context else [])]
    parity.check_parity(
        MultiHeadAttention(2),
        reference,
        [_shortened(entry) for entry in attention_table("mha", "mha")],
        *inputs,
        axes=None,
        ours=lambda apply, *x: apply(*x, mask=jnp.asarray(counts)[:, None, None])[0],
        theirs=lambda mha, x, c=None: mha(
            x, x if c is None else c, x if c is None else c,
            key_padding_mask=torch.tensor(~counts), need_weights=False,
        )[0],
    )  # fmt: skip


def _shortened(entry):
    return dataclasses.replace(
        entry,
        reference=entry.reference.removeprefix("mha."),
        ours=entry.ours.removeprefix("mha/"),
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [5, 300, 600])
def test_a_bias_and_another_scale_are_pytorchs(length, causal):
    torch = peers.torch()
    query, key, value = (normal(2, length, 2, 3, seed=i).astype(float) for i in range(3))
    bias = normal(1, 2, length, length, seed=4).astype(float)
    tensors = [
        torch.tensor(x.transpose(0, 2, 1, 3), requires_grad=True) for x in (query, key, value)
    ]
    added = torch.tensor(bias, requires_grad=True)
    unseen = np.triu(np.full((length, length), -np.inf), 1) if causal else np.zeros(())
    expected = torch.nn.functional.scaled_dot_product_attention(
        *tensors, attn_mask=added + torch.tensor(unseen), scale=0.7
    )
    weight = normal(*expected.shape, seed=9).astype(float)
    expected.backward(torch.tensor(weight))
    with jax.enable_x64(True):
        output, backward = jax.vjp(
            lambda *x: dot_product_attention(*x[:3], bias=x[3], scale=0.7, causal=causal),
            *map(jnp.asarray, (query, key, value, bias)),
        )
        gradients = backward(jnp.asarray(weight.transpose(0, 2, 1, 3)))
    close = {"rtol": 1e-9, "atol": 1e-12}
    np.testing.assert_allclose(output.transpose(0, 2, 1, 3), expected.detach(), **close)
    for ours, theirs in zip(gradients[:3], tensors, strict=True):
        np.testing.assert_allclose(ours.transpose(0, 2, 1, 3), theirs.grad, **close)
    np.testing.assert_allclose(gradients[3], added.grad, **close)


@pytest.mark.parametrize("masked", [False, True])
# The last is long enough for blocks of scores, of which some are left out.
@pytest.mark.parametrize(("length", "window"), [(7, 3), (7, 7), (300, 150), (1100, 260)])
def test_a_window_and_groups_of_queries_are_pytorchs(length, window, masked):
    torch = peers.torch()
    query = normal(2, length, 4, 3).astype(float)
    key, value = (normal(2, length, 2, 3, seed=i).astype(float) for i in (1, 2))
    distances = np.arange(length)[:, None] - np.arange(length)
    sees = (distances >= 0) & (distances < window)
    counts = np.ones((2, 1, 1, length), bool)
    if masked:
        counts[1, :, :, 1 : length // 2] = False
    tensors = [
        torch.tensor(x.transpose(0, 2, 1, 3), requires_grad=True) for x in (query, key, value)
    ]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *tensors, attn_mask=torch.tensor(sees & counts), enable_gqa=True
    )
    # A query that sees nothing gets zero from us, and in some versions nan from PyTorch.
    seen = (sees & counts).any(axis=-1)[:, :, :, None]
    weight = normal(*expected.shape, seed=9).astype(float) * seen
    torch.where(torch.tensor(seen), expected, 0).backward(torch.tensor(weight))
    mask = jnp.asarray(counts) if masked else None

    @jax.jit
    def ours(query, key, value, weight):
        output, backward = jax.vjp(
            lambda *x: dot_product_attention(*x, causal=True, window=window, mask=mask),
            query, key, value,
        )  # fmt: skip
        return output, backward(weight)

    with jax.enable_x64(True):
        output, gradients = ours(
            *map(jnp.asarray, (query, key, value, weight.transpose(0, 2, 1, 3)))
        )
    close = {"rtol": 1e-9, "atol": 1e-12}
    kept = np.where(seen, expected.detach(), 0)
    np.testing.assert_allclose(output.transpose(0, 2, 1, 3), kept, **close)
    for found, theirs in zip(gradients, tensors, strict=True):
        np.testing.assert_allclose(found.transpose(0, 2, 1, 3), theirs.grad.nan_to_num(), **close)


def test_a_window_of_what_is_not_causal_is_refused():
    x = jnp.zeros((1, 3, 1, 2))
    with pytest.raises(UserError, match="window=2"):
        dot_product_attention(x, x, x, window=2)


@pytest.mark.parametrize("length", [1, 7, 300])
@pytest.mark.parametrize("masked", [False, True])
def test_causal_blocks_are_pytorchs(length, masked):
    torch = peers.torch()
    query, key, value = (normal(2, length, 2, 3, seed=i).astype(float) for i in range(3))
    counts = np.ones((2, 1, 1, length), bool)
    if masked:
        counts[1, :, :, 1 : length // 2] = False
    sees = np.tril(np.ones((length, length), bool)) & counts
    tensors = [
        torch.tensor(x.transpose(0, 2, 1, 3), requires_grad=True) for x in (query, key, value)
    ]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *tensors, attn_mask=torch.tensor(sees)
    )
    weight = normal(*expected.shape, seed=9).astype(float)
    expected.backward(torch.tensor(weight))
    with jax.enable_x64(True):
        output, backward = jax.vjp(
            lambda *x: dot_product_attention(
                *x, causal=True, mask=jnp.asarray(counts) if masked else None
            ),
            *map(jnp.asarray, (query, key, value)),
        )
        gradients = backward(jnp.asarray(weight.transpose(0, 2, 1, 3)))
    close = {"rtol": 1e-9, "atol": 1e-12}
    np.testing.assert_allclose(output.transpose(0, 2, 1, 3), expected.detach(), **close)
    for ours, theirs in zip(gradients, tensors, strict=True):
        np.testing.assert_allclose(ours.transpose(0, 2, 1, 3), theirs.grad, **close)


def test_who_sees_nothing_gets_nothing_and_no_nan():
    x = jnp.asarray(normal(1, 3, 1, 2))
    mask = jnp.array([[True, False, False], [False] * 3, [True] * 3])[None, None]

    def total(x):
        return dot_product_attention(x, x, x, mask=mask).sum()

    assert not dot_product_attention(x, x, x, mask=mask)[0, 1].any()
    assert np.isfinite(jax.grad(total)(x)).all()


def test_no_gradient_from_what_is_masked():
    module, x, context = MultiHeadAttention(2), jnp.asarray(normal(2, 3, 4)), normal(2, 5, 4)
    counts = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], bool)
    variables = module.init(jax.random.key(0), x, context)
    gradient = jax.grad(
        lambda c: (module.apply(variables, x, c, mask=counts[:, None, None])[0] ** 2).sum()
    )(jnp.asarray(context))
    assert ((np.abs(gradient).sum(axis=-1) > 0) == counts).all()


def test_dropout_drops_weights_and_keeps_their_mean():
    x = jnp.asarray(normal(1, 4, 6))
    module = MultiHeadAttention(2, dropout_rate=0.4)
    variables = module.init(jax.random.key(0), x)
    exact = module.apply(variables, x)[0]
    keys = jax.random.split(jax.random.key(1), 2000)
    drawn = jax.vmap(lambda key: module.apply(variables, x, train=True, rngs={"dropout": key})[0])(
        keys
    )
    error = np.asarray(drawn, np.float64).std(axis=0) / np.sqrt(2000)
    assert (error > 0).all()
    assert (np.abs(drawn.mean(axis=0) - exact) < 5 * error).all()


def test_bfloat16_keeps_its_softmax_in_float32():
    x = normal(1, 4, 2, 3)
    half = dot_product_attention(*(jnp.asarray(x, jnp.bfloat16),) * 3)
    assert half.dtype == jnp.bfloat16
    text = str(
        jax.make_jaxpr(lambda x: dot_product_attention(x, x, x))(jnp.asarray(x, jnp.bfloat16))
    )
    assert any("exp" in line and "f32" in line for line in text.splitlines())


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="num_heads=3 must divide features=8"):
        MultiHeadAttention(3).init(jax.random.key(0), jnp.zeros((1, 2, 8)))
    with pytest.raises(UserError, match="not 2 and 3"):
        dot_product_attention(
            jnp.zeros((1, 2, 1, 4)), jnp.zeros((1, 3, 1, 4)), jnp.zeros((1, 3, 1, 4)), causal=True
        )


def test_block_size_is_no_matter(monkeypatch):
    x = jnp.asarray(normal(1, 9, 2, 3))
    whole = dot_product_attention(x, x, x, causal=True)
    monkeypatch.setattr(attention, "_BLOCK", 4)
    np.testing.assert_allclose(
        dot_product_attention(x, x, x, causal=True), whole, rtol=1e-5, atol=1e-6
    )


def cached(module, variables, x, pieces, cache):
    found, begin = [], 0
    for piece in pieces:
        y, cache = module.apply(variables, x[:, begin : begin + piece], cache=cache)
        found.append(y)
        begin += piece
    return jnp.concatenate(found, axis=1), cache


@pytest.mark.parametrize(("kept", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_attention_with_a_cache_is_causal_attention_whatever_the_cache_keeps(kept, tolerance):
    module, x = MultiHeadAttention(2), jnp.asarray(normal(2, 5, 4))
    variables = module.init(jax.random.key(0), x)
    y, cache = cached(module, variables, x, [2, 1, 2], attention.empty_cache(2, 7, 2, 2, kept))
    assert (y.dtype, cache.key.dtype, int(cache.length)) == (jnp.float32, kept, 5)
    whole = module.apply(variables, x, causal=True)[0]
    np.testing.assert_allclose(y, whole, rtol=tolerance, atol=tolerance)
    assert not cache.key[:, 5:].any()


def test_a_full_cache_is_refused_and_in_compiled_code_gives_nan():
    module, x = MultiHeadAttention(2), jnp.asarray(normal(1, 3, 4))
    variables = module.init(jax.random.key(0), x)
    empty = attention.empty_cache(1, 3, 2, 2)
    with pytest.raises(UserError, match="room for 2 tokens and holds 0: 3 more"):
        module.apply(variables, x, cache=attention.empty_cache(1, 2, 2, 2))
    y, full = module.apply(variables, x, cache=empty)
    assert np.isfinite(y).all()
    with pytest.raises(UserError, match="room for 3 tokens and holds 3: 1 more"):
        module.apply(variables, x[:, :1], cache=full)
    compiled = jax.jit(lambda x, cache: module.apply(variables, x, cache=cache)[0])
    assert np.isfinite(compiled(x, empty)).all()
    assert np.isnan(compiled(x[:, :1], full)).all()


def test_keys_and_values_of_a_context_need_not_be_computed_again():
    module, x, context = MultiHeadAttention(2), normal(2, 3, 4), normal(2, 5, 6, seed=1)
    variables = module.init(jax.random.key(0), x, context)
    mask = jnp.arange(5) < jnp.array([5, 2])[:, None, None, None]
    y, known = module.apply(variables, x, context, mask=mask)
    forgotten = {
        name: layer
        for name, layer in variables["params"].items()
        if name not in ("key", "value")
    }  # fmt: skip
    again, same = module.apply({"params": forgotten}, x, known, mask=mask)
    np.testing.assert_array_equal(again, y)
    assert same is known


def test_gradients_in_bfloat16_are_near_and_of_that_type():
    x = normal(1, 4, 2, 3)

    def total(x):
        return jnp.sin(dot_product_attention(x, x, x, causal=True)).sum().astype(jnp.float32)

    gradient = jax.grad(total)(jnp.asarray(x, jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16
    exact = np.asarray(jax.grad(total)(jnp.asarray(x)))
    assert np.abs(gradient - exact).max() < 0.05 * np.abs(exact).max()


def plainly(query, key, value, mask, dropout):
    """Softmax first, as the paper writes it."""
    scores = jnp.einsum("bqhf,bkhf->bhqk", query / np.sqrt(query.shape[-1]), key)
    if mask is not None:
        scores = jnp.where(mask, scores, -1e30)
    weights = jax.nn.softmax(scores)
    if dropout is not None:
        weights = dropout(weights)
    return jnp.einsum("bhqk,bkhf->bqhf", weights, value)


def _ours(query, key, value, mask, dropout):
    return dot_product_attention(query, key, value, mask=mask, dropout=dropout)


class _Attending(nn.Module):
    function: Any
    mask: Any
    rate: float

    @nn.compact
    def __call__(self, *arrays):
        dropout = nn.Dropout(self.rate, deterministic=False) if self.rate else None
        return self.function(*arrays, self.mask, dropout)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_derivatives_in_both_modes_are_the_softmaxs(masked, rate):
    with jax.enable_x64(True):
        shape, keys = (2, 5, 3, 4), jax.random.split(jax.random.key(0), 6)
        arrays, tangents = (
            tuple(jax.random.normal(key, shape, jnp.float64) for key in keys[i : i + 3])
            for i in (0, 3)
        )
        mask = (jnp.arange(5)[:, None] >= jnp.arange(5))[None, None] if masked else None

        def results(function):
            def call(*arrays):
                module = _Attending(function, mask, rate)
                return module.apply({}, *arrays, rngs={"dropout": jax.random.key(1)})

            def total(*arrays):
                return jnp.sin(call(*arrays)).sum()

            def steepness(*arrays):
                gradients = jax.grad(total, argnums=(0, 1, 2))(*arrays)
                return sum((gradient**2).sum() for gradient in gradients)

            return (
                jax.jvp(call, arrays, tangents),
                jax.grad(total, argnums=(0, 1, 2))(*arrays),
                jax.grad(steepness, argnums=(0, 1, 2))(*arrays),
            )

        ours = results(_ours)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(results(plainly)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_the_gradient_keeps_no_more_than_the_plain_form():
    arrays = tuple(jnp.ones((2, 64, 3, 4)) for _ in range(3))

    def kept(function):
        _, backward = jax.vjp(function, *arrays)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert kept(dot_product_attention) <= kept(lambda q, k, v: plainly(q, k, v, None, None))
