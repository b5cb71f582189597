"""Llama (Touvron et al. 2023) and the models with its block: Mistral, Qwen2 and Qwen3."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.axes import constrain
from zoo.errors import UserError
from zoo.layers import (
    Embed,
    Linear,
    RMSNorm,
    activation,
    apply_each,
    dot_product_attention,
    rotary,
)
from zoo.layers.attention import Cache as LayerCache
from zoo.layers.attention import empty_cache, empty_rolling_cache
from zoo.models.transformer_blocks import HIDDEN, RESIDUAL, Features, through_layers

# One for each layer.
Cache = tuple[LayerCache, ...]

# The standard deviation of all initial weights, as in the reference.
_STD = 0.02


class Attention(nn.Module):
    """Causal attention with rotary positions, whose keys are shared by groups of queries.

    Grouped queries are those of Ainslie et al. 2023, section 2.2.

    Attributes:
        num_heads: number of heads of the queries.
        num_key_value_heads: number of heads of the keys and values; divides ``num_heads``.
        head_features: width of a head.
        use_bias: whether query, key and value have biases.
        use_out_bias: whether the last layer has one.
        use_query_key_norm: whether each head's query and key are normalised before they turn.
        window: how many tokens a token sees, itself among them; 0: all before it.
        dropout_rate: share of the weights that is set to zero in training.
        epsilon: of the normalisations.
    """

    num_heads: int
    num_key_value_heads: int
    head_features: int
    use_bias: bool
    use_out_bias: bool
    use_query_key_norm: bool
    window: int
    dropout_rate: float
    epsilon: float

    @nn.compact
    def __call__(
        self, x: Features, table: rotary.Table, cache: LayerCache | None, *, train: bool
    ) -> tuple[Features, LayerCache | None]:
        """Attends; also returns the cache with the keys and values of ``x`` added."""
        queries, groups = self.num_heads, self.num_key_value_heads
        counts = {"query": queries, "key": groups, "value": groups}
        linears = [
            Linear(
                count * self.head_features,
                use_bias=self.use_bias,
                initialization=_STD,
                name=name,
            )
            for name, count in counts.items()
        ]
        # Each device has the whole length for some of the heads.
        query, key, value = (
            constrain(
                y.reshape(*x.shape[:-1], count, self.head_features), "batch", None, "heads", None
            )
            for y, count in zip(apply_each(linears, x), counts.values(), strict=True)
        )
        if self.use_query_key_norm:
            query = RMSNorm(self.epsilon, name="query_norm")(query)
            key = RMSNorm(self.epsilon, name="key_norm")(key)
        query, key = rotary.rotate(query, table), rotary.rotate(key, table)
        dropout = None
        if train and self.dropout_rate:
            dropout = nn.Dropout(self.dropout_rate, deterministic=False)
        if cache is None:
            y = dot_product_attention(
                query, key, value, causal=True, window=self.window, dropout=dropout
            )
        else:
            keys, values, sees, cache = cache.attended(key, value)
            y = dot_product_attention(query, keys, values, mask=sees, dropout=dropout)
        y = y.reshape(*x.shape[:-1], queries * self.head_features)
        out = Linear(x.shape[-1], use_bias=self.use_out_bias, initialization=_STD, name="out")
        return out(y), cache


class Block(nn.Module):
    """Attention, then a gated layer, each of which reads the normalised sum so far.

    The gated layer is SwiGLU (Shazeer 2020, equation 6) if the activation is ``silu``. The
    attributes are those of ``Llama`` and ``Attention``.
    """

    num_heads: int
    num_key_value_heads: int
    head_features: int
    feedforward_features: int
    activation: str
    epsilon: float
    use_bias: bool
    use_out_bias: bool
    use_feedforward_bias: bool
    use_query_key_norm: bool
    window: int
    attention_dropout_rate: float

    @nn.compact
    def __call__(
        self, x: Features, table: rotary.Table, cache: LayerCache | None, *, train: bool
    ) -> tuple[Features, LayerCache | None]:
        """Adds the results of both parts; also returns the cache with the tokens of ``x`` added."""
        y = RMSNorm(self.epsilon, name="attention_norm")(x)
        y, cache = Attention(
            self.num_heads,
            self.num_key_value_heads,
            self.head_features,
            use_bias=self.use_bias,
            use_out_bias=self.use_out_bias,
            use_query_key_norm=self.use_query_key_norm,
            window=self.window,
            dropout_rate=self.attention_dropout_rate,
            epsilon=self.epsilon,
            name="attention",
        )(y, table, cache, train=train)
        x = constrain(x + y, *RESIDUAL)

        def linear(features: int, name: str) -> Linear:
            return Linear(
                features, use_bias=self.use_feedforward_bias, initialization=_STD, name=name
            )

        y = RMSNorm(self.epsilon, name="feedforward_norm")(x)
        hidden = self.feedforward_features
        gate, up = apply_each([linear(hidden, "gate"), linear(hidden, "up")], y)
        y = constrain(activation(self.activation)(gate) * up, *HIDDEN)
        return constrain(x + linear(x.shape[-1], "down")(y), *RESIDUAL), cache


class Llama(nn.Module):
    """Token vectors, blocks, and the logits of the next token.

    With the defaults it is Llama 3.2 with 1.2 billion parameters. Verified against transformers'
    ``LlamaForCausalLM``, ``MistralForCausalLM``, ``Qwen2ForCausalLM`` and ``Qwen3ForCausalLM``.

    Attributes:
        vocab_size: number of tokens.
        context: largest number of tokens.
        num_layers: number of blocks.
        num_heads: number of attention heads of the queries.
        num_key_value_heads: number of those of keys and values; divides ``num_heads``.
        features: width of the residual stream.
        head_features: width of a head, even; 0: ``features`` divided by ``num_heads``.
        feedforward_features: width of the gated layers.
        activation: name of their gates' activation.
        epsilon: added to the mean squares of the normalisations.
        use_bias: whether query, key and value have biases; Qwen2 has them.
        use_out_bias: whether the last layer of attention has them.
        use_feedforward_bias: whether the gated layers have them.
        use_query_key_norm: whether the query and key of each head are normalised; Qwen3 does it.
        windows: how many tokens a token of each layer sees, itself among them; 0: all before it.
            Further layers take the numbers in turn, from the first on.
        tie_embeddings: whether the output shares the weights of the token vectors.
        rope_base: the ratio of the slowest to the fastest wavelength of the rotary positions.
        rope_scaling: how they are stretched; with what follows see ``zoo.layers.rotary.Scaling``.
        rope_factor: how many times longer the texts become.
        rope_original_context: the longest text before.
        rope_rotations: between which numbers of rotations rates are mixed.
        rope_attention_factor: what sines and cosines are multiplied by; 0: the usual.
        rope_truncate: whether ``yarn`` mixes from a whole pair of features to another.
        attention_dropout_rate: share of the attention weights that is set to zero in training.
        scan_layers: see ``zoo.models.GPT``; all layers must have the same window.
        remat: what the gradient keeps of the blocks; see ``zoo.layers.rematerialization``.
    """

    vocab_size: int = 128_256
    context: int = 131_072
    num_layers: int = 16
    num_heads: int = 32
    num_key_value_heads: int = 8
    features: int = 2048
    head_features: int = 0
    feedforward_features: int = 8192
    activation: str = "silu"
    epsilon: float = 1e-5
    use_bias: bool = False
    use_out_bias: bool = False
    use_feedforward_bias: bool = False
    use_query_key_norm: bool = False
    windows: tuple[int, ...] = (0,)
    tie_embeddings: bool = True
    rope_base: float = 500_000.0
    rope_scaling: str = "llama3"
    rope_factor: float = 32.0
    rope_original_context: int = 8192
    rope_rotations: tuple[float, float] = (1.0, 4.0)
    rope_attention_factor: float = 0.0
    rope_truncate: bool = True
    attention_dropout_rate: float = 0.0
    scan_layers: bool = False
    remat: str = "none"

    recurrent: ClassVar[bool] = False

    def setup(self) -> None:
        """Makes the table of vectors and, if it is not tied to it, the output."""
        self.tokens = Embed(self.vocab_size, self.features, std=_STD)
        if not self.tie_embeddings:
            self.head = Linear(self.vocab_size, use_bias=False, initialization=_STD)

    def __call__(
        self, tokens: Int[Array, "batch time"], cache: Cache | None = None, *, train: bool = False
    ) -> tuple[Float[Array, "batch time vocab"], Cache | None]:
        """Returns the logits of each next token, and the cache with ``tokens`` added.

        Args:
            tokens: the text, or what follows the tokens in ``cache``.
            cache: keys and values of the earlier tokens; None: there are none, and none are kept.
            train: whether to drop out.

        Raises:
            UserError: the tokens are not 2-D, or are more than the context; or attributes do not
                fit together.
        """
        x, cache = self.vectors(tokens, cache, train=train)
        return self.logits(x), cache

    def logits(self, x: Float[Array, "batch time features"]) -> Float[Array, "batch time vocab"]:
        """Returns the logits of the next tokens from the vectors that ``vectors`` returns."""
        logits = self.tokens.logits(x) if self.tie_embeddings else self.head(x)
        return constrain(logits, "batch", "length", "vocab")

    @nn.compact
    def vectors(
        self, tokens: Int[Array, "batch time"], cache: Cache | None = None, *, train: bool = False
    ) -> tuple[Float[Array, "batch time features"], Cache | None]:
        """Returns what ``__call__`` does, with the vectors that ``logits`` takes for the logits."""
        if tokens.ndim != 2:
            raise UserError(f"Llama: the tokens {tokens.shape} must be [batch, time]")
        time = tokens.shape[1]
        if time > self.context:
            raise UserError(f"Llama: {time} tokens are more than context={self.context}")
        table = self._turns(time, None if cache is None else cache[0])
        x = constrain(self.tokens(tokens), *RESIDUAL)

        def call(
            block: Block, x: Array, cache: LayerCache | None, table: rotary.Table
        ) -> tuple[Array, LayerCache | None]:
            made: tuple[Array, LayerCache | None] = block(x, table, cache, train=train)
            return made

        if self.scan_layers and len(set(self.windows)) > 1:
            raise UserError(
                f"scan_layers=True needs layers that are alike, and windows={self.windows} differ: "
                "take scan_layers=False"
            )
        x, caches = through_layers(
            self._block,
            call,
            x,
            cache,
            table,
            num_layers=self.num_layers,
            name="block",
            scan_layers=self.scan_layers,
            remat=self.remat,
        )
        x = RMSNorm(self.epsilon, name="norm")(x)
        return x, caches

    def _turns(self, time: int, cache: LayerCache | None) -> rotary.Table:
        """Returns the rotary table of the next tokens, which all layers share."""
        scaling = rotary.Scaling(
            self.rope_scaling,
            self.rope_factor,
            self.rope_original_context,
            self.rope_rotations,
            self.rope_attention_factor,
            self.rope_truncate,
        )
        positions = jnp.arange(time)[None] if cache is None else cache.positions(time)
        length = time if cache is None else positions.max() + 1
        rates = rotary.rotary_rates(self._head_features(), self.rope_base, scaling, length)
        return rotary.rotary_table(positions, rates, rotary.attention_factor(scaling))

    def _head_features(self) -> int:
        if not self.head_features and self.features % self.num_heads:
            raise UserError(
                f"num_heads={self.num_heads} must divide features={self.features}, or "
                "head_features must be given"
            )
        return self.head_features or self.features // self.num_heads

    def _window(self, layer: int) -> int:
        return self.windows[layer % len(self.windows)]

    def _block(self, name: str, layer: int) -> Block:
        if self.num_heads % self.num_key_value_heads:
            raise UserError(
                f"num_key_value_heads={self.num_key_value_heads} must divide "
                f"num_heads={self.num_heads}"
            )
        return Block(
            self.num_heads,
            self.num_key_value_heads,
            self._head_features(),
            self.feedforward_features,
            self.activation,
            self.epsilon,
            use_bias=self.use_bias,
            use_out_bias=self.use_out_bias,
            use_feedforward_bias=self.use_feedforward_bias,
            use_query_key_norm=self.use_query_key_norm,
            window=self._window(layer),
            attention_dropout_rate=self.attention_dropout_rate,
            name=name,
        )

    def initial_cache(
        self,
        batch_size: int,
        max_length: int,
        dtype: Any = float,
        padding: Int[Array, " batch"] | None = None,
    ) -> Cache:
        """Returns the cache of no tokens.

        A layer with a window keeps so many tokens, however long the text becomes.

        Args:
            batch_size: number of texts.
            max_length: largest number of tokens that will be added, padding included.
            dtype: type in which keys and values are kept.
            padding: for each text, how many of its first tokens are padding; None: none are.

        Raises:
            UserError: ``max_length`` is more than the context.
        """
        if max_length > self.context:
            raise UserError(f"Llama: {max_length} tokens are more than context={self.context}")
        heads, width = self.num_key_value_heads, self._head_features()

        def of_layer(window: int) -> LayerCache:
            if 0 < window < max_length:
                return empty_rolling_cache(batch_size, window, heads, width, dtype, padding)
            return empty_cache(batch_size, max_length, heads, width, dtype, padding)

        return tuple(of_layer(self._window(layer)) for layer in range(self.num_layers))
