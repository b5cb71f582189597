"""The transformer of "Attention Is All You Need" (Vaswani et al. 2017)."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.axes import constrain
from zoo.layers import LayerNorm, Linear
from zoo.layers.attention import empty_cache
from zoo.layers.rematerialization import rematerialized
from zoo.models.transformer_blocks import (
    Features,
    Layer,
    LayerCache,
    TokenEmbedding,
    TokenMask,
    Tokens,
)


class DecoderCache(NamedTuple):
    """What decoding needs to know about the source and the tokens so far.

    Attributes:
        source_mask: True for source tokens that count; None: all do.
        layers: keys and values of each layer.
    """

    source_mask: TokenMask | None
    layers: tuple[LayerCache, ...]


class TransformerEncoder(nn.Module):
    """Turns tokens into vectors, each of which knows the other tokens.

    Attributes:
        vocab_size: number of tokens.
        features: width of the vectors.
        num_heads: number of attention heads; divides ``features``.
        num_layers: number of layers.
        feedforward_features: hidden width of the feed-forward parts.
        dropout_rate: see ``Transformer``.
        activation: see ``Transformer``.
        norm_first: see ``Transformer``.
        positions: see ``Transformer``.
        max_length: see ``Transformer``.
        remat: see ``Transformer``.
    """

    vocab_size: int
    features: int = 512
    num_heads: int = 8
    num_layers: int = 6
    feedforward_features: int = 2048
    dropout_rate: float = 0.1
    activation: str = "relu"
    norm_first: bool = False
    positions: str = "sinusoidal"
    max_length: int = 512
    remat: str = "none"

    @nn.compact
    def __call__(
        self, tokens: Tokens, mask: TokenMask | None = None, *, train: bool = False
    ) -> Features:
        """Returns a vector for each token; the vectors of padding have no meaning."""
        x = TokenEmbedding(
            self.vocab_size,
            self.features,
            self.positions,
            self.max_length,
            self.dropout_rate,
            name="embed",
        )(tokens, train=train)
        call = rematerialized(lambda layer, *of: layer(*of, train=train)[0], self.remat)
        for number in range(self.num_layers):
            layer = Layer(
                self.num_heads,
                self.feedforward_features,
                self.dropout_rate,
                self.activation,
                self.norm_first,
                causal=False,
                name=f"layer_{number}",
            )
            x = call(layer, x, mask)
        return LayerNorm(name="norm")(x)


class TransformerDecoder(nn.Module):
    """Predicts the next token from a memory and the tokens so far.

    Attributes:
        vocab_size: number of tokens.
        features: width of the vectors.
        num_heads: number of attention heads; divides ``features``.
        num_layers: number of layers.
        feedforward_features: hidden width of the feed-forward parts.
        dropout_rate: see ``Transformer``.
        activation: see ``Transformer``.
        norm_first: see ``Transformer``.
        positions: see ``Transformer``.
        max_length: see ``Transformer``.
        tie_weights: whether the output's weights are the tokens' vectors.
        remat: see ``Transformer``.
    """

    vocab_size: int
    features: int = 512
    num_heads: int = 8
    num_layers: int = 6
    feedforward_features: int = 2048
    dropout_rate: float = 0.1
    activation: str = "relu"
    norm_first: bool = False
    positions: str = "sinusoidal"
    max_length: int = 512
    tie_weights: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        tokens: Tokens,
        memory: Features | None,
        mask: TokenMask | None = None,
        memory_mask: TokenMask | None = None,
        caches: tuple[LayerCache, ...] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "batch time vocab"], tuple[LayerCache, ...]]:
        """Returns logits, and the caches with the tokens added.

        Args:
            tokens: the tokens from the begin token on, or those that follow the tokens in
                ``caches``.
            memory: the encoder's output; None: its keys and values are in ``caches``.
            mask: True for tokens that count; None: all do.
            memory_mask: True for vectors of the memory that count; None: all do.
            caches: keys and values of the earlier tokens; None: there are none, and none are kept.
            train: whether to drop out.
        """
        embed = TokenEmbedding(
            self.vocab_size,
            self.features,
            self.positions,
            self.max_length,
            self.dropout_rate,
            name="embed",
        )
        before = caches or (LayerCache(),) * self.num_layers
        begin = 0 if before[0].tokens is None else before[0].tokens.length
        x = embed(tokens, begin, train=train)
        after = []
        call = rematerialized(lambda layer, *of: layer(*of, train=train), self.remat)
        for number in range(self.num_layers):
            layer = Layer(
                self.num_heads,
                self.feedforward_features,
                self.dropout_rate,
                self.activation,
                self.norm_first,
                causal=True,
                name=f"layer_{number}",
            )
            x, cache = call(layer, x, mask, memory, memory_mask, before[number])
            after.append(cache)
        x = LayerNorm(name="norm")(x)
        if self.tie_weights:
            logits = embed.logits(x)
        else:
            logits = Linear(self.vocab_size, initialization="xavier_uniform", name="output")(x)
        return constrain(logits, "batch", "length", "vocab"), tuple(after)


class Transformer(nn.Module):
    """Encoder and decoder.

    With the defaults it has the sizes of the paper's base model. Between the embeddings and the
    output it is ``torch.nn.Transformer``, against which it is verified. Unlike the paper, that
    normalises the outputs of both stacks once more.

    Attributes:
        source_vocab_size: number of tokens of the source.
        target_vocab_size: number of tokens of the target.
        features: width of the vectors between layers.
        num_heads: number of attention heads; divides ``features``.
        num_encoder_layers: number of layers of the encoder.
        num_decoder_layers: number of layers of the decoder.
        feedforward_features: hidden width of the feed-forward parts.
        dropout_rate: share of embeddings, attention weights, hidden values and of each part's
            contribution that is set to zero in training.
        activation: name of the feed-forward parts' activation.
        norm_first: whether the input of each part is normalised (Xiong et al. 2020), instead of the
            sum after it.
        positions: ``sinusoidal`` or ``learned``.
        max_length: largest number of tokens, where positions are learned.
        tie_weights: whether the output's weights are the target tokens' vectors.
        remat: what the gradient keeps of the layers; see ``zoo.layers.rematerialization``.
    """

    source_vocab_size: int = 32000
    target_vocab_size: int = 32000
    features: int = 512
    num_heads: int = 8
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    feedforward_features: int = 2048
    dropout_rate: float = 0.1
    activation: str = "relu"
    norm_first: bool = False
    positions: str = "sinusoidal"
    max_length: int = 512
    tie_weights: bool = False
    remat: str = "none"

    def setup(self) -> None:
        """Makes both stacks."""
        common: dict[str, Any] = {
            "features": self.features,
            "num_heads": self.num_heads,
            "feedforward_features": self.feedforward_features,
            "dropout_rate": self.dropout_rate,
            "activation": self.activation,
            "norm_first": self.norm_first,
            "positions": self.positions,
            "max_length": self.max_length,
            "remat": self.remat,
        }
        self.encoder = TransformerEncoder(
            self.source_vocab_size, num_layers=self.num_encoder_layers, **common
        )
        self.decoder = TransformerDecoder(
            self.target_vocab_size,
            num_layers=self.num_decoder_layers,
            tie_weights=self.tie_weights,
            **common,
        )

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
            UserError: tokens are not integers or too many, or an attribute does not fit.
        """
        memory = self.encoder(source, source_mask, train=train)
        logits, _ = self.decoder(target, memory, target_mask, source_mask, train=train)
        return logits

    def begin(self, source: Tokens, source_mask: TokenMask | None, max_length: int) -> DecoderCache:
        """Reads a source; returns the cache for ``step``, with room for ``max_length`` tokens."""
        memory = self.encoder(source, source_mask)
        # On its way over any token the decoder computes the memory's keys and values: once, not
        # in each step. The rest of that way is not compiled, since nothing comes of it.
        _, layers = self.decoder(jnp.zeros_like(source[:, :1]), memory, memory_mask=source_mask)
        size = (source.shape[0], max_length, self.num_heads, self.features // self.num_heads)
        return DecoderCache(
            source_mask,
            tuple(LayerCache(empty_cache(*size, memory.dtype), layer.memory) for layer in layers),
        )

    def step(
        self, target: Tokens, cache: DecoderCache
    ) -> tuple[Float[Array, "batch time vocab"], DecoderCache]:
        """Returns the logits of the next tokens; ``target`` follows the tokens in the cache."""
        logits, layers = self.decoder(
            target, None, memory_mask=cache.source_mask, caches=cache.layers
        )
        return logits, DecoderCache(cache.source_mask, layers)
