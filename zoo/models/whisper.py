"""Whisper: from the features of sound to the tokens of a text (Radford et al. 2022)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.axes import constrain
from zoo.errors import UserError
from zoo.layers import Conv, Embed, LayerNorm, Linear, MultiHeadAttention, activation, sinusoidal
from zoo.layers.attention import empty_cache
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

# Standard deviation of the first weights.
_STD = 0.02

Sound = Float[Array, "batch frames mels"]


class WhisperLayer(nn.Module):
    """A layer of the encoder or, with a memory, of the decoder.

    Each part reads the normalised sum so far, and what it makes is added to it. The keys have no
    biases.

    Attributes:
        num_heads: see ``Whisper``.
        feedforward_features: see ``Whisper``.
        dropout_rate: see ``Whisper``.
        attention_dropout_rate: see ``Whisper``.
        hidden_dropout_rate: see ``Whisper``.
        causal: whether a position sees itself and the earlier ones only.
    """

    num_heads: int
    feedforward_features: int
    dropout_rate: float
    attention_dropout_rate: float
    hidden_dropout_rate: float
    causal: bool

    @nn.compact
    def __call__(
        self,
        x: Features,
        cache: LayerCache | None = None,
        memory: Features | None = None,
        *,
        train: bool = False,
    ) -> tuple[Features, LayerCache | None]:
        """Adds the results of all parts; also returns the cache with the tokens of ``x`` added.

        Args:
            x: a vector for each position.
            cache: keys and values of the earlier tokens, of the memory, or of both; None: there are
                none, and none are kept.
            memory: the encoder's output; None: there is none, or it is in ``cache``.
            train: whether to drop out.
        """
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        before = LayerCache() if cache is None else cache

        def attention(name: str) -> MultiHeadAttention:
            return MultiHeadAttention(
                self.num_heads,
                use_key_bias=False,
                dropout_rate=self.attention_dropout_rate,
                initialization=_STD,
                out_initialization=_STD,
                name=name,
            )

        y, tokens = attention("self_attention")(
            LayerNorm(name="norm1")(x), causal=self.causal, cache=before.tokens, train=train
        )
        x = constrain(x + dropout(y), *RESIDUAL)

        known = None
        context = memory if before.memory is None else before.memory
        if context is not None:
            y, known = attention("cross_attention")(
                LayerNorm(name="norm2")(x), context, train=train
            )
            x = constrain(x + dropout(y), *RESIDUAL)

        y = LayerNorm(name="norm3")(x)
        y = Linear(self.feedforward_features, initialization=_STD, name="up")(y)
        y = constrain(activation("gelu")(y), *HIDDEN)
        y = nn.Dropout(self.hidden_dropout_rate, deterministic=not train)(y)
        y = Linear(x.shape[-1], initialization=_STD, name="down")(y)
        x = constrain(x + dropout(y), *RESIDUAL)
        return x, None if cache is None else LayerCache(tokens, known)


class WhisperEncoder(nn.Module):
    """Turns features of sound into vectors, one for two frames.

    The positions are sines and cosines that are not trained. Published files have them, so they
    are a variable, in the collection ``constants``.

    Attributes:
        length: number of vectors.
        features: width of the vectors.
        num_layers: number of layers.
        num_heads: see ``Whisper``.
        feedforward_features: see ``Whisper``.
        dropout_rate: see ``Whisper``.
        attention_dropout_rate: see ``Whisper``.
        hidden_dropout_rate: see ``Whisper``.
        scan_layers: see ``Whisper``.
        remat: see ``Whisper``.
    """

    length: int
    features: int
    num_layers: int
    num_heads: int
    feedforward_features: int
    dropout_rate: float
    attention_dropout_rate: float
    hidden_dropout_rate: float
    scan_layers: bool
    remat: str

    @nn.compact
    def __call__(self, sound: Sound, *, train: bool = False) -> Features:
        """Returns the vectors."""
        # A convolution along the time is one over an image that is one pixel high.
        x = sound[:, None]
        for number, stride in ((1, 1), (2, 2)):
            conv = Conv(
                self.features,
                kernel_size=(1, 3),
                strides=(1, stride),
                padding=(0, 1),
                initialization=_STD,
                name=f"conv{number}",
            )
            x = activation("gelu")(conv(x))
        x = x[:, 0] + self.variable("constants", "positions", self._positions).value.astype(x.dtype)
        x = constrain(nn.Dropout(self.dropout_rate, deterministic=not train)(x), *RESIDUAL)
        x, _ = _through_layers(self, False, x, None, None, train)
        return LayerNorm(name="norm")(x)

    def _positions(self) -> Float[Array, "length features"]:
        places = jnp.arange(self.length)
        # The wavelengths end with the longest one; first all sines, then all cosines.
        table = sinusoidal(places, self.features, interleaved=False, shift=1.0)
        return jnp.roll(table, self.features // 2, axis=1)


class WhisperDecoder(nn.Module):
    """Predicts the next token from a memory and the tokens so far.

    Attributes:
        vocab_size: see ``Whisper``.
        max_length: see ``Whisper``.
        features: width of the vectors.
        num_layers: number of layers.
        num_heads: see ``Whisper``.
        feedforward_features: see ``Whisper``.
        dropout_rate: see ``Whisper``.
        attention_dropout_rate: see ``Whisper``.
        hidden_dropout_rate: see ``Whisper``.
        scan_layers: see ``Whisper``.
        remat: see ``Whisper``.
    """

    vocab_size: int
    max_length: int
    features: int
    num_layers: int
    num_heads: int
    feedforward_features: int
    dropout_rate: float
    attention_dropout_rate: float
    hidden_dropout_rate: float
    scan_layers: bool
    remat: str

    @nn.compact
    def __call__(
        self,
        tokens: Tokens,
        memory: Features | None = None,
        caches: tuple[LayerCache, ...] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "batch time vocab"], tuple[LayerCache, ...] | None]:
        """Returns logits, and the caches with the tokens added.

        Args:
            tokens: the tokens from the first one on, or those that follow the tokens in ``caches``.
            memory: the encoder's output; None: its keys and values are in ``caches``.
            caches: keys and values, those of the tokens or of the memory or both, for each layer;
                None: there are none, and none are kept.
            train: whether to drop out.
        """
        if tokens.ndim != 2:
            raise UserError(f"Whisper: the tokens {tokens.shape} must be [batch, time]")
        time = tokens.shape[1]
        if time > self.max_length:
            raise UserError(f"Whisper: {time} tokens are more than max_length={self.max_length}")
        places = jnp.arange(time)
        if caches is not None and (before := caches[0].tokens) is not None:
            places = before.positions(time)
        embed = Embed(self.vocab_size, self.features, std=_STD, name="tokens")
        x = embed(tokens) + Embed(self.max_length, self.features, std=_STD, name="positions")(
            places
        )
        x = constrain(nn.Dropout(self.dropout_rate, deterministic=not train)(x), *RESIDUAL)
        x, after = _through_layers(self, True, x, caches, memory, train)
        x = LayerNorm(name="norm")(x)
        return constrain(embed.logits(x), "batch", "length", "vocab"), after


class Whisper(nn.Module):
    """Encoder and decoder.

    With the defaults it is the smallest published model, with 38 million parameters. Verified
    against Hugging Face's ``WhisperForConditionalGeneration``. The features are those of
    ``zoo.layers.audio.whisper_features``. A target begins with tokens that say what to do; see
    ``zoo.transcribing``.

    Attributes:
        vocab_size: number of tokens.
        num_mels: number of features in a frame.
        features: width of the vectors between layers; even.
        num_encoder_layers: number of layers of the encoder.
        num_decoder_layers: number of layers of the decoder.
        num_heads: number of attention heads; divides ``features``.
        feedforward_features: hidden width of the feed-forward parts.
        source_length: number of the encoder's vectors; a sound has twice as many frames.
        max_length: largest number of tokens of a target.
        dropout_rate: share of the embeddings and of each part's contribution that is set to zero in
            training.
        attention_dropout_rate: share of the attention weights that is set to zero in training.
        hidden_dropout_rate: share of the hidden values of the feed-forward parts that is set to
            zero in training.
        scan_layers: whether the layers of each stack are one program that runs in a loop, instead
            of one after another. It takes as long to compile as one layer. The parameters of
            ``layer_0``, ``layer_1`` and so on are then stacked in ``layers``, the layer as the
            first axis.
        remat: what the gradient keeps of the layers; see ``zoo.layers.rematerialization``.
    """

    vocab_size: int = 51865
    num_mels: int = 80
    features: int = 384
    num_encoder_layers: int = 4
    num_decoder_layers: int = 4
    num_heads: int = 6
    feedforward_features: int = 1536
    source_length: int = 1500
    max_length: int = 448
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    hidden_dropout_rate: float = 0.0
    scan_layers: bool = False
    remat: str = "none"

    def setup(self) -> None:
        """Makes both stacks."""
        if self.features < 4 or self.features % 2:
            raise UserError(f"Whisper: features={self.features} must be even and at least 4")
        common: dict[str, Any] = {
            "features": self.features,
            "num_heads": self.num_heads,
            "feedforward_features": self.feedforward_features,
            "dropout_rate": self.dropout_rate,
            "attention_dropout_rate": self.attention_dropout_rate,
            "hidden_dropout_rate": self.hidden_dropout_rate,
            "scan_layers": self.scan_layers,
            "remat": self.remat,
        }
        self.encoder = WhisperEncoder(
            length=self.source_length, num_layers=self.num_encoder_layers, **common
        )
        self.decoder = WhisperDecoder(
            vocab_size=self.vocab_size,
            max_length=self.max_length,
            num_layers=self.num_decoder_layers,
            **common,
        )

    def __call__(
        self, source: Sound, target: Tokens, *, train: bool = False
    ) -> Float[Array, "batch target_time vocab"]:
        """Returns the logits of each next token.

        Args:
            source: the features of the sound.
            target: the tokens of the text so far.
            train: whether to drop out.

        Raises:
            UserError: the features are not 3-D, or not as many as the attributes say; the tokens
                are not 2-D integers or too many; or an attribute does not fit.
        """
        self._check(source)
        return self.decoder(target, self.encoder(source, train=train), train=train)[0]

    def begin(
        self,
        source: Sound,
        source_mask: TokenMask | None = None,
        max_length: int | None = None,
    ) -> DecoderCache:
        """Reads a sound; returns the cache for ``step``.

        Args:
            source: the features of the sound.
            source_mask: None. A sound that is too short is filled up with silence, which the model
                hears.
            max_length: number of tokens that the cache has room for; None: the most that there may
                be.

        Raises:
            UserError: see ``__call__``; or there is a mask, or ``max_length`` is more than that of
                the model.
        """
        self._check(source)
        if source_mask is not None:
            raise UserError("Whisper: source_mask must be None: it hears all of a sound")
        length = self.max_length if max_length is None else max_length
        if length > self.max_length:
            raise UserError(f"Whisper: {length} tokens are more than max_length={self.max_length}")
        memory = self.encoder(source)
        # On its way over any token the decoder computes the memory's keys and values: once, not
        # in each step. Its first token's are not kept.
        nothing = (LayerCache(),) * self.num_decoder_layers
        any_token = jnp.zeros((len(source), 1), jnp.int32)
        _, layers = self.decoder(any_token, memory, nothing)
        assert layers is not None  # there were caches
        size = (len(source), length, self.num_heads, self.features // self.num_heads)
        return DecoderCache(
            None,
            tuple(LayerCache(empty_cache(*size, memory.dtype), layer.memory) for layer in layers),
        )

    def step(
        self, target: Tokens, cache: DecoderCache
    ) -> tuple[Float[Array, "batch time vocab"], DecoderCache]:
        """Returns the logits of the next tokens; ``target`` follows the tokens in the cache.

        Raises:
            UserError: the cache is full, or the tokens are not 2-D integers.
        """
        logits, layers = self.decoder(target, None, cache.layers)
        assert layers is not None  # there were caches
        return logits, DecoderCache(None, layers)

    def _check(self, source: Sound) -> None:
        wanted = (2 * self.source_length, self.num_mels)
        if source.ndim != 3 or source.shape[1:] != wanted:
            raise UserError(
                f"Whisper: the features {source.shape} must be [batch, frames, mels], with "
                f"{wanted[0]} frames (2 * source_length) and num_mels={wanted[1]}"
            )
        if not jnp.issubdtype(source.dtype, jnp.floating):
            raise UserError(
                f"Whisper: the features are {source.dtype}, they must be floating-point numbers"
            )


def _through_layers(
    stack: WhisperEncoder | WhisperDecoder,
    causal: bool,
    x: Features,
    caches: tuple[LayerCache, ...] | None,
    memory: Features | None,
    train: bool,
) -> tuple[Features, tuple[LayerCache, ...] | None]:
    """Returns what the layers of a stack make of ``x``, and the caches with the tokens added."""

    def call(
        layer: WhisperLayer, x: Array, cache: LayerCache | None, memory: Array | None
    ) -> tuple[Array, LayerCache | None]:
        made: tuple[Array, LayerCache | None] = layer(x, cache, memory, train=train)
        return made

    def layer(name: str, number: int) -> WhisperLayer:
        return WhisperLayer(
            stack.num_heads,
            stack.feedforward_features,
            stack.dropout_rate,
            stack.attention_dropout_rate,
            stack.hidden_dropout_rate,
            causal,
            name=name,
        )

    return through_layers(
        layer,
        call,
        x,
        caches,
        memory,
        num_layers=stack.num_layers,
        name="layer",
        scan_layers=stack.scan_layers,
        remat=stack.remat,
    )
