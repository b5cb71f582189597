"""T5: an encoder and a decoder with relative positions (Raffel et al. 2020)."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from zoo.axes import constrain
from zoo.errors import UserError
from zoo.layers import Embed, Linear, RMSNorm, activation, apply_each, dot_product_attention
from zoo.layers.attention import KeyValueCache, empty_cache
from zoo.models.transformer import DecoderCache
from zoo.models.transformer_blocks import (
    HIDDEN,
    RESIDUAL,
    Features,
    LayerCache,
    TokenMask,
    Tokens,
    through_layers,
)

# What attention adds to its scores, and which of them count; both are the same in all layers.
Bias = Float[Array, "1 heads query key"]
Mask = Bool[Array, "#batch 1 #query key"]


def buckets(num_buckets: int, max_distance: int) -> Int[np.ndarray, " distances"]:
    """Returns the bucket of each distance from 0 to ``max_distance`` (section 2.1).

    The first half of the buckets are for one distance each. Those of the second half grow with the
    logarithm of the distance. The last one is also for all distances beyond ``max_distance``.

    Args:
        num_buckets: number of buckets, at least 2.
        max_distance: a distance that has the last bucket, more than half of the buckets.
    """
    exact = num_buckets // 2
    distances = np.arange(max_distance + 1)
    # In float32 and in this order, as the reference: in float64 a distance at an edge between two
    # buckets could get the other one.
    ratios = np.log(np.maximum(distances, 1).astype(np.float32) / np.float32(exact))
    places = ratios / np.float32(math.log(max_distance / exact)) * np.float32(num_buckets - exact)
    far = np.minimum(exact + places.astype(np.int32), num_buckets - 1)
    return np.where(distances < exact, distances, far).astype(np.int32)


class RelativePositions(nn.Module):
    """A number for each head and each bucket of distances, which attention adds to its scores.

    Parameter: ``embedding [num_buckets, num_heads]``.

    Attributes:
        num_heads: number of attention heads.
        num_buckets: number of buckets.
        max_distance: see ``buckets``.
        bidirectional: whether later positions have half of the buckets; otherwise they all have the
            first one, and must not be seen.
        std: standard deviation of the initial numbers.
    """

    num_heads: int
    num_buckets: int
    max_distance: int
    bidirectional: bool
    std: float

    @nn.compact
    def __call__(self, query: Int[Array, " query"], key: Int[Array, " key"]) -> Bias:
        """Returns what is added to the scores of queries and keys at these positions.

        Raises:
            UserError: there are too few buckets, or ``max_distance`` is too small for them.
        """
        one_way = self.num_buckets // 2 if self.bidirectional else self.num_buckets
        if one_way < 2:
            raise UserError(f"T5: num_buckets={self.num_buckets} must be at least 4")
        if self.max_distance <= one_way // 2:
            raise UserError(
                f"T5: max_distance={self.max_distance} must be more than {one_way // 2}, the "
                f"distances that have a bucket of their own with num_buckets={self.num_buckets}"
            )
        ahead = key - query[:, None]
        distance = jnp.abs(ahead) if self.bidirectional else jnp.maximum(-ahead, 0)
        of_distance = jnp.asarray(buckets(one_way, self.max_distance))
        bucket = of_distance[jnp.minimum(distance, self.max_distance)]
        if self.bidirectional:
            bucket = bucket + jnp.where(ahead > 0, one_way, 0)
        numbers = self.param(
            "embedding", nn.initializers.normal(self.std), (self.num_buckets, self.num_heads)
        )
        return constrain(jnp.moveaxis(numbers[bucket], -1, 0)[None], None, "heads", None, None)


class T5Attention(nn.Module):
    """Attention whose scores are not divided by √features; no layer has biases.

    Attributes:
        num_heads: number of heads.
        head_features: width of each head.
        dropout_rate: share of the weights that is set to zero in training.
    """

    num_heads: int
    head_features: int
    dropout_rate: float

    @nn.compact
    def __call__(
        self,
        x: Features,
        context: Features | KeyValueCache | None = None,
        *,
        mask: Mask | None = None,
        bias: Bias | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
        train: bool = False,
    ) -> tuple[Features, KeyValueCache | None]:
        """Attends, and returns the keys and values with which to go on.

        Args:
            x: the vectors that attend.
            context: the vectors that are attended to, or the keys and values that an earlier call
                returned for them; None: ``x`` itself.
            mask: True where a query may see a key; with a cache, its keys are those of full length.
            bias: what is added to the scores; None: nothing.
            causal: a position sees itself and the earlier ones only.
            cache: keys and values of the earlier tokens, which ``x`` follows.
            train: whether to drop out.
        """
        features, width = x.shape[-1], self.num_heads * self.head_features
        # What the scores are not divided by makes the first queries smaller.
        first = {"query": (features * self.head_features) ** -0.5}

        def heads(source: Features, *names: str) -> list[Array]:
            linears = [
                Linear(
                    width,
                    use_bias=False,
                    initialization=first.get(name, features**-0.5),
                    name=name,
                )
                for name in names
            ]
            shape = (*source.shape[:-1], self.num_heads, self.head_features)
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
                cache = cache.extended(key, value)
                # In the type they were computed in: the cache's must not decide the result's.
                key, value = cache.key.astype(key.dtype), cache.value.astype(value.dtype)
        dropout = None
        if train and self.dropout_rate:
            dropout = nn.Dropout(self.dropout_rate, deterministic=False)
        y = dot_product_attention(
            query, key, value, mask=mask, bias=bias, scale=1.0, causal=causal, dropout=dropout
        ).reshape(*x.shape[:-1], width)
        out = Linear(features, use_bias=False, initialization=width**-0.5, name="out")
        return out(y), cache


class T5FeedForward(nn.Module):
    """Two linear layers without biases, and the activation between them.

    Attributes:
        hidden_features: width between the layers.
        activation: name of the activation.
        gated: whether the activation of a third layer is multiplied by the first one's result, as
            in version 1.1 (Shazeer 2020); otherwise it is the activation of the first one.
        dropout_rate: share of the hidden values that is set to zero in training.
    """

    hidden_features: int
    activation: str
    gated: bool
    dropout_rate: float

    @nn.compact
    def __call__(self, x: Features, *, train: bool) -> Features:
        """Applies the layers to each position."""
        features, act = x.shape[-1], activation(self.activation)

        def linear(name: str, outputs: int, inputs: int) -> Linear:
            return Linear(outputs, use_bias=False, initialization=inputs**-0.5, name=name)

        up = linear("up", self.hidden_features, features)
        if self.gated:
            gate = linear("gate", self.hidden_features, features)
            gates, values = apply_each([gate, up], x)
            hidden = act(gates) * values
        else:
            hidden = act(up(x))
        hidden = constrain(hidden, *HIDDEN)
        down = linear("down", features, self.hidden_features)
        return down(nn.Dropout(self.dropout_rate, deterministic=not train)(hidden))


class T5Layer(nn.Module):
    """A layer of the encoder or, with a memory, of the decoder.

    Each part reads the normalised sum so far, and what it makes is added to it.

    Attributes:
        num_heads: see ``T5``.
        head_features: see ``T5``.
        feedforward_features: see ``T5``.
        dropout_rate: see ``T5``.
        epsilon: see ``T5``.
        activation: see ``T5``.
        gated: see ``T5``.
        causal: whether a position sees itself and the earlier ones only.
    """

    num_heads: int
    head_features: int
    feedforward_features: int
    dropout_rate: float
    epsilon: float
    activation: str
    gated: bool
    causal: bool

    @nn.compact
    def __call__(
        self,
        x: Features,
        cache: LayerCache | None,
        bias: Bias,
        mask: Mask | None,
        memory: Features | None,
        memory_mask: Mask | None,
        *,
        train: bool,
    ) -> tuple[Features, LayerCache | None]:
        """Adds the results of the parts; also returns the cache with the tokens of ``x`` added.

        Args:
            x: a vector for each token.
            cache: keys and values of the earlier tokens, and of the memory if they are known; None:
                there are none, and none are kept.
            bias: what is added to the scores of attention over the tokens.
            mask: True where a token may see another one.
            memory: the encoder's output; None: there is none, or it is in the cache.
            memory_mask: True for vectors of the memory that count.
            train: whether to drop out.
        """
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)

        def attention(name: str) -> T5Attention:
            return T5Attention(self.num_heads, self.head_features, self.dropout_rate, name=name)

        def norm(name: str) -> RMSNorm:
            return RMSNorm(epsilon=self.epsilon, name=name)

        before = LayerCache() if cache is None else cache
        y, tokens = attention("self_attention")(
            norm("norm1")(x),
            mask=mask,
            bias=bias,
            causal=self.causal and before.tokens is None,
            cache=before.tokens,
            train=train,
        )
        x = constrain(x + dropout(y), *RESIDUAL)

        known = None
        context = memory if before.memory is None else before.memory
        if context is not None:
            y, known = attention("cross_attention")(
                norm("norm2")(x), context, mask=memory_mask, train=train
            )
            x = constrain(x + dropout(y), *RESIDUAL)

        feedforward = T5FeedForward(
            self.feedforward_features,
            self.activation,
            self.gated,
            self.dropout_rate,
            name="feedforward",
        )
        x = constrain(x + dropout(feedforward(norm("norm3")(x), train=train)), *RESIDUAL)
        return x, None if cache is None else LayerCache(tokens, known)


class T5Stack(nn.Module):
    """The layers of the encoder or of the decoder.

    Attributes:
        num_layers: number of layers.
        num_heads: see ``T5``.
        head_features: see ``T5``.
        feedforward_features: see ``T5``.
        num_buckets: see ``T5``.
        max_distance: see ``T5``.
        dropout_rate: see ``T5``.
        epsilon: see ``T5``.
        activation: see ``T5``.
        gated: see ``T5``.
        causal: whether it is the decoder.
        scan_layers: see ``T5``.
        remat: see ``T5``.
    """

    num_layers: int
    num_heads: int
    head_features: int
    feedforward_features: int
    num_buckets: int
    max_distance: int
    dropout_rate: float
    epsilon: float
    activation: str
    gated: bool
    causal: bool
    scan_layers: bool
    remat: str

    @nn.compact
    def __call__(
        self,
        x: Features,
        mask: TokenMask | None = None,
        memory: Features | None = None,
        memory_mask: TokenMask | None = None,
        caches: tuple[LayerCache, ...] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Features, tuple[LayerCache, ...]]:
        """Returns a vector for each token, and the caches with the tokens added; () without any.

        Args:
            x: the vectors of the tokens, or of those that follow the tokens in ``caches``.
            mask: True for tokens that count; None: all do. With ``caches`` all do.
            memory: the encoder's output; None: there is none, or it is in ``caches``.
            memory_mask: True for vectors of the memory that count; None: all do.
            caches: keys and values, those of the tokens or of the memory or both, for each layer;
                None: there are none, and none are kept.
            train: whether to drop out.
        """
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        x = constrain(dropout(x), *RESIDUAL)
        places = keys = jnp.arange(x.shape[1])
        sees = _of_keys(mask)
        if caches is not None and (tokens := caches[0].tokens) is not None:
            places, keys = tokens.length + places, jnp.arange(tokens.key.shape[1])
            sees = tokens.sees(x.shape[1])
        # The reference keeps these numbers in its first layer; all layers share them.
        bias = RelativePositions(
            self.num_heads,
            self.num_buckets,
            self.max_distance,
            bidirectional=not self.causal,
            std=x.shape[-1] ** -0.5,
            name="relative_positions",
        )(places, keys)

        def call(
            layer: T5Layer, x: Array, cache: LayerCache | None, *same: Any
        ) -> tuple[Array, LayerCache | None]:
            made: tuple[Array, LayerCache | None] = layer(x, cache, *same, train=train)
            return made

        x, after = through_layers(
            self._layer,
            call,
            x,
            caches,
            bias,
            sees,
            memory,
            _of_keys(memory_mask),
            num_layers=self.num_layers,
            name="layer",
            scan_layers=self.scan_layers,
            remat=self.remat,
        )
        x = dropout(RMSNorm(epsilon=self.epsilon, name="norm")(x))
        return x, after or ()

    def _layer(self, name: str, number: int) -> T5Layer:
        return T5Layer(
            self.num_heads,
            self.head_features,
            self.feedforward_features,
            self.dropout_rate,
            self.epsilon,
            self.activation,
            self.gated,
            self.causal,
            name=name,
        )


class T5Encoder(nn.Module):
    """The encoder by itself: a vector for each token, which knows the other tokens.

    With the defaults it is that of T5-small. Verified against Hugging Face's ``T5EncoderModel``.
    Its parameters are a part of those of ``T5``.

    Attributes:
        vocab_size: see ``T5``.
        features: see ``T5``.
        num_layers: number of layers.
        num_heads: see ``T5``.
        head_features: see ``T5``.
        feedforward_features: see ``T5``.
        num_buckets: see ``T5``.
        max_distance: see ``T5``.
        dropout_rate: see ``T5``.
        epsilon: see ``T5``.
        activation: see ``T5``.
        gated: see ``T5``.
        scan_layers: see ``T5``.
        remat: see ``T5``.
    """

    vocab_size: int = 32128
    features: int = 512
    num_layers: int = 6
    num_heads: int = 8
    head_features: int = 64
    feedforward_features: int = 2048
    num_buckets: int = 32
    max_distance: int = 128
    dropout_rate: float = 0.1
    epsilon: float = 1e-6
    activation: str = "relu"
    gated: bool = False
    scan_layers: bool = False
    remat: str = "none"

    def setup(self) -> None:
        """Makes the tokens' vectors and the layers."""
        self.tokens = Embed(self.vocab_size, self.features)
        self.encoder = _stack(self, self.num_layers, causal=False)

    def __call__(
        self, tokens: Tokens, mask: TokenMask | None = None, *, train: bool = False
    ) -> tuple[Features, None]:
        """Returns a vector for each token, and None: there is none for the text.

        The vectors of padding have no meaning.

        Args:
            tokens: the text.
            mask: True for tokens that count; None: all do.
            train: whether to drop out.

        Raises:
            UserError: the tokens are not 2-D integers, or an attribute does not fit.
        """
        _check_tokens("tokens", tokens)
        return self.encoder(self.tokens(tokens), mask, train=train)[0], None


