"""BERT (Devlin et al. 2019) and RoBERTa (Liu et al. 2019): encoders of text, and what they answer.

Both are one module with several ends. RoBERTa differs in its defaults, in how positions are counted
(``skip_padding``) and in where its classifier drops out (``dropout_before_pooler``).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zoo.axes import constrain
from zoo.errors import UserError
from zoo.layers import Embed, LayerNorm, Linear, MultiHeadAttention, activation
from zoo.models.transformer_blocks import (
    HIDDEN,
    RESIDUAL,
    Features,
    TokenMask,
    Tokens,
    through_layers,
)

# Standard deviation of all first weights (Devlin et al. 2019, the published code).
_STD = 0.02


class BertLayer(nn.Module):
    """Attention, then two linear layers; each result is added to its input and normalised.

    The order of Vaswani et al. 2017, unlike that of ``transformer_blocks.Block``.

    Attributes:
        num_heads: number of attention heads.
        feedforward_features: width between the linear layers.
        activation: name of the activation between them.
        epsilon: added to the variances of the normalisations.
        dropout_rate: share of each part's contribution that is set to zero in training.
        attention_dropout_rate: share of the attention weights that is set to zero in training.
    """

    num_heads: int
    feedforward_features: int
    activation: str
    epsilon: float
    dropout_rate: float
    attention_dropout_rate: float

    @nn.compact
    def __call__(self, x: Features, mask: TokenMask | None, *, train: bool) -> Features:
        """Adds the results of both parts.

        Args:
            x: a vector for each token.
            mask: True for a token that may be seen; None: all may.
            train: whether to drop out.
        """
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)

        y, _ = MultiHeadAttention(
            self.num_heads,
            dropout_rate=self.attention_dropout_rate,
            initialization=_STD,
            out_initialization=_STD,
            name="attention",
        )(x, mask=None if mask is None else mask[:, None, None, :], train=train)
        x = LayerNorm(epsilon=self.epsilon, name="attention_norm")(x + dropout(y))
        x = constrain(x, *RESIDUAL)

        up = Linear(self.feedforward_features, initialization=_STD, name="up")
        down = Linear(x.shape[-1], initialization=_STD, name="down")
        y = down(constrain(activation(self.activation)(up(x)), *HIDDEN))
        x = LayerNorm(epsilon=self.epsilon, name="norm")(x + dropout(y))
        return constrain(x, *RESIDUAL)


class Encoder(nn.Module):
    """What all models of this file have: the vectors of tokens that see each other.

    Attributes:
        vocab_size: number of tokens.
        num_positions: number of vectors of positions. It is the largest number of tokens, or with
            ``skip_padding`` that number plus ``padding_token`` plus 1.
        num_token_types: number of vectors that say which of several texts a token is from.
        num_layers: number of layers.
        num_heads: number of attention heads; divides ``features``.
        features: width of the vectors.
        feedforward_features: width between the two linear layers of each layer.
        activation: name of the activation between them.
        epsilon: added to the variances of the normalisations.
        dropout_rate: share of the embeddings and of the contributions of the layers that is set to
            zero in training.
        attention_dropout_rate: share of the attention weights that is set to zero in training.
        padding_token: the token that fills up short texts; the zoo's own data have 0. Its vector is
            not learnt from the input. It is not hidden by itself: what hides it is the mask of a
            call.
        skip_padding: whether positions count from ``padding_token + 1`` and skip padding, as in
            RoBERTa; otherwise they count from 0. Padding is then told by the token, not by the
            mask.
        scan_layers: whether the layers are one program that runs in a loop, instead of one after
            another. It takes as long to compile as one layer. The parameters of ``layer_0``,
            ``layer_1`` and so on are then stacked in ``layers``, the layer as the first axis.
        remat: what the gradient keeps of the layers; see ``zoo.layers.rematerialization``.
    """

    vocab_size: int = 30522
    num_positions: int = 512
    num_token_types: int = 2
    num_layers: int = 12
    num_heads: int = 12
    features: int = 768
    feedforward_features: int = 3072
    activation: str = "gelu"
    epsilon: float = 1e-12
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    padding_token: int = 0
    skip_padding: bool = False
    scan_layers: bool = False
    remat: str = "none"

    def setup(self) -> None:
        """Makes the tables of vectors."""
        self.tokens = Embed(self.vocab_size, self.features, std=_STD)
        self.positions = Embed(self.num_positions, self.features, std=_STD)
        self.token_types = Embed(self.num_token_types, self.features, std=_STD)

    @nn.compact
    def vectors(
        self,
        tokens: Tokens,
        mask: TokenMask | None = None,
        token_types: Tokens | None = None,
        *,
        train: bool = False,
    ) -> Features:
        """Returns the vectors of tokens, the same for all models of this file.

        Args:
            tokens: the texts, the first token of each being ``[CLS]`` or ``<s>``.
            mask: True for a token that counts, False for padding; None: all count. The vectors of
                padding mean nothing.
            token_types: which of several texts each token is from; None: all are from the first.
            train: whether to drop out.

        Raises:
            UserError: the tokens are not 2-D, are more than there are positions for, or are out of
                range; the mask or the types have another shape than the tokens.
        """
        name = type(self).__name__
        if tokens.ndim != 2:
            raise UserError(f"{name}: the tokens {tokens.shape} must be [batch, time]")
        for what, given in (("mask", mask), ("token_types", token_types)):
            if given is not None and given.shape != tokens.shape:
                raise UserError(
                    f"{name}: {what} {given.shape} must have the shape of the tokens {tokens.shape}"
                )
        time = tokens.shape[1]
        first = self.padding_token + 1 if self.skip_padding else 0
        if time > self.num_positions - first:
            raise UserError(
                f"{name}: {time} tokens are more than the {self.num_positions - first} for which "
                f"num_positions={self.num_positions} has vectors"
            )

        is_padding = jnp.asarray(tokens) == self.padding_token
        x = _not_learnt(is_padding, self.tokens(tokens))
        x = x + self.token_types(jnp.zeros_like(tokens) if token_types is None else token_types)
        if self.skip_padding:
            counted = jnp.where(is_padding, 0, jnp.cumsum(~is_padding, axis=1))
            x = x + _not_learnt(is_padding, self.positions(self.padding_token + counted))
        else:
            x = x + self.positions(jnp.arange(time))
        x = LayerNorm(epsilon=self.epsilon, name="norm")(x)
        x = constrain(nn.Dropout(self.dropout_rate, deterministic=not train)(x), *RESIDUAL)

        def call(layer: BertLayer, x: Array, cache: None, mask: Array | None) -> tuple[Array, None]:
            return layer(x, mask, train=train), None

        x, _ = through_layers(
            self._layer,
            call,
            x,
            None,
            None if mask is None else jnp.asarray(mask, bool),
            num_layers=self.num_layers,
            name="layer",
            scan_layers=self.scan_layers,
            remat=self.remat,
        )
        return x

    def _layer(self, name: str, number: int) -> BertLayer:
        return BertLayer(
            self.num_heads,
            self.feedforward_features,
            self.activation,
            self.epsilon,
            self.dropout_rate,
            self.attention_dropout_rate,
            name=name,
        )


class Bert(Encoder):
    """The vectors of tokens, and one for each text made of its first token's.

    With the defaults it is BERT-base with 109 million parameters. Verified against Hugging Face's
    ``BertModel`` and ``RobertaModel``.

    Attributes:
        use_pooler: whether there is the layer of each text's vector. Weights of a model that was
            trained on masked tokens alone have none.
    """

    use_pooler: bool = True

    def setup(self) -> None:
        """Makes the tables of vectors and the last layer."""
        super().setup()
        if self.use_pooler:
            self.pooler = Linear(self.features, initialization=_STD)

    def __call__(
        self,
        tokens: Tokens,
        mask: TokenMask | None = None,
        token_types: Tokens | None = None,
        *,
        train: bool = False,
    ) -> tuple[Features, Float[Array, "batch features"] | None]:
        """Returns the vectors of the tokens and of the texts, the latter None without a pooler.

        For sentences that can be compared see ``sentence_vectors``.

        Args:
            tokens: see ``vectors``, which also says what is refused.
            mask: see ``vectors``.
            token_types: see ``vectors``.
            train: whether to drop out.
        """
        x = self.vectors(tokens, mask, token_types, train=train)
        return x, jnp.tanh(self.pooler(x[:, 0])) if self.use_pooler else None


class BertMaskedLM(Encoder):
    """The logits of the tokens that masks stand for (Devlin et al. 2019, section 3.1).

    The output's weights are those of the tokens' vectors. Verified against Hugging Face's
    ``BertForMaskedLM`` and ``RobertaForMaskedLM``.
    """

    def setup(self) -> None:
        """Makes the tables of vectors and the last layers."""
        super().setup()
        self.transform = Linear(self.features, initialization=_STD)
        self.transform_norm = LayerNorm(epsilon=self.epsilon)
        self.output_bias = self.param("output_bias", nn.initializers.zeros, (self.vocab_size,))

    def __call__(
        self,
        tokens: Tokens,
        mask: TokenMask | None = None,
        token_types: Tokens | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch time vocab"]:
        """Returns the logits of each token.

        Args:
            tokens: see ``vectors``, which also says what is refused.
            mask: see ``vectors``. It says what is padding, not which tokens are to be guessed.
            token_types: see ``vectors``.
            train: whether to drop out.
        """
        return self.logits(self.vectors(tokens, mask, token_types, train=train))

    def logits(self, x: Features) -> Float[Array, "batch time vocab"]:
        """Returns the logits of tokens from the vectors that ``vectors`` returns."""
        x = self.transform_norm(activation(self.activation)(self.transform(x)))
        return constrain(self.tokens.logits(x) + self.output_bias, "batch", "length", "vocab")


class BertClassifier(Encoder):
    """The logits of a class for each text, from the vector of its first token.

    Verified against Hugging Face's ``BertForSequenceClassification`` and
    ``RobertaForSequenceClassification``.

    Attributes:
        num_classes: number of outputs.
        head_dropout_rate: share of the classified features that is set to zero in training.
        dropout_before_pooler: whether the first token's vector is dropped out too, as in RoBERTa.
    """

    num_classes: int = 2
    head_dropout_rate: float = 0.1
    dropout_before_pooler: bool = False

    def setup(self) -> None:
        """Makes the tables of vectors and the last layers."""
        super().setup()
        self.pooler = Linear(self.features, initialization=_STD)
        self.output = Linear(self.num_classes, initialization=_STD)
        self.dropout = nn.Dropout(self.head_dropout_rate)

    def __call__(
        self,
        tokens: Tokens,
        lengths: Int[Array, " batch"] | None = None,
        *,
        mask: TokenMask | None = None,
        token_types: Tokens | None = None,
        train: bool = False,
    ) -> Float[Array, "batch num_classes"]:
        """Returns logits.

        Args:
            tokens: see ``vectors``, which also says what is refused.
            lengths: number of tokens of each row that count, another way to say ``mask``; a row
                without tokens is read as its first.
            mask: see ``vectors``.
            token_types: see ``vectors``.
            train: whether to drop out.

        Raises:
            UserError: ``lengths`` and ``mask`` are both given, or ``lengths`` is not one number a
                row.
        """
        if lengths is not None:
            if mask is not None:
                raise UserError("BertClassifier: give lengths or mask, not both")
            if lengths.shape != tokens.shape[:1]:
                raise UserError(
                    f"BertClassifier: lengths {lengths.shape} must be one number for each row of "
                    f"the tokens {tokens.shape}. A mask is given by name: mask=..."
                )
            mask = jnp.arange(tokens.shape[-1]) < jnp.maximum(lengths, 1)[:, None]
        x = self.vectors(tokens, mask, token_types, train=train)[:, 0]
        if self.dropout_before_pooler:
            x = self.dropout(x, deterministic=not train)
        x = jnp.tanh(self.pooler(x))
        return self.output(self.dropout(x, deterministic=not train))


class BertTokenClassifier(Encoder):
    """The logits of a class for each token, such as a kind of name.

    Verified against Hugging Face's ``BertForTokenClassification`` and
    ``RobertaForTokenClassification``.

    Attributes:
        num_classes: number of outputs.
        head_dropout_rate: share of the classified features that is set to zero in training.
    """

    num_classes: int = 2
    head_dropout_rate: float = 0.1

    def setup(self) -> None:
        """Makes the tables of vectors and the last layer."""
        super().setup()
        self.output = Linear(self.num_classes, initialization=_STD)
        self.dropout = nn.Dropout(self.head_dropout_rate)

    def __call__(
        self,
        tokens: Tokens,
        mask: TokenMask | None = None,
        token_types: Tokens | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch time num_classes"]:
        """Returns logits.

        Args:
            tokens: see ``vectors``, which also says what is refused.
            mask: see ``vectors``.
            token_types: see ``vectors``.
            train: whether to drop out.
        """
        x = self.vectors(tokens, mask, token_types, train=train)
        return self.output(self.dropout(x, deterministic=not train))


class BertQuestionAnswering(Encoder):
    """The logits of the tokens with which an answer begins and ends (Devlin et al. 2019, 4.2).

    The tokens are a question and a text that has the answer. Verified against Hugging Face's
    ``BertForQuestionAnswering`` and ``RobertaForQuestionAnswering``.
    """

    def setup(self) -> None:
        """Makes the tables of vectors and the last layer."""
        super().setup()
        self.output = Linear(2, initialization=_STD)

    def __call__(
        self,
        tokens: Tokens,
        mask: TokenMask | None = None,
        token_types: Tokens | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch time 2"]:
        """Returns the logits of each token as the answer's first, and as its last.

        Args:
            tokens: see ``vectors``, which also says what is refused.
            mask: see ``vectors``.
            token_types: see ``vectors``.
            train: whether to drop out.
        """
        return self.output(self.vectors(tokens, mask, token_types, train=train))


def sentence_vectors(
    vectors: Features, mask: TokenMask | None = None
) -> Float[Array, "batch features"]:
    """Returns a vector of length 1 for each text: the mean of its tokens' vectors, normalised.

    The product of two of them is the cosine of the angle between them (Reimers and Gurevych 2019).
    As the layers ``Pooling`` (mean) and ``Normalize`` of sentence-transformers. It is computed in
    float32 at least.

    Args:
        vectors: the tokens' vectors, such as the first result of ``Bert``.
        mask: True for a token that counts; None: all count. A text without any has the vector 0.

    Raises:
        UserError: the mask does not have one value for each token.
    """
    if mask is not None and mask.shape != vectors.shape[:2]:
        raise UserError(
            f"sentence_vectors: mask {mask.shape} must be {vectors.shape[:2]}, one value a token"
        )
    exact = vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32))
    counts = jnp.ones(vectors.shape[:2], bool) if mask is None else jnp.asarray(mask, bool)
    # What is not counted may be nan.
    total = jnp.where(counts[..., None], exact, 0).sum(axis=1)
    mean = total / jnp.maximum(counts.sum(axis=1), 1)[:, None]
    # The square is bounded, not its root, whose derivative at 0 is infinite.
    square = jnp.square(mean).sum(axis=-1, keepdims=True)
    return (mean / jnp.sqrt(jnp.maximum(square, 1e-24))).astype(vectors.dtype)


def _not_learnt(where: Bool[Array, "batch time"], vectors: Features) -> Features:
    """Returns the vectors, no gradient reaching those of some tokens: torch's ``padding_idx``."""
    return jnp.where(where[..., None], jax.lax.stop_gradient(vectors), vectors)
