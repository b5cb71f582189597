"""GPT-2: a decoder-only transformer (Radford et al. 2019)."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.axes import constrain
from zoo.errors import UserError
from zoo.layers import Embed, LayerNorm
from zoo.layers.attention import KeyValueCache, empty_cache
from zoo.models.transformer_blocks import RESIDUAL, Block

# One for each layer.
Cache = tuple[KeyValueCache, ...]


class GPT(nn.Module):
    """Token and position vectors, blocks, and the logits of the next token.

    With the defaults it is GPT-2 with 124 million parameters. Verified against Hugging Face's
    ``GPT2LMHeadModel``.

    Attributes:
        vocab_size: number of tokens.
        context: largest number of tokens.
        num_layers: number of blocks.
        num_heads: number of attention heads; divides ``features``.
        features: width of the residual stream.
        dropout_rate: share of the embeddings, attention weights and contributions of the blocks
            that is set to zero in training.
        use_bias: whether linear layers and normalisations have biases; GPT-2 has them.
    """

    vocab_size: int = 50257
    context: int = 1024
    num_layers: int = 12
    num_heads: int = 12
    features: int = 768
    dropout_rate: float = 0.1
    use_bias: bool = True

    recurrent: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "batch time"], cache: Cache | None = None, *, train: bool = False
    ) -> tuple[Float[Array, "batch time vocab"], Cache | None]:
        """Returns the logits of each next token, and the cache with ``tokens`` added.

        Args:
            tokens: the text, or what follows the tokens in ``cache``.
            cache: keys and values of the earlier tokens; None: there are none, and none are kept.
            train: whether to drop out.

        Raises:
            UserError: the tokens are not 2-D, or are more than the context.
        """
        if tokens.ndim != 2:
            raise UserError(f"GPT: the tokens {tokens.shape} must be [batch, time]")
        time = tokens.shape[1]
        if time > self.context:
            raise UserError(f"GPT: {time} tokens are more than context={self.context}")
        embed = Embed(self.vocab_size, self.features, std=0.02, name="tokens")
        positions = Embed(self.context, self.features, std=0.02, name="positions")

        begin = 0 if cache is None else cache[0].length
        x = embed(tokens) + positions(begin + jnp.arange(time))
        x = constrain(nn.Dropout(self.dropout_rate, deterministic=not train)(x), *RESIDUAL)
        # The more layers, the smaller each one's first contributions (section 2.3).
        residual_std = 0.02 / (2 * self.num_layers) ** 0.5
        caches = []
        for layer in range(self.num_layers):
            block = Block(
                self.num_heads,
                4 * self.features,
                "gelu_tanh",
                initialization=0.02,
                attention_out_initialization=residual_std,
                feedforward_out_initialization=residual_std,
                dropout_rate=self.dropout_rate,
                attention_dropout_rate=self.dropout_rate,
                use_bias=self.use_bias,
                name=f"block_{layer}",
            )
            before = None if cache is None else cache[layer]
            x, layer_cache = block(x, before, causal=True, train=train)
            if layer_cache is not None:
                caches.append(layer_cache)
        x = LayerNorm(use_bias=self.use_bias, name="ln_f")(x)
        logits = constrain(embed.logits(x), "batch", "length", "vocab")
        return logits, tuple(caches) or None

    def initial_cache(self, batch_size: int, max_length: int, dtype: Any = float) -> Cache:
        """Returns the cache of no tokens.

        Args:
            batch_size: number of texts.
            max_length: largest number of tokens that will be added.
            dtype: type in which keys and values are kept.

        Raises:
            UserError: ``max_length`` is more than the context.
        """
        if max_length > self.context:
            raise UserError(f"GPT: {max_length} tokens are more than context={self.context}")
        head_features = self.features // self.num_heads
        return tuple(
            empty_cache(batch_size, max_length, self.num_heads, head_features, dtype)
            for _ in range(self.num_layers)
        )