class T5(nn.Module):
    """Encoder and decoder, which share the vectors of tokens.

    With the defaults it is T5-small of version 1.0, with 60 million parameters. Version 1.1, and
    with it FLAN-T5, has ``activation="gelu_tanh"``, ``gated=True``, ``tie_weights=False`` and
    ``scale_logits=False``. Verified against Hugging Face's ``T5ForConditionalGeneration``. The
    published models begin each target with token 0, which is also padding, and end texts with
    token 1.

    Attributes:
        vocab_size: number of tokens.
        features: width of the vectors between layers.
        num_encoder_layers: number of layers of the encoder.
        num_decoder_layers: number of layers of the decoder.
        num_heads: number of attention heads.
        head_features: width of each head; the heads need not have ``features`` together.
        feedforward_features: hidden width of the feed-forward parts.
        num_buckets: number of buckets of relative positions, at least 4.
        max_distance: the distance from which on all have one bucket.
        dropout_rate: share of embeddings, attention weights, hidden values, each part's
            contribution and both stacks' results that is set to zero in training.
        epsilon: added to the mean squares of the normalisations.
        activation: name of the feed-forward parts' activation.
        gated: whether the feed-forward parts have gates; see ``T5FeedForward``.
        tie_weights: whether the output's weights are the tokens' vectors.
        scale_logits: whether the logits are divided by √features.
        scan_layers: whether the layers of each stack are one program that runs in a loop, instead
            of one after another. It takes as long to compile as one layer. The parameters of
            ``layer_0``, ``layer_1`` and so on are then stacked in ``layers``, the layer as the
            first axis.
        remat: what the gradient keeps of the layers; see ``zoo.layers.rematerialization``.
    """

    vocab_size: int = 32128
    features: int = 512
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    num_heads: int = 8
    head_features: int = 64
    feedforward_features: int = 2048
    num_buckets: int = 32
    max_distance: int = 128
    dropout_rate: float = 0.1
    epsilon: float = 1e-6
    activation: str = "relu"
    gated: bool = False
    tie_weights: bool = True
    scale_logits: bool = True
    scan_layers: bool = False
    remat: str = "none"

    def setup(self) -> None:
        """Makes the tokens' vectors, both stacks and the output."""
        self.tokens = Embed(self.vocab_size, self.features)
        self.encoder = _stack(self, self.num_encoder_layers, causal=False)
        self.decoder = _stack(self, self.num_decoder_layers, causal=True)
        if not self.tie_weights:
            self.output = Linear(self.vocab_size, use_bias=False, initialization=1.0)

    def __call__(
        self,
        source: Tokens,
        target: Tokens,
        *,
        source_mask: TokenMask | None = None,
        target_mask: TokenMask | None = None,
        train: bool = False,
    ) -> Float[Array, "batch target_time vocab"]:
        """Returns the logits of each next target token.

        Args:
            source: tokens of the source.
            target: tokens of the target so far, from the begin token on.
            source_mask: True for source tokens that count; None: all do.
            target_mask: True for target tokens that count; None: all do.
            train: whether to drop out.

        Raises:
            UserError: the tokens are not 2-D integers, or an attribute does not fit.
        """
        _check_tokens("source", source)
        _check_tokens("target", target)
        memory, _ = self.encoder(self.tokens(source), source_mask, train=train)
        x, _ = self.decoder(self.tokens(target), target_mask, memory, source_mask, train=train)
        return self._logits(x)

    def begin(self, source: Tokens, source_mask: TokenMask | None, max_length: int) -> DecoderCache:
        """Reads a source; returns the cache for ``step``, with room for ``max_length`` tokens.

        Raises:
            UserError: see ``__call__``.
        """
        _check_tokens("source", source)
        memory, _ = self.encoder(self.tokens(source), source_mask)
        # On its way over any token the decoder computes the memory's keys and values: once, not
        # in each step. Its first token's are not kept.
        nothing = (LayerCache(),) * self.num_decoder_layers
        _, layers = self.decoder(
            self.tokens(source[:, :1]), None, memory, source_mask, caches=nothing
        )
        size = (source.shape[0], max_length, self.num_heads, self.head_features)
        return DecoderCache(
            source_mask,
            tuple(LayerCache(empty_cache(*size, memory.dtype), layer.memory) for layer in layers),
        )

    def step(
        self, target: Tokens, cache: DecoderCache
    ) -> tuple[Float[Array, "batch time vocab"], DecoderCache]:
        """Returns the logits of the next tokens; ``target`` follows the tokens in the cache.

        Raises:
            UserError: the cache is full, or the tokens are not 2-D integers.
        """
        _check_tokens("target", target)
        x, layers = self.decoder(
            self.tokens(target), memory_mask=cache.source_mask, caches=cache.layers
        )
        return self._logits(x), DecoderCache(cache.source_mask, layers)

    def _logits(self, x: Features) -> Float[Array, "batch time vocab"]:
        if self.scale_logits:
            x = x * self.features**-0.5
        logits = self.tokens.logits(x) if self.tie_weights else self.output(x)
        return constrain(logits, "batch", "length", "vocab")


def _stack(model: T5 | T5Encoder, num_layers: int, *, causal: bool) -> T5Stack:
    return T5Stack(
        num_layers,
        model.num_heads,
        model.head_features,
        model.feedforward_features,
        model.num_buckets,
        model.max_distance,
        model.dropout_rate,
        model.epsilon,
        model.activation,
        model.gated,
        causal,
        model.scan_layers,
        model.remat,
    )


def _of_keys(mask: TokenMask | None) -> Mask | None:
    return None if mask is None else mask[:, None, None, :]


def _check_tokens(name: str, tokens: Tokens) -> None:
    if tokens.ndim != 2:
        raise UserError(f"T5: the {name} {tokens.shape} must be [batch, time]")
