"""Attention (Vaswani et al. 2017), for every family: over oneself, over a context, with a cache."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zoo.axes import constrain, on_own_parts
from zoo.errors import UserError
from zoo.layers.linear import Linear, apply_each
from zoo.layers.tuned.attention import Options, attend
from zoo.layers.tuned.platform import are_known

Heads = Float[Array, "batch length heads head_features"]
Mask = Bool[Array, "#batch #heads #query #key"]
Scores = Float[Array, "batch heads query key"]
Means = Float[Array, "batch heads query head_features"]

# The collection in which the attention layers keep their weights, where it is asked for:
# ``module.apply(..., mutable=[WEIGHTS])``.
WEIGHTS = "attention_weights"
# Queries that share one product with their keys. In causal attention a block sees the keys up to
# its own end: for long sequences half of the work, and scores that stay in a core's cache.
_BLOCK = 128
# Up to so many scores for a head they are held at once, which is faster where there are few; of
# more, only a block is held.
_HELD = 512 * 512


class KeyValueCache(NamedTuple):
    """Keys and values of the tokens so far, in arrays of full length.

    Attributes:
        key: the key of each token; zeros after the last.
        value: the value of each token; zeros after the last.
        length: number of tokens so far, padding included.
        padding: for each row, how many of its first tokens are padding, which nothing sees; None:
            no row has any. With it, texts of different lengths end at the same place.
    """

    key: Float[Array, "batch max_length heads head_features"]
    value: Float[Array, "batch max_length heads head_features"]
    length: Int[Array, ""]
    padding: Int[Array, " batch"] | None = None

    def positions(self, time: int) -> Int[Array, "#batch time"]:
        """Returns the positions of the next tokens in their texts; that of padding is 0."""
        places = self.length + jnp.arange(time)[None]
        return places if self.padding is None else jnp.maximum(places - self.padding[:, None], 0)

    def sees(self, time: int) -> Bool[Array, "#batch 1 time max_length"]:
        """Returns which tokens, of the full length, each of the next tokens may see."""
        places = jnp.arange(self.key.shape[1])
        seen = (self.length + jnp.arange(time))[:, None] >= places
        if self.padding is None:
            return seen[None, None]
        return (seen & (places >= self.padding[:, None, None]))[:, None]

    def attended(self, key: Heads, value: Heads) -> tuple[Heads, Heads, Mask, KeyValueCache]:
        """Returns what the next tokens attend to, and the cache with their keys and values added.

        Returns:
            All keys and values, in the type of the new ones: the cache's must not decide the
            result's. Then which of them each of the next tokens sees, and the cache.

        Raises:
            UserError: see ``extended``.
        """
        sees, cache = self.sees(key.shape[1]), self.extended(key, value)
        return cache.key.astype(key.dtype), cache.value.astype(value.dtype), sees, cache

    def extended(self, key: Heads, value: Heads) -> KeyValueCache:
        """Returns the cache with the keys and values of the next tokens added, in its own type.

        Raises:
            UserError: there is no room for them. Compiled code cannot know; there they become nan,
                and with them all that follows.
        """
        room, added = self.key.shape[1], key.shape[1]
        known = 0 if isinstance(self.length, jax.core.Tracer) else int(self.length)
        if known + added > room:
            raise UserError(
                f"the cache has room for {room} tokens and holds {known}: {added} more do not fit. "
                "Give initial_cache a larger max_length"
            )
        fits = self.length + added <= room

        def written(old: Heads, new: Heads) -> Heads:
            new = jnp.where(fits, new, jnp.nan).astype(old.dtype)
            return jax.lax.dynamic_update_slice_in_dim(old, new, self.length, axis=1)

        return self._replace(
            key=written(self.key, key),
            value=written(self.value, value),
            length=self.length + added,
        )


class RollingCache(NamedTuple):
    """Keys and values of the last tokens, of which each token sees a window (Beltagy et al. 2020).

    The token at place ``p`` of a row lies at ``p % window``, over the one that no token sees any
    more. There is room for a text of any length.

    Attributes:
        key: the key of each token.
        value: the value of each token.
        length: number of tokens so far, padding included.
        padding: see ``KeyValueCache``.
    """

    key: Float[Array, "batch window heads head_features"]
    value: Float[Array, "batch window heads head_features"]
    length: Int[Array, ""]
    padding: Int[Array, " batch"] | None = None

    def positions(self, time: int) -> Int[Array, "#batch time"]:
        """Returns the positions of the next tokens in their texts; that of padding is 0."""
        places = self.length + jnp.arange(time)[None]
        return places if self.padding is None else jnp.maximum(places - self.padding[:, None], 0)

    def attended(self, key: Heads, value: Heads) -> tuple[Heads, Heads, Mask, RollingCache]:
        """Returns what the next tokens attend to, and the cache with their keys and values added.

        Returns:
            Keys and values in the type of the new ones, which of them each of the next tokens sees,
            and the cache.
        """
        time, window = key.shape[1], self.key.shape[1]
        cache = self._replace(
            key=self._written(self.key, key),
            value=self._written(self.value, value),
            length=self.length + time,
        )
        if time == 1:
            # What it takes the place of is what the new token does not see.
            places = cache._places()
            seen = places >= 0
            keys, values = cache.key.astype(key.dtype), cache.value.astype(value.dtype)
            if self.padding is not None:
                seen = seen & (places >= self.padding[:, None])
            return keys, values, jnp.atleast_2d(seen)[:, None, None], cache
        new = self.length + jnp.arange(time)
        places = jnp.concatenate([self._places(), new])
        distances = new[:, None] - places
        sees = ((distances >= 0) & (distances < window) & (places >= 0))[None]
        if self.padding is not None:
            sees = sees & (places >= self.padding[:, None, None])
        keys = jnp.concatenate([self.key.astype(key.dtype), key], axis=1)
        values = jnp.concatenate([self.value.astype(value.dtype), value], axis=1)
        return keys, values, sees[:, None], cache

    def _places(self) -> Int[Array, " window"]:
        """Returns the place in the text of what lies in each part of the arrays; below 0: none."""
        window = self.key.shape[1]
        last = self.length - 1
        return last - (last - jnp.arange(window)) % window

    def _written(self, old: Heads, new: Heads) -> Heads:
        time, window = new.shape[1], old.shape[1]
        new = new.astype(old.dtype)
        if time == 1:
            return jax.lax.dynamic_update_slice_in_dim(old, new, self.length % window, axis=1)
        kept = min(time, window)
        where = (self.length + time - kept + jnp.arange(kept)) % window
        return old.at[:, where].set(new[:, time - kept :], unique_indices=True)


Cache = KeyValueCache | RollingCache


def empty_cache(
    batch_size: int,
    max_length: int,
    num_heads: int,
    head_features: int,
    dtype: Any = float,
    padding: Int[Array, " batch"] | None = None,
) -> KeyValueCache:
    """Returns a cache of no tokens with room for ``max_length``.

    No two of its arrays share memory, so that it can be donated.
    """
    shape = (batch_size, max_length, num_heads, head_features)
    return KeyValueCache(
        jnp.zeros(shape, dtype),
        jnp.zeros(shape, dtype),
        jnp.zeros((), jnp.int32),
        None if padding is None else jnp.array(padding, jnp.int32),
    )


def empty_rolling_cache(
    batch_size: int,
    window: int,
    num_heads: int,
    head_features: int,
    dtype: Any = float,
    padding: Int[Array, " batch"] | None = None,
) -> RollingCache:
    """Returns a cache of no tokens that keeps the last ``window`` of them; see ``empty_cache``."""
    return RollingCache(*empty_cache(batch_size, window, num_heads, head_features, dtype, padding))


def dot_product_attention(
    query: Heads,
    key: Heads,
    value: Heads,
    *,
    mask: Mask | None = None,
    bias: Float[Array, "#batch #heads query key"] | None = None,
    scale: float | None = None,
    causal: bool = False,
    window: int = 0,
    dropout: nn.Dropout | None = None,
) -> Heads:
    """Returns means of the values, weighted by the softmax of query times key over √features.

    As ``torch.nn.functional.scaled_dot_product_attention``. The softmax is in float32 at least.
    With more than 512 queries and keys the scores are never held at once, so that memory grows with
    the length and not with its square; see ``zoo.layers.tuned.attention``. A bias, which is as
    large as the scores, takes that away.

    Args:
        query: what each position looks for.
        key: what each position offers; it may have fewer heads, each for a group of queries' heads
            (Ainslie et al. 2023).
        value: what each position gives; as many heads as ``key``.
        mask: True where a query may see a key. Where it sees none the result is zero.
        bias: what is added to the product of query and key.
        scale: what the product of query and key is multiplied by; None: 1/√features.
        causal: query ``i`` sees the keys up to ``i`` only; there are as many of both.
        window: of causal attention: query ``i`` sees only the last so many of these keys, the key
            ``i`` among them (Beltagy et al. 2020); 0: it sees all of them.
        dropout: applied to the weights; None: none.

    Raises:
        UserError: ``causal`` is true, and there are not as many queries as keys; or the heads of
            the keys do not divide those of the queries.
    """
    length, keys = query.shape[1], key.shape[1]
    if causal and keys != length:
        raise UserError(f"causal attention needs as many queries as keys, not {length} and {keys}")
    if window and not causal:
        raise UserError(f"window={window}: only causal attention has a window")
    if query.shape[2] % key.shape[2]:
        raise UserError(
            f"the {key.shape[2]} heads of the keys must divide the queries' {query.shape[2]}"
        )
    # A window that is as long as the text hides nothing.
    window = 0 if are_known(length) and window >= length else window
    query = query / math.sqrt(query.shape[-1]) if scale is None else query * scale
    many = are_known(length, keys) and length * keys > _HELD and min(length, keys) > _BLOCK
    if many and bias is None:
        key, value = (_for_each_head(x, query.shape[2]) for x in (key, value))
        return _attend_in_blocks(query, key, value, mask, causal, window, dropout)
    if not causal:
        return _attend_in_groups(query, key, value, mask, bias, dropout)
    blocks = []
    for begin in range(0, length, _BLOCK):
        end = min(begin + _BLOCK, length)
        first = max(begin - window + 1, 0) if window else 0
        distances = jnp.arange(begin, end)[:, None] - jnp.arange(first, end)
        sees = distances >= 0
        if window:
            sees = sees & (distances < window)
        if mask is not None:
            rows = mask[:, :, begin:end] if mask.shape[2] > 1 else mask
            sees = sees & (rows[..., first:end] if mask.shape[3] > 1 else rows)
        added = None if bias is None else bias[:, :, begin:end, first:end]
        part = (query[:, begin:end], key[:, first:end], value[:, first:end])
        blocks.append(_attend_in_groups(*part, sees, added, dropout))
    return jnp.concatenate(blocks, axis=1)


def attention_weights(
    query: Heads, key: Heads, *, mask: Mask | None = None, causal: bool = False
) -> Float[Array, "batch heads query key"]:
    """Returns the weights with which ``dot_product_attention`` takes the means, to look at.

    Where a query sees no key its weights are zero.
    """
    scores = jnp.einsum("bqhf,bkhf->bhqk", query, _for_each_head(key, query.shape[2]))
    sees = jnp.ones((query.shape[1], key.shape[1]), bool)
    sees = (jnp.tril(sees) if causal else sees)[None, None]
    if mask is not None:
        sees = sees & mask
    weights = jax.nn.softmax(jnp.where(sees, scores / math.sqrt(query.shape[-1]), -jnp.inf))
    return jnp.where(sees, weights, 0)


def _for_each_head(x: Heads, heads: int) -> Heads:
    """Returns keys or values with as many heads as the queries, by repeating each."""
    return x if x.shape[2] == heads else jnp.repeat(x, heads // x.shape[2], axis=2)


def _attend_in_groups(
    query: Heads,
    key: Heads,
    value: Heads,
    mask: Bool[Array, ...] | None,
    bias: Scores | None,
    dropout: nn.Dropout | None,
) -> Heads:
    """Returns what ``_attend`` does, also where keys have fewer heads than queries.

    The queries of a group then stand one after another before the keys that they share, so that no
    key is copied, and one product has them all.
    """
    batch, length, heads, features = query.shape
    groups = key.shape[2]
    if heads == groups:
        return _attend(query, key, value, mask, bias, dropout)
    if bias is not None or (mask is not None and mask.ndim == 4 and mask.shape[1] > 1):
        key, value = (_for_each_head(x, heads) for x in (key, value))
        return _attend(query, key, value, mask, bias, dropout)
    each = heads // groups
    query = query.reshape(batch, length, groups, each, features).swapaxes(2, 3)
    query = query.reshape(batch, length * each, groups, features)
    if mask is not None and mask.shape[-2] > 1:
        mask = jnp.repeat(mask, each, axis=-2)
    means = _attend(query, key, value, mask, None, dropout)
    means = means.reshape(batch, length, each, groups, features).swapaxes(2, 3)
    return means.reshape(batch, length, heads, features)


def _attend_in_blocks(
    query: Heads,
    key: Heads,
    value: Heads,
    mask: Mask | None,
    causal: bool,
    window: int,
    dropout: nn.Dropout | None,
) -> Heads:
    drawn, rate = None, 0.0
    if dropout is not None:
        drawn, rate = dropout.make_rng(dropout.rng_collection), float(dropout.rate)
    if mask is not None or drawn is not None:
        return attend(Options(causal, rate, window), query, key, value, (mask, drawn))[0]

    def of_own(query: Heads, key: Heads, value: Heads) -> Heads:
        return attend(Options(causal, 0.0, window), query, key, value, (None, None))[0]

    means: Heads = on_own_parts(of_own, ("batch", None, "heads", None), query, key, value)
    return means


def _attend(
    query: Heads,
    key: Heads,
    value: Heads,
    mask: Bool[Array, ...] | None,
    bias: Scores | None,
    dropout: nn.Dropout | None,
) -> Heads:
    scores = jnp.einsum(
        "bqhf,bkhf->bhqk",
        query,
        key,
        preferred_element_type=jnp.promote_types(query.dtype, jnp.float32),
    )
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    kept = None
    if dropout is not None:
        kept = dropout(jnp.ones_like(scores))
    return _weighted_means(mask is not None, scores, value, kept).swapaxes(1, 2)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _weighted_means(masked: bool, scores: Scores, value: Heads, kept: Scores | None) -> Means:
    """Returns means of the values by the softmax of the scores, each weight times its share kept.

    Divided by the weights' sum after the product, when the array is smaller (Dao et al. 2022,
    section 3.1). A row whose scores are all -inf gives 0.
    """
    weights, total = _unnormalised(masked, scores)
    return _sums(weights, value, kept) / total.astype(value.dtype)


@_weighted_means.defjvp
def _weighted_means_jvp(masked: bool, primals: Any, tangents: Any) -> tuple[Means, Means]:
    (scores, value, kept), (d_scores, d_value, _) = primals, tangents
    weights, total = _unnormalised(masked, scores)
    means = _sums(weights, value, kept) / total.astype(value.dtype)
    # The softmax's own derivative: that of the quotient would lose digits where weights are alike.
    weights = weights / total
    d_weights = weights * (d_scores - (weights * d_scores).sum(axis=-1, keepdims=True))
    return means, _sums(d_weights, value, kept) + _sums(weights, d_value, kept)


def _unnormalised(
    masked: bool, scores: Scores
) -> tuple[Scores, Float[Array, "batch heads query 1"]]:
    """Returns the numerators of the softmax and their sums."""
    largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    if masked:
        largest = jnp.maximum(largest, jnp.finfo(scores.dtype).min)
    weights = jnp.exp(scores - largest)
    total = weights.sum(axis=-1, keepdims=True)
    return weights, jnp.where(total == 0, 1, total) if masked else total


def _sums(weights: Scores, value: Heads, kept: Scores | None) -> Means:
    if kept is not None:
        weights = weights * kept
    return jnp.einsum("bhqk,bkhf->bhqf", weights.astype(value.dtype), value)


class MultiHeadAttention(nn.Module):
    """Attention in several subspaces, as ``torch.nn.MultiheadAttention`` with ``batch_first``.

    Parameters: ``query``, ``key``, ``value`` and ``out``, linear layers. ``xavier_uniform`` draws
    each by itself; PyTorch draws query, key and value as one matrix with three times the outputs,
    whose values are smaller by √2.

    Attributes:
        num_heads: number of subspaces.
        head_features: width of each; 0: the input's width divided by ``num_heads``.
        use_bias: whether query, key and value have biases.
        use_key_bias: whether key has one too. It changes nothing, and some models have none.
        dropout_rate: share of the weights that is set to zero in training.
        initialization: initialisation of query, key and value; see ``zoo.layers.initializers``.
        out_initialization: initialisation of ``out``.
    """

    num_heads: int
    head_features: int = 0
    use_bias: bool = True
    use_key_bias: bool = True
    dropout_rate: float = 0.0
    initialization: str | float = "xavier_uniform"
    out_initialization: str | float = "xavier_uniform"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length features"],
        context: Float[Array, "batch context_length context_features"]
        | KeyValueCache
        | None = None,
        *,
        mask: Mask | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "batch length features"], KeyValueCache | None]:
        """Attends, and returns the keys and values with which to go on.

        Args:
            x: the vectors that attend.
            context: the vectors that are attended to; None: ``x`` itself. It may also be the keys
                and values that an earlier call returned for a context, which need not be computed
                again.
            mask: True where a query may see a key; with a cache, its keys are those of full length.
            causal: a position sees itself and the earlier ones only.
            cache: keys and values of the earlier tokens, which ``x`` follows. Attention is then
                causal.
            train: whether to drop out.

        Returns:
            The result, and ``cache`` with the tokens of ``x`` added, or the context's keys and
            values; None for ``x`` itself without a cache.

        Raises:
            UserError: the heads do not divide the features, or the cache is full.
        """
        features = x.shape[-1]
        if not self.head_features and features % self.num_heads:
            raise UserError(f"num_heads={self.num_heads} must divide features={features}")
        head_features = self.head_features or features // self.num_heads
        width = self.num_heads * head_features

        def heads(source: Float[Array, "batch length source_features"], *names: str) -> list[Heads]:
            linears = [
                Linear(
                    width,
                    use_bias=self.use_bias and (self.use_key_bias or name != "key"),
                    initialization=self.initialization,
                    name=name,
                )
                for name in names
            ]
            shape = (*source.shape[:-1], self.num_heads, head_features)
            # Each device has the whole length for some of the heads.
            return [
                constrain(y.reshape(shape), "batch", None, "heads", None)
                for y in apply_each(linears, source)
            ]

        if isinstance(context, KeyValueCache):
            (query,), key, value, cache = heads(x, "query"), context.key, context.value, context
        elif context is not None:
            (query,), (key, value) = heads(x, "query"), heads(context, "key", "value")
            cache = KeyValueCache(key, value, jnp.asarray(key.shape[1], jnp.int32))
        else:
            query, key, value = heads(x, "query", "key", "value")
            if cache is not None:
                key, value, sees, cache = cache.attended(key, value)
                mask, causal = sees if mask is None else mask & sees, False
        if self.is_mutable_collection(WEIGHTS) and not self.is_initializing():
            self.sow(WEIGHTS, "weights", attention_weights(query, key, mask=mask, causal=causal))
        dropout = None
        if train and self.dropout_rate:
            dropout = nn.Dropout(self.dropout_rate, deterministic=False)
        y = dot_product_attention(
            query, key, value, mask=mask, causal=causal, dropout=dropout
        ).reshape(*x.shape[:-1], width)
        return Linear(features, initialization=self.out_initialization, name="out")(y), cache
