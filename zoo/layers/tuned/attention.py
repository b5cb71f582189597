"""Attention whose memory grows with the length, not with its square.

The scores are computed in blocks and forgotten: forward with the running maximum and sum of the
softmax (Rabe and Staats 2021, section 2; Dao et al. 2022, algorithm 1), backward anew from the
logarithm of each row's sum (Dao et al. 2022, algorithm 4). The rule is for forward mode, and its
transpose is the backward algorithm, so forward mode and derivatives of every order remain.

A GPU and a TPU have kernels for what has neither mask nor dropout; see ``attention_kernels``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from zoo.layers.tuned import attention_kernels
from zoo.layers.tuned.platform import are_known, with_kernel

Heads = Float[Array, "batch length heads head_features"]
Rows = Float[Array, "batch heads query"]
Mask = Bool[Array, "#batch #heads #query #key"]
Blocks = Float[Array, "blocks batch heads block head_features"]
Block = Float[Array, "batch heads block head_features"]
Scores = Float[Array, "batch heads query_block key_block"]
Index = Int[Array, ""]

# The number of queries, and of keys, of a block of scores.
_BLOCK = 256


class Options(NamedTuple):
    """What decides the program.

    Attributes:
        causal: query ``i`` sees the keys up to ``i`` only.
        dropout_rate: share of the weights that is set to zero; 0 needs no key.
        window: if causal: query ``i`` sees the last so many of these keys only; 0: all of them.
    """

    causal: bool = False
    dropout_rate: float = 0.0
    window: int = 0

    def reaches(self, i: Index, j: Index) -> Bool[Array, ""]:
        """Returns whether causal queries of block ``i`` see any key of block ``j``."""
        if not self.window:
            return j <= i
        # The first query of a block and the last key of another are that far apart.
        return (j <= i) & ((i - j - 1) * _BLOCK + 1 < self.window)


class _Extra(NamedTuple):
    """What has no derivative: which scores count, and what draws the dropped weights."""

    mask: Mask | None
    dropout_key: PRNGKeyArray | None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def attend(
    options: Options, query: Heads, key: Heads, value: Heads, extra: tuple[Any, Any]
) -> tuple[Heads, Rows]:
    """Returns means of the values by the softmax of the scores, and the logarithm of its sums.

    Args:
        options: what decides the program.
        query: what each position looks for, already divided by √features.
        key: what each position offers.
        value: what each position gives.
        extra: the mask, True where a query may see a key, or None; and the key that draws which
            weights are dropped, or None. Where a query sees no key its mean is zero.
    """
    kernels = {}
    if all(x is None for x in extra) and not options.window:
        kernels = attention_kernels.forward(options.causal, query, key)
    plain = functools.partial(_forward, options)
    flops = 2 * _flops_of_product(options, query, key)
    made: tuple[Heads, Rows] = with_kernel(
        kernels, plain, query, key, value, _Extra(*extra), flops=flops
    )
    return made


def _flops_of_product(options: Options, query: Heads, key: Heads) -> int:
    """Returns the operations of a product of queries and keys that see each other.

    Half of them if it is causal; about a window for each query if it has one.
    """
    if not are_known(*query.shape, *key.shape):
        return 0
    batch, length, heads, features = query.shape
    whole = 2 * batch * heads * length * key.shape[1] * features
    if options.window:
        # All but the triangles before the window and after the query.
        unseen = (key.shape[1] - options.window) ** 2 / key.shape[1] ** 2
        return int(whole * (1 - unseen) / 2)
    return whole // (2 if options.causal else 1)


@attend.defjvp
def _attend_jvp(options: Options, primals: Any, tangents: Any) -> Any:
    query, key, value, extra = primals
    means, log_totals = attend(options, query, key, value, extra)
    leaves, structure = jax.tree.flatten(_Extra(*extra))
    operands = (*leaves, query, key, value, means, log_totals, *tangents[:3])
    linear = functools.partial(_forward_tangent, options, structure)
    # Traced here, with the precision of products that holds here, not where it is lowered.
    d_means, d_log_totals = _tangent_p.bind(
        *operands,
        tangent=jax.make_jaxpr(linear)(*operands),
        options=options,
        structure=structure,
    )
    return (means, log_totals), (d_means, d_log_totals)


def _tangent_jvp(
    primals: Any, tangents: Any, *, tangent: ClosedJaxpr, **_: Any
) -> tuple[list[Array], list[Array]]:
    return jax.jvp(
        jaxpr_as_fun(tangent), list(primals), [ad.instantiate_zeros(t) for t in tangents]
    )


def _tangent_transpose(
    cotangents: Sequence[Any], *operands: Any, options: Options, structure: Any, **_: Any
) -> list[Any]:
    of_means, of_totals = cotangents
    *leaves, query, key, value, means, log_totals = operands[:-3]
    with_totals = type(of_totals) is not ad.Zero
    gradients = _gradient(
        options,
        with_totals,
        (query, key, value, means, log_totals),
        (ad.instantiate_zeros(of_means), ad.instantiate_zeros(of_totals)),
        jax.tree.unflatten(structure, leaves),
    )
    wanted = (
        gradient if ad.is_undefined_primal(operand) else None
        for gradient, operand in zip(gradients, operands[-3:], strict=True)
    )
    return [None] * (len(operands) - 3) + list(wanted)


def _tangent_mapped(
    arrays: Any, places: Any, *, tangent: ClosedJaxpr, **_: Any
) -> tuple[list[Array], list[int]]:
    return jax.vmap(jaxpr_as_fun(tangent), in_axes=tuple(places))(*arrays), [0, 0]


def _tangent_made(*operands: Array, tangent: ClosedJaxpr, **_: Any) -> list[Array]:
    made: list[Array] = jax.jit(jaxpr_as_fun(tangent))(*operands)
    return made


_tangent_p = Primitive("attention_tangent")
_tangent_p.multiple_results = True
_tangent_p.def_impl(_tangent_made)
_tangent_p.def_abstract_eval(lambda *_, tangent, **__: tangent.out_avals)
ad.primitive_jvps[_tangent_p] = _tangent_jvp
ad.primitive_transposes[_tangent_p] = _tangent_transpose
batching.primitive_batchers[_tangent_p] = _tangent_mapped
mlir.register_lowering(
    _tangent_p,
    mlir.lower_fun(
        lambda *operands, tangent, **_: jaxpr_as_fun(tangent)(*operands), multiple_results=True
    ),
)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _gradient(
    options: Options, with_totals: bool, known: Any, cotangents: Any, extra: _Extra
) -> tuple[Heads, Heads, Heads]:
    """Returns the gradients of query, key and value.

    Args:
        options: what decides the program.
        with_totals: whether the logarithms of the sums have cotangents that are not zero.
        known: query, key, value, and the results of ``attend``.
        cotangents: those of the results of ``attend``.
        extra: mask and key.
    """
    query, key, *_ = known
    kernels = {}
    if all(x is None for x in extra) and not with_totals and not options.window:
        kernels = attention_kernels.backward(options.causal, query, key)
    plain = functools.partial(_backward, options)
    # Two for each product; that which is computed anew is not counted.
    flops = 4 * _flops_of_product(options, query, key)
    made: tuple[Heads, Heads, Heads] = with_kernel(
        kernels, plain, known, cotangents, extra, flops=flops
    )
    return made


@_gradient.defjvp
def _gradient_jvp(options: Options, with_totals: bool, primals: Any, tangents: Any) -> Any:
    del with_totals
    known, cotangents, extra = primals

    def of(known: Any, cotangents: Any) -> Any:
        return _backward(options, known, cotangents, extra)

    return jax.jvp(of, (known, cotangents), tangents[:2])


def _forward(
    options: Options, query: Heads, key: Heads, value: Heads, extra: _Extra
) -> tuple[Heads, Rows]:
    scores = _Scores(options, query, key, extra)
    keys, values = _blocks(key), _blocks(value)

    def of_queries(row: tuple[Index, Block]) -> tuple[Block, Array]:
        i, block = row

        def step(carry: Any, column: Any) -> Any:
            means, largest, total = carry
            j, one_key, one_value = column
            of_block = scores.of(i, j, block, one_key)
            highest = jnp.maximum(largest, of_block.max(axis=-1))
            # Where nothing was seen yet both are -inf, and their difference would be nan.
            usable = jnp.maximum(highest, jnp.finfo(highest.dtype).min)
            weights, shrunk = jnp.exp(of_block - usable[..., None]), jnp.exp(largest - usable)
            total = total * shrunk + weights.sum(axis=-1)
            means = means * shrunk[..., None] + _product(
                "bhqk,bhkf->bhqf", scores.kept(i, j, weights), one_value
            )
            return means, highest, total

        dtype, rows = scores.dtype, block.shape[:-1]
        start = (
            jnp.zeros((*rows, value.shape[-1]), dtype),
            jnp.full(rows, -jnp.inf, dtype),
            jnp.zeros(rows, dtype),
        )
        xs = (jnp.arange(len(keys)), keys, values)
        (means, largest, total), _ = jax.lax.scan(scores.where_seen(i, step), start, xs)
        sees_none = total == 0
        total = jnp.where(sees_none, 1, total)
        log_total = jnp.where(sees_none, 0, largest) + jnp.log(total)
        return (means / total[..., None]).astype(value.dtype), log_total

    queries = _blocks(query)
    means, log_totals = jax.lax.map(of_queries, (jnp.arange(len(queries)), queries))
    length = query.shape[1]
    return _joined(means, length), _joined_rows(log_totals, length)


def _forward_tangent(options: Options, structure: Any, *operands: Array) -> tuple[Heads, Rows]:
    """Returns the derivatives of ``_forward`` along the last three of the operands."""
    *leaves, query, key, value, means, log_totals, d_query, d_key, d_value = operands
    scores = _Scores(options, query, key, jax.tree.unflatten(structure, leaves))
    columns = tuple(_blocks(x) for x in (key, value, d_key, d_value))
    rows = (_blocks(query), _blocks(d_query), _blocks(means), _row_blocks(log_totals))

    def of_queries(row: Any) -> tuple[Block, Array]:
        i, (block, d_block, of_means, log_total) = row

        def step(carry: Any, column: Any) -> Any:
            d_means, d_log = carry
            j, (one_key, one_value, d_one_key, d_one_value) = column
            weights = jnp.exp(scores.of(i, j, block, one_key) - log_total[..., None])
            d_scores = _product("bhqf,bhkf->bhqk", d_block, one_key)
            d_scores += _product("bhqf,bhkf->bhqk", block, d_one_key)
            d_weights = weights * d_scores
            d_means += _product("bhqk,bhkf->bhqf", scores.kept(i, j, d_weights), one_value)
            d_means += _product("bhqk,bhkf->bhqf", scores.kept(i, j, weights), d_one_value)
            return d_means, d_log + d_weights.sum(axis=-1)

        start = jnp.zeros(of_means.shape, scores.dtype), jnp.zeros_like(log_total)
        xs = (jnp.arange(len(columns[0])), columns)
        (d_means, d_log), _ = jax.lax.scan(scores.where_seen(i, step), start, xs)
        return (d_means - d_log[..., None] * of_means).astype(value.dtype), d_log

    d_means, d_log_totals = jax.lax.map(of_queries, (jnp.arange(len(rows[0])), rows))
    length = query.shape[1]
    return _joined(d_means, length), _joined_rows(d_log_totals, length)


def _backward(
    options: Options, known: Any, cotangents: Any, extra: _Extra
) -> tuple[Heads, Heads, Heads]:
    """Returns the transpose of ``_forward_tangent``."""
    (query, key, value, means, log_totals), (of_means, of_totals) = known, cotangents
    scores = _Scores(options, query, key, extra)
    # What every weight of a row loses, so that they still add up to one.
    common = jnp.einsum("bqhf,bqhf->bhq", of_means.astype(scores.dtype), means) - of_totals
    rows = (_blocks(query), _blocks(of_means), _row_blocks(log_totals), _row_blocks(common))
    keys, values = _blocks(key), _blocks(value)

    def of_queries(of_columns: Any, row: Any) -> tuple[Any, Block]:
        i, (block, of_block, log_total, lost) = row

        def step(of_query: Block, column: Any) -> tuple[Block, Any]:
            j, one_key, one_value, (of_key, of_value) = column
            weights = jnp.exp(scores.of(i, j, block, one_key) - log_total[..., None])
            of_value += _product("bhqk,bhqf->bhkf", scores.kept(i, j, weights), of_block)
            of_weights = scores.kept(i, j, _product("bhqf,bhkf->bhqk", of_block, one_value))
            of_scores = weights * (of_weights - lost[..., None])
            of_query += _product("bhqk,bhkf->bhqf", of_scores, one_key)
            of_key += _product("bhqk,bhqf->bhkf", of_scores, block)
            return of_query, (of_key, of_value)

        def seen(of_query: Block, column: Any) -> tuple[Block, Any]:
            if not options.causal:
                return step(of_query, column)
            return jax.lax.cond(
                options.reaches(i, column[0]), step,
                lambda of_query, column: (of_query, column[-1]), of_query, column,
            )  # fmt: skip

        start = jnp.zeros(block.shape, scores.dtype)
        of_query, of_columns = jax.lax.scan(
            seen, start, (jnp.arange(len(keys)), keys, values, of_columns)
        )
        return of_columns, of_query

    start = tuple(jnp.zeros(x.shape, scores.dtype) for x in (keys, values))
    (of_keys, of_values), of_queries_ = jax.lax.scan(
        of_queries, start, (jnp.arange(len(rows[0])), rows)
    )
    return (
        _joined(of_queries_, query.shape[1]).astype(query.dtype),
        _joined(of_keys, key.shape[1]).astype(key.dtype),
        _joined(of_values, key.shape[1]).astype(value.dtype),
    )


class _Scores:
    """The scores of blocks of queries and keys, and which of them count."""

    def __init__(self, options: Options, query: Heads, key: Heads, extra: _Extra) -> None:
        self.options = options
        self.extra = extra
        self.keys = key.shape[1]
        self.dtype = jnp.promote_types(query.dtype, jnp.float32)
        self.mask = extra.mask
        if self.mask is not None:
            rows, columns = self.mask.shape[2:]
            padding = [(0, -size % _BLOCK if size > 1 else 0) for size in (rows, columns)]
            self.mask = jnp.pad(self.mask, [(0, 0), (0, 0), *padding])

    def of(self, i: Index, j: Index, query: Block, key: Block) -> Scores:
        """Returns the scores of blocks ``i`` and ``j``; -inf where a query may not see a key."""
        scores = _product("bhqf,bhkf->bhqk", query, key)
        columns = j * _BLOCK + jnp.arange(_BLOCK)
        sees = (columns < self.keys)[None, None, None]
        if self.options.causal:
            distances = i * _BLOCK + jnp.arange(_BLOCK)[:, None] - columns
            sees = sees & (distances >= 0)
            if self.options.window:
                sees = sees & (distances < self.options.window)
        if self.mask is not None:
            mask = self.mask
            for axis, index in ((2, i), (3, j)):
                if mask.shape[axis] > 1:
                    mask = jax.lax.dynamic_slice_in_dim(mask, index * _BLOCK, _BLOCK, axis)
            sees = sees & mask
        return jnp.where(sees, scores, -jnp.inf)

    def kept(self, i: Index, j: Index, weights: Scores) -> Scores:
        """Returns the weights of blocks ``i`` and ``j`` after dropout."""
        if self.extra.dropout_key is None:
            return weights
        key = jax.random.fold_in(jax.random.fold_in(self.extra.dropout_key, i), j)
        share = 1 - self.options.dropout_rate
        return jnp.where(jax.random.bernoulli(key, share, weights.shape), weights / share, 0)

    def where_seen(self, i: Index, step: Callable[..., Any]) -> Callable[..., tuple[Any, None]]:
        """Returns a step over blocks of keys that skips those that no query of ``i`` sees."""

        def seen(carry: Any, column: Any) -> tuple[Any, None]:
            if not self.options.causal:
                return step(carry, column), None
            reached = self.options.reaches(i, column[0])
            return jax.lax.cond(reached, step, lambda carry, _: carry, carry, column), None

        return seen


def _product(axes: str, a: Array, b: Array) -> Array:
    """Returns a product of two blocks in the type of the second, summed in float32 at least."""
    dtype = jnp.promote_types(b.dtype, jnp.float32)
    return jnp.einsum(axes, a.astype(b.dtype), b, preferred_element_type=dtype)


def _blocks(x: Heads) -> Blocks:
    batch, length, heads, features = x.shape
    x = jnp.pad(x, [(0, 0), (0, -length % _BLOCK), (0, 0), (0, 0)])
    return x.reshape(batch, -1, _BLOCK, heads, features).transpose(1, 0, 3, 2, 4)


def _joined(blocks: Blocks, length: int) -> Heads:
    _, batch, heads, _, features = blocks.shape
    x = blocks.transpose(1, 0, 3, 2, 4).reshape(batch, -1, heads, features)
    return x[:, :length]


def _row_blocks(x: Rows) -> Float[Array, "blocks batch heads block"]:
    x = jnp.pad(x, [(0, 0), (0, 0), (0, -x.shape[2] % _BLOCK)])
    return jnp.moveaxis(x.reshape(*x.shape[:2], -1, _BLOCK), 2, 0)


def _joined_rows(blocks: Float[Array, "blocks batch heads block"], length: int) -> Rows:
    x = jnp.moveaxis(blocks, 0, 2)
    return x.reshape(*x.shape[:2], -1)[..., :length]
