"""The transformer of "Attention Is All You Need" (Vaswani et al. 2017)."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zoo.errors import UserError
from zoo.layers import Embed, LayerNorm, Linear, MultiHeadAttention, activation, sinusoidal
from zoo.layers.attention import KeyValueCache, empty_cache

Tokens = Int[Array, "batch time"]
Features = Float[Array, "batch time features"]
# True for a token that counts, False for padding.
TokenMask = Bool[Array, "batch time"]


class LayerCache(NamedTuple):
    """Keys and values of one layer.

    Attributes:
        tokens: of the tokens so far; None: they are not kept.
        memory: of the encoder's output; None: the layer has not read it.
    """

    tokens: KeyValueCache | None = None
    memory: KeyValueCache | None = None


class DecoderCache(NamedTuple):
    """What decoding needs of the source and of the tokens so far.

    Attributes:
        source_mask: True for source tokens that count; None: all do.
        layers: keys and values of each layer.
    """

    source_mask: TokenMask | None
    layers: tuple[LayerCache, ...]


class FeedForward(nn.Module):
    """Two linear layers with an activation between them (section 3.3).

    Attributes:
        hidden_features: width between the layers.
        activation: its name.
        dropout_rate: share of the hidden values that is set to zero in training.
    """

    hidden_features: int
    activation: str
    dropout_rate: float

    @nn.compact
    def __call__(self, x: Features, *, train: bool) -> Features:
        """Applies the layers to each position."""
        up = Linear(self.hidden_features, initialization="xavier_uniform", name="up")
        down = Linear(x.shape[-1], initialization="xavier_uniform", name="down")
        hidden = activation(self.activation)(up(x))
        return down(nn.Dropout(self.dropout_rate, deterministic=not train)(hidden))


class Layer(nn.Module):
    """A layer of the encoder or, given a memory, of the decoder (figure 1).

    Attributes:
        num_heads: number of attention heads.
        feedforward_features: hidden width of the feed-forward part.
        dropout_rate: of attention weights, hidden values, and each part's contribution.
        activation: name of the feed-forward part's activation.
        norm_first: normalise what a part reads, instead of the sum that it adds to.
        causal: whether a position sees the earlier ones and itself only.
    """

    num_heads: int
    feedforward_features: int
    dropout_rate: float
    activation: str
    norm_first: bool
    causal: bool

    @nn.compact
    def __call__(
        self,
        x: Features,
        mask: TokenMask | None,
        memory: Features | None = None,
        memory_mask: TokenMask | None = None,
        cache: LayerCache | None = None,
        *,
        train: bool = False,
    ) -> tuple[Features, LayerCache]:
        """Adds what attention and the feed-forward part find."""
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)

        def attention(name: str) -> MultiHeadAttention:
            return MultiHeadAttention(self.num_heads, dropout_rate=self.dropout_rate, name=name)

        def read(norm: LayerNorm, x: Features) -> Features:
            return norm(x) if self.norm_first else x

        def add(norm: LayerNorm, x: Features, y: Features) -> Features:
            return x + dropout(y) if self.norm_first else norm(x + dropout(y))

        before = LayerCache() if cache is None else cache
        norm = LayerNorm(name="norm1")
        y, tokens = attention("self_attention")(
            read(norm, x), mask=_of_keys(mask), causal=self.causal, cache=before.tokens, train=train
        )
        x = add(norm, x, y)

        context = memory if before.memory is None else before.memory
        known = None
        if context is not None:
            norm = LayerNorm(name="norm2")
            y, known = attention("cross_attention")(
                read(norm, x), context, mask=_of_keys(memory_mask), train=train
            )
            x = add(norm, x, y)

        norm = LayerNorm(name="norm3")
        feedforward = FeedForward(
            self.feedforward_features, self.activation, self.dropout_rate, name="feedforward"
        )
        return add(norm, x, feedforward(read(norm, x), train=train)), LayerCache(tokens, known)


class TokenEmbedding(nn.Module):
    """Vectors of tokens, times √features, plus vectors of their positions (3.4 and 3.5).

    Attributes:
        vocab_size: number of tokens.
        features: width of the vectors.
        positions: ``sinusoidal`` or ``learned``.
        max_length: most positions, where they are learned.
        dropout_rate: share of the sums that is set to zero in training.
    """

    vocab_size: int
    features: int
    positions: str
    max_length: int
    dropout_rate: float

    def setup(self) -> None:
        """Makes the tables."""
        if self.positions not in ("sinusoidal", "learned"):
            raise UserError(f"positions={self.positions!r} must be 'sinusoidal' or 'learned'")
        # Times √features that is 1, as are the positions'; and tied output weights give logits of
        # about 1.
        std = self.features**-0.5
        self.tokens = Embed(self.vocab_size, self.features, std=std)
        if self.positions == "learned":
            self.learned = Embed(self.max_length, self.features, std=std)
        self.dropout = nn.Dropout(self.dropout_rate)

    def __call__(
        self, tokens: Tokens, begin: int | Int[Array, ""] = 0, *, train: bool = False
    ) -> Features:
        """Returns the vectors of tokens, the first of which stands at position ``begin``."""
        time = tokens.shape[1]
        x = self.tokens(tokens) * math.sqrt(self.features)
        if self.positions == "learned":
            if time > self.max_length:
                raise UserError(f"{time} tokens are more than max_length={self.max_length}")
            x = x + self.learned(begin + jnp.arange(time))
        else:
            # In the type of the vectors: a constant must not decide it.
            exact = jnp.promote_types(x.dtype, jnp.float32)
            table = sinusoidal((begin + jnp.arange(time)).astype(exact), self.features)
            x = x + table.astype(x.dtype)
        return self.dropout(x, deterministic=not train)

    def logits(self, x: Features) -> Float[Array, "batch time vocab"]:
        """Returns the logits of tokens, the output's weights tied to the tokens' vectors."""
        return self.tokens.logits(x)


class TransformerEncoder(nn.Module):
    """From tokens to a vector for each that knows the others.

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

    @nn.compact
    def __call__(
        self, tokens: Tokens, mask: TokenMask | None = None, *, train: bool = False
    ) -> Features:
        """Returns a vector for each token; what is returned for padding means nothing."""
        x = TokenEmbedding(
            self.vocab_size,
            self.features,
            self.positions,
            self.max_length,
            self.dropout_rate,
            name="embed",
        )(tokens, train=train)
        for number in range(self.num_layers):
            x, _ = Layer(
                self.num_heads,
                self.feedforward_features,
                self.dropout_rate,
                self.activation,
                self.norm_first,
                causal=False,
                name=f"layer_{number}",
            )(x, mask, train=train)
        return LayerNorm(name="norm")(x)


