"""What transformers are built of: the blocks and layers that several families share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zoo.axes import constrain
from zoo.errors import UserError
from zoo.layers import Embed, LayerNorm, Linear, MultiHeadAttention, activation, sinusoidal
from zoo.layers.attention import KeyValueCache
from zoo.layers.rematerialization import rematerialized

Tokens = Int[Array, "batch time"]
Features = Float[Array, "batch time features"]
# True for a token that counts, False for padding.
TokenMask = Bool[Array, "batch time"]

# The axes along which values are divided over a mesh: between layers, and inside the linear ones.
RESIDUAL = ("batch", "length", None)
HIDDEN = ("batch", "length", "hidden")


def through_layers(
    make: Callable[[str, int], nn.Module],
    call: Callable[..., tuple[Any, Any]],
    x: Features,
    caches: Sequence[Any] | None,
    *same: Any,
    num_layers: int,
    name: str,
    scan_layers: bool,
    remat: str,
) -> tuple[Features, tuple[Any, ...] | None]:
    """Calls layers one after another, or one program in a loop whose parameters are stacked.

    Args:
        make: makes a layer from its name and number.
        call: ``(layer, x, cache, *same) -> (x, cache)``; a cache may be None.
        x: what the first layer reads.
        caches: the cache of each layer; None: there are none.
        *same: what all layers read besides.
        num_layers: number of layers.
        name: the layers are ``<name>_0``, ``<name>_1`` and so on, and in a loop ``<name>s``.
        scan_layers: whether they are one program in a loop.
        remat: see ``zoo.layers.rematerialization``.

    Returns:
        What the last layer returns, and the caches that the layers return; None if they return
        none.
    """
    call = rematerialized(call, remat, in_loop=scan_layers)
    if not scan_layers:
        after = []
        for number in range(num_layers):
            before = None if caches is None else caches[number]
            x, cache = call(make(f"{name}_{number}", number), x, before, *same)
            after.append(cache)
        return x, tuple(after) if after and after[-1] is not None else None
    loop = nn.scan(
        call,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, *[nn.broadcast] * len(same)),
        length=num_layers,
    )
    # A cache is one for each layer in both forms: whoever decodes moves rows of its arrays, which
    # are their first axis.
    stacked = None if caches is None else jax.tree.map(lambda *each: jnp.stack(each), *caches)
    x, made = loop(make(f"{name}s", 0), x, stacked, *same)
    if made is None:
        return x, None
    arrays, structure = jax.tree.flatten(made)
    return x, tuple(jax.tree.unflatten(structure, each) for each in zip(*arrays, strict=True))


class Block(nn.Module):
    """Attention, then two linear layers, each of which reads the normalised sum so far.

    The order of GPT-2 and of the vision transformer (Xiong et al. 2020, figure 1b).

    Attributes:
        num_heads: number of attention heads.
        feedforward_features: width between the linear layers.
        activation: name of the activation between them.
        initialization: initialisation of all linear layers but the last of each part; see
            ``zoo.layers.initializers``.
        attention_out_initialization: initialisation of the last linear layer of attention.
        feedforward_out_initialization: initialisation of the last linear layer.
        dropout_rate: share of each part's contribution that is set to zero in training.
        attention_dropout_rate: share of the attention weights that is set to zero in training.
        drop_hidden: whether the values between the linear layers are dropped as well.
        epsilon: added to the variances of the normalisations.
        use_bias: whether linear layers and normalisations have biases.
        hidden_initialization: initialisation of the linear layer before the activation; None: as
            ``initialization``.
    """

    num_heads: int
    feedforward_features: int
    activation: str
    initialization: str | float
    attention_out_initialization: str | float
    feedforward_out_initialization: str | float
    dropout_rate: float
    attention_dropout_rate: float = 0.0
    drop_hidden: bool = False
    epsilon: float = 1e-5
    use_bias: bool = True
    hidden_initialization: str | float | None = None

    @nn.compact
    def __call__(
        self,
        x: Features,
        cache: KeyValueCache | None = None,
        *,
        mask: TokenMask | None = None,
        causal: bool = False,
        train: bool = False,
    ) -> tuple[Features, KeyValueCache | None]:
        """Adds the results of both parts; also returns the cache with the tokens of ``x`` added.

        Args:
            x: a vector for each token.
            cache: keys and values of the earlier tokens; None: there are none, and none are kept.
            mask: which tokens may be seen, with a cache those of its full length; None: all.
            causal: whether a token sees itself and the earlier ones only.
            train: whether to drop out.
        """
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)

        y = LayerNorm(epsilon=self.epsilon, use_bias=self.use_bias, name="ln_1")(x)
        y, cache = MultiHeadAttention(
            self.num_heads,
            use_bias=self.use_bias,
            dropout_rate=self.attention_dropout_rate,
            initialization=self.initialization,
            out_initialization=self.attention_out_initialization,
            name="attention",
        )(y, mask=_of_keys(mask), causal=causal, cache=cache, train=train)
        x = constrain(x + dropout(y), *RESIDUAL)

        y = LayerNorm(epsilon=self.epsilon, use_bias=self.use_bias, name="ln_2")(x)
        hidden = self.hidden_initialization
        up = Linear(
            self.feedforward_features,
            use_bias=self.use_bias,
            initialization=self.initialization if hidden is None else hidden,
            name="up",
        )
        down = Linear(
            x.shape[-1],
            use_bias=self.use_bias,
            initialization=self.feedforward_out_initialization,
            name="down",
        )
        y = constrain(activation(self.activation)(up(y)), *HIDDEN)
        y = down(dropout(y) if self.drop_hidden else y)
        return constrain(x + dropout(y), *RESIDUAL), cache


class LayerCache(NamedTuple):
    """Keys and values of one layer.

    Attributes:
        tokens: those of the tokens so far; None: they are not kept.
        memory: those of the encoder's output; None: the layer has not read it.
    """

    tokens: KeyValueCache | None = None
    memory: KeyValueCache | None = None


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
        hidden = constrain(activation(self.activation)(up(x)), *HIDDEN)
        return down(nn.Dropout(self.dropout_rate, deterministic=not train)(hidden))


class Layer(nn.Module):
    """A layer of the encoder or, given a memory, of the decoder (figure 1).

    Attributes:
        num_heads: number of attention heads.
        feedforward_features: hidden width of the feed-forward part.
        dropout_rate: share of attention weights, hidden values and each part's contribution that is
            set to zero in training.
        activation: name of the feed-forward part's activation.
        norm_first: whether the input of each part is normalised, instead of the sum after it.
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
        """Adds the results of attention and of the feed-forward part."""
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)

        def attention(name: str) -> MultiHeadAttention:
            return MultiHeadAttention(self.num_heads, dropout_rate=self.dropout_rate, name=name)

        def read(norm: LayerNorm, x: Features) -> Features:
            return norm(x) if self.norm_first else x

        def add(norm: LayerNorm, x: Features, y: Features) -> Features:
            x = constrain(x + dropout(y), *RESIDUAL)
            return x if self.norm_first else norm(x)

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
        max_length: largest number of positions, where they are learned.
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
        return constrain(self.dropout(x, deterministic=not train), *RESIDUAL)

    def logits(self, x: Features) -> Float[Array, "batch time vocab"]:
        """Returns the logits of tokens, the output's weights tied to the tokens' vectors."""
        return self.tokens.logits(x)


def _of_keys(mask: TokenMask | None) -> Bool[Array, "batch 1 1 keys"] | None:
    return None if mask is None else mask[:, None, None, :]
