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
from zoo.models.transformer_blocks import RESIDUAL, Block, through_layers

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
        scan_layers: whether the blocks are one program that runs in a loop, instead of one after
            another. It takes as long to compile as one block. The parameters of ``block_0``,
            ``block_1`` and so on are then stacked in ``blocks``, the layer as the first axis.
        remat: what the gradient keeps of the blocks; see ``zoo.layers.rematerialization``.
    """

    vocab_size: int = 50257
    context: int = 1024
    num_layers: int = 12
    num_heads: int = 12
    features: int = 768
    dropout_rate: float = 0.1
    use_bias: bool = True
    scan_layers: bool = False
    remat: str = "none"

    recurrent: ClassVar[bool] = False

    def setup(self) -> None:
        """Makes the tables of vectors."""
        self.tokens = Embed(self.vocab_size, self.features, std=0.02)
        self.positions = Embed(self.context, self.features, std=0.02)

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
        x, cache = self.vectors(tokens, cache, train=train)
        return self.logits(x), cache

    def logits(self, x: Float[Array, "batch time features"]) -> Float[Array, "batch time vocab"]:
        """Returns the logits of the next tokens from the vectors that ``vectors`` returns."""
        return constrain(self.tokens.logits(x), "batch", "length", "vocab")

    @nn.compact
    def vectors(
        self, tokens: Int[Array, "batch time"], cache: Cache | None = None, *, train: bool = False
    ) -> tuple[Float[Array, "batch time features"], Cache | None]:
        """Returns what ``__call__`` does, with the vectors that ``logits`` takes for the logits."""
        if tokens.ndim != 2:
            raise UserError(f"GPT: the tokens {tokens.shape} must be [batch, time]")
        time = tokens.shape[1]
        if time > self.context:
            raise UserError(f"GPT: {time} tokens are more than context={self.context}")
        places = jnp.arange(time) if cache is None else cache[0].positions(time)
        x = self.tokens(tokens) + self.positions(places)
        x = constrain(nn.Dropout(self.dropout_rate, deterministic=not train)(x), *RESIDUAL)

        def call(
            block: Block, x: Array, cache: KeyValueCache | None
        ) -> tuple[Array, KeyValueCache | None]:
            made: tuple[Array, KeyValueCache | None] = block(x, cache, causal=True, train=train)
            return made

        x, caches = through_layers(
            self._block,
            call,
            x,
            cache,
            num_layers=self.num_layers,
            name="block",
            scan_layers=self.scan_layers,
            remat=self.remat,
        )
        x = LayerNorm(use_bias=self.use_bias, name="ln_f")(x)
        return x, caches

    def _block(self, name: str, number: int) -> Block:
        # The more layers, the smaller each one's first contributions (section 2.3).
        residual_std = 0.02 / (2 * self.num_layers) ** 0.5
        return Block(
            self.num_heads,
            4 * self.features,
            "gelu_tanh",
            initialization=0.02,
            attention_out_initialization=residual_std,
            feedforward_out_initialization=residual_std,
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.dropout_rate,
            use_bias=self.use_bias,
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

        Args:
            batch_size: number of texts.
            max_length: largest number of tokens that will be added, padding included.
            dtype: type in which keys and values are kept.
            padding: for each text, how many of its first tokens are padding; None: none are.

        Raises:
            UserError: ``max_length`` is more than the context.
        """
        if max_length > self.context:
            raise UserError(f"GPT: {max_length} tokens are more than context={self.context}")
        head_features = self.features // self.num_heads
        return tuple(
            empty_cache(batch_size, max_length, self.num_heads, head_features, dtype, padding)
            for _ in range(self.num_layers)
        )