class TransformerDecoder(nn.Module):
    """From a memory and the tokens so far to the logits of the next.

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
            tokens: from the begin token on, or those that follow what is in ``caches``.
            memory: the encoder's output; None: what is in ``caches``.
            mask: True for tokens that count; None: all do.
            memory_mask: likewise for the memory.
            caches: of the tokens before; None: there are none, and none are kept.
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
        for number in range(self.num_layers):
            x, cache = Layer(
                self.num_heads,
                self.feedforward_features,
                self.dropout_rate,
                self.activation,
                self.norm_first,
                causal=True,
                name=f"layer_{number}",
            )(x, mask, memory, memory_mask, before[number], train=train)
            after.append(cache)
        x = LayerNorm(name="norm")(x)
        if self.tie_weights:
            logits = embed.logits(x)
        else:
            logits = Linear(self.vocab_size, initialization="xavier_uniform", name="output")(x)
        return logits, tuple(after)


class Transformer(nn.Module):
    """Encoder and decoder.

    With the defaults it has the sizes of the paper's base model. Between the embeddings and the
    output it is ``torch.nn.Transformer``, against which it is verified, and which normalises the
    outputs of both stacks once more than the paper.

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
        norm_first: normalise what a part reads (Xiong et al. 2020), instead of each sum.
        positions: ``sinusoidal`` or ``learned``.
        max_length: most tokens, where positions are learned.
        tie_weights: whether the output's weights are the target tokens' vectors.
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
            source: what is read.
            target: what has been written, from the begin token on.
            source_mask: True for source tokens that count; None: all do.
            target_mask: True for target tokens that count; None: all do.
            train: whether to drop out.

        Raises:
            UserError: tokens are no integers or too many, or an attribute does not fit.
        """
        memory = self.encoder(source, source_mask, train=train)
        logits, _ = self.decoder(target, memory, target_mask, source_mask, train=train)
        return logits

    def begin(self, source: Tokens, source_mask: TokenMask | None, max_length: int) -> DecoderCache:
        """Reads a source; returns what ``step`` goes on with, with room for ``max_length``."""
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
        """Returns the logits of the tokens after ``target``, which follows what is in the cache."""
        logits, layers = self.decoder(
            target, None, memory_mask=cache.source_mask, caches=cache.layers
        )
        return logits, DecoderCache(cache.source_mask, layers)


def _of_keys(mask: TokenMask | None) -> Bool[Array, "batch 1 1 keys"] | None:
    return None if mask is None else mask[:, None, None, :]
