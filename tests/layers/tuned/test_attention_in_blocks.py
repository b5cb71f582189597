"""Attention in blocks against the softmax as the paper writes it, and the kernels of a TPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from zoo.errors import UserError
from zoo.layers import attention as layer
from zoo.layers import dot_product_attention
from zoo.layers.tuned import attention, attention_kernels
from zoo.training.layout import make_mesh

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(attention, "_BLOCK", 8)
    monkeypatch.setattr(layer, "_HELD", 0)
    monkeypatch.setattr(layer, "_BLOCK", 2)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def plain(query, key, value, mask, causal):
    """Returns the means; those of a query that sees nothing are zero."""
    scores = jnp.einsum("bqhf,bkhf->bhqk", query / np.sqrt(query.shape[-1]), key)
    sees = jnp.ones(scores.shape, bool) if mask is None else jnp.broadcast_to(mask, scores.shape)
    if causal:
        sees &= jnp.tril(jnp.ones(scores.shape[2:], bool))
    weights = jax.nn.softmax(jnp.where(sees, scores, -1e30)) * sees
    return jnp.einsum("bhqk,bkhf->bqhf", weights, value)


def derivatives(function, arrays):
    def total(*arrays):
        return jnp.sin(function(*arrays)).sum()

    def steepness(*arrays):
        return sum((g**2).sum() for g in jax.grad(total, argnums=(0, 1, 2))(*arrays))

    tangents = tuple(jnp.cos(x) for x in arrays)
    return jax.jit(
        lambda *x: (
            jax.jvp(function, x, tangents),
            jax.grad(total, argnums=(0, 1, 2))(*x),
            jax.grad(jax.checkpoint(total), argnums=(0, 1, 2))(*x),
            jax.grad(steepness, argnums=(0, 1, 2))(*x),
            jax.jvp(jax.grad(total), x, tangents),
        )
    )(*arrays)


def masks(queries, keys):
    """A mask of each score in which the second query sees nothing, and one of keys."""
    each = np.random.default_rng(3).random((2, 3, queries, keys)) > 0.4
    each[:, :, min(1, queries - 1)] = False
    of_keys = np.random.default_rng(4).random((2, 1, 1, keys)) > 0.4
    of_keys[1] = False
    return {"none": None, "each": jnp.asarray(each), "keys": jnp.asarray(of_keys)}


@pytest.mark.parametrize("mask", ["none", "each", "keys"])
@pytest.mark.parametrize(("queries", "keys", "causal"), [(19, 19, True), (5, 21, False)])
def test_derivatives_of_every_kind_are_the_plain_forms(queries, keys, causal, mask):
    seen = masks(queries, keys)[mask]
    with jax.enable_x64(True):
        arrays = (normal(0, 2, queries, 3, 4), *(normal(i, 2, keys, 3, 4) for i in (1, 2)))
        ours = derivatives(lambda *x: dot_product_attention(*x, mask=seen, causal=causal), arrays)
        theirs = derivatives(lambda *x: plain(*x, seen, causal), arrays)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@settings(max_examples=12)
@given(
    queries=st.integers(3, 26),
    keys=st.integers(3, 26),
    causal=st.booleans(),
    mask=st.sampled_from(["none", "each", "keys"]),
)
def test_values_and_gradients_at_any_length(queries, keys, causal, mask):
    keys = queries if causal else keys
    seen = masks(queries, keys)[mask]
    arrays = [normal(0, 2, queries, 3, 4), *(normal(i, 2, keys, 3, 4) for i in (1, 2))]
    arrays = [x.astype(jnp.float32) for x in arrays]

    def found(function):
        made, backward = jax.vjp(function, *arrays)
        return made, *backward(jnp.cos(made))

    ours = found(lambda *x: dot_product_attention(*x, mask=seen, causal=causal))
    theirs = found(lambda *x: plain(*x, seen, causal))
    for a, b in zip(ours, theirs, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_results_logarithm_of_sums_has_its_gradient():
    with jax.enable_x64(True):
        arrays = tuple(normal(i, 2, 11, 3, 4) for i in range(3))

        def ours(*arrays):
            return jnp.cos(attention.attend(attention.Options(), *arrays, (None, None))[1]).sum()

        def theirs(query, key, value):
            scores = jnp.einsum("bqhf,bkhf->bhqk", query, key)
            return jnp.cos(jax.nn.logsumexp(scores, axis=-1)).sum() + 0 * value.sum()

        for a, b in zip(
            jax.grad(ours, argnums=(0, 1, 2))(*arrays),
            jax.grad(theirs, argnums=(0, 1, 2))(*arrays),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


class Dropping(nn.Module):
    causal: bool

    @nn.compact
    def __call__(self, *arrays):
        dropout = nn.Dropout(0.25, deterministic=False)
        return dot_product_attention(*arrays, causal=self.causal, dropout=dropout)


@pytest.mark.parametrize("causal", [False, True])
def test_dropout_drops_a_share_and_its_gradient_drops_the_same(causal):
    with jax.enable_x64(True):
        shape = (2, 40, 3, 40)
        query, key = normal(0, *shape), normal(1, *shape)
        # The means of unit vectors are the weights.
        value = jnp.broadcast_to(jnp.eye(40)[None, :, None], shape)

        def call(query, key, value, seed=0):
            return Dropping(causal).apply(
                {}, query, key, value, rngs={"dropout": jax.random.key(seed)}
            )

        weights = plain(query, key, value, None, causal)
        made = call(query, key, value)
        kept = jnp.where(made == 0, 0, 1 / 0.75)
        np.testing.assert_allclose(made, weights * kept, rtol=1e-12)
        of_all = (made == 0)[weights > 0].mean()
        assert abs(of_all - 0.25) < 5 * np.sqrt(0.25 * 0.75 / (weights > 0).sum())
        assert not np.array_equal(made, call(query, key, value, seed=1))
        heads = [np.asarray(kept[0, :, h]) for h in range(3)]
        assert not np.array_equal(heads[0], heads[1])

        def ours(*x):
            return jnp.sin(call(*x)).sum()

        def theirs(query, key, value):
            scores = jnp.einsum("bqhf,bkhf->bqhk", query / np.sqrt(40), key)
            if causal:
                sees = jnp.tril(jnp.ones((40, 40), bool))[:, None]
                scores = jnp.where(sees, scores, -1e30)
            weights = jax.nn.softmax(scores) * kept
            return jnp.sin(jnp.einsum("bqhk,bkhf->bqhf", weights, value)).sum()

        for a, b in zip(
            jax.grad(ours, argnums=(0, 1, 2))(query, key, value),
            jax.grad(theirs, argnums=(0, 1, 2))(query, key, value),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_bfloat16_is_near_and_keeps_its_type():
    arrays = tuple(normal(i, 2, 19, 3, 4).astype(jnp.float32) for i in range(3))

    def found(arrays):
        def total(*x):
            made = dot_product_attention(*x, causal=True)
            return jnp.sin(made.astype(jnp.float32)).sum(), made

        gradients, made = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(*arrays)
        return [made, *gradients]

    exact = found(arrays)
    for a, b in zip(found([x.astype(jnp.bfloat16) for x in arrays]), exact, strict=True):
        assert a.dtype == jnp.bfloat16
        assert np.abs(a.astype(jnp.float32) - b).max() < 0.05 * np.abs(b).max()


def test_rows_under_vmap_are_rows():
    arrays = tuple(normal(i, 3, 2, 19, 2, 4).astype(jnp.float32) for i in range(3))

    def gradient(*x):
        return jax.grad(lambda *x: jnp.sin(dot_product_attention(*x, causal=True)).sum())(*x)

    together = jax.vmap(gradient)(*arrays)
    for row in range(3):
        one = gradient(*(x[row] for x in arrays))
        np.testing.assert_allclose(together[row], one, rtol=1e-5, atol=1e-6)


def test_groups_of_heads_share_their_keys():
    query, key, value = normal(0, 2, 9, 6, 4), normal(1, 2, 9, 2, 4), normal(2, 2, 9, 2, 4)
    expected = plain(query, *(jnp.repeat(x, 3, axis=2) for x in (key, value)), None, True)
    made = dot_product_attention(query, key, value, causal=True)
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="2 heads of the keys must divide the queries' 5"):
        dot_product_attention(query[:, :, :5], key, value)


def test_memory_grows_with_the_length_and_not_with_its_square(monkeypatch):
    monkeypatch.setattr(attention, "_BLOCK", 64)

    def temporary(length):
        one = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
        gradient = jax.grad(
            lambda *x: dot_product_attention(*x, causal=True).sum(), argnums=(0, 1, 2)
        )
        compiled = jax.jit(gradient).lower(one, one, one).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporary(1024), temporary(4096)
    assert long < 5 * short
    assert long < 2 * 4096**2 * 4 / 4  # the scores of both heads, of which it is a part


@pytest.mark.parametrize("causal", [False, True])
def test_the_kernel_of_a_tpu_computes_the_same(causal, monkeypatch):
    """In Pallas's interpreter, which follows the program that a TPU runs."""
    from jax.experimental.pallas import tpu

    monkeypatch.setattr(attention_kernels, "_TPU_BLOCK", 128)
    arrays = tuple(normal(i, 1, 256, 2, 16).astype(jnp.float32) for i in range(3))
    query, key, _ = arrays
    exact = attention._forward(attention.Options(causal), *arrays, attention._Extra(None, None))
    cotangents = jnp.cos(exact[0]), jnp.zeros_like(exact[1])
    gradients = attention._backward(
        attention.Options(causal), (*arrays, *exact), cotangents, attention._Extra(None, None)
    )
    with tpu.force_tpu_interpret_mode():
        made = attention_kernels.forward(causal, query, key)["tpu"](*arrays, None)
        theirs = attention_kernels.backward(causal, query, key)["tpu"](
            (*arrays, *exact), cotangents, None
        )
    for a, b in zip((*made, *theirs), (*exact, *gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


_COMPILES = """
import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from zoo.layers import dot_product_attention

devices = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices
gradient = jax.grad(
    lambda *x: dot_product_attention(*x, causal=True).astype("float32").sum(), argnums=(0, 1, 2)
)
mesh = Mesh(devices, ("data",))
rows = PartitionSpec("data")
divided = jax.shard_map(gradient, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
one = SingleDeviceSharding(devices[0])
for name, function, placed in (
    ("one", gradient, one),
    ("many", gradient, NamedSharding(mesh, rows)),
    ("divided", divided, NamedSharding(mesh, rows)),
):
    x = jax.ShapeDtypeStruct((4, 1024, 4, 64), "bfloat16", sharding=placed)
    lowered = jax.jit(function).trace(x, x, x).lower(lowering_platforms=("tpu",))
    lowered.compile()
    print(name, "tpu_custom_call" in lowered.as_text())
"""


@pytest.mark.long
def test_it_compiles_for_a_tpu_that_is_not_there():
    library = os.environ.get("TPU_LIBRARY_PATH", "")
    if not Path(library).is_file():
        pytest.skip("libtpu is absent: TPU_LIBRARY_PATH names no file")
    variables = {
        "JAX_PLATFORMS": "cpu", "TPU_LIBRARY_PATH": library, "TPU_SKIP_MDS_QUERY": "1",
        # Those of the tests are a CPU's, and libtpu ends the process for one that it does not know.
        "XLA_FLAGS": "",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", _COMPILES], cwd=ROOT, env=os.environ | variables,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # XLA's partitioner cannot divide a kernel; a part of shard_map has it.
    assert done.stdout.split() == ["one", "True", "many", "False", "divided", "True"]


def test_devices_have_rows_and_heads_of_their_own():
    mesh = make_mesh(2, 2, 2)
    generator = np.random.default_rng(3)
    arrays = [jnp.asarray(generator.normal(size=(8, 24, 4, 16)), jnp.float32) for _ in range(3)]

    def gradients(*arrays):
        def loss(*arrays):
            return jnp.sin(dot_product_attention(*arrays, causal=True)).sum()

        return jax.grad(loss, argnums=(0, 1, 2))(*arrays)

    exact = jax.jit(gradients)(*arrays)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        divided = jax.jit(gradients, in_shardings=rows).lower(*arrays).compile()
    for ours, one in zip(divided(*arrays), exact, strict=True):
        np.testing.assert_allclose(ours, one, rtol=1e-4, atol=1e-5)
    # Two rows and two heads on each device, in three blocks of eight.
    text = divided.as_text()
    assert re.search(r"\[3,2,2,8,16\]", text)
    assert not re.search(r"\[3,([248],4|[48],2),8,16\]", text)
