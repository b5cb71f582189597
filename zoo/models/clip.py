"""CLIP (Radford et al. 2021): a tower for images, one for texts, and the pair that compares."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zoo.axes import constrain
from zoo.errors import UserError
from zoo.layers import Conv, Embed, LayerNorm, Linear
from zoo.layers.images import check_images
from zoo.models.transformer_blocks import (
    RESIDUAL,
    Block,
    Features,
    TokenMask,
    Tokens,
    through_layers,
)

# The number that Hugging Face's first configs have as the end of a text. No published vocabulary
# ends its texts with it.
OLD_END_TOKEN = 2


class Compared(NamedTuple):
    """What ``CLIP`` returns.

    Attributes:
        image: the vector of each image, of length 1.
        text: the vector of each text, of length 1.
        logits: how well each image goes with each text: the product of their vectors times the
            exponential of ``logit_scale``. Its transpose has a row for each text.
    """

    image: Float[Array, "images projection_features"]
    text: Float[Array, "texts projection_features"]
    logits: Float[Array, "images texts"]


class CLIP(nn.Module):
    """Vectors of images and of texts in one space, in which those that go together are near.

    With the defaults it is ViT-B/32. Verified against Hugging Face's ``CLIPModel``. It is trained
    with ``zoo.losses.contrastive``; the paper keeps ``logit_scale`` at ``log(100)`` or below
    (section 2.5), and whoever trains must do so.

    Attributes:
        image_size: see ``CLIPVision``, as ``patch_size`` and ``channels``.
        patch_size: side of a patch.
        channels: number of channels of the images.
        vision_features: ``features`` of the image tower.
        vision_layers: its ``num_layers``.
        vision_heads: its ``num_heads``.
        vision_feedforward_features: its ``feedforward_features``.
        vocab_size: see ``CLIPText``, as ``context`` and ``end_token``.
        context: largest number of tokens.
        end_token: the token that ends a text.
        text_features: ``features`` of the text tower.
        text_layers: its ``num_layers``.
        text_heads: its ``num_heads``.
        text_feedforward_features: its ``feedforward_features``.
        projection_features: width of the space of both.
        activation: name of the activation in the blocks of both towers.
        epsilon: added to the variances of the normalisations.
        attention_dropout_rate: share of the attention weights that is set to zero in training.
        scan_layers: see ``Encoder``.
        remat: what the gradient keeps of the blocks; see ``zoo.layers.rematerialization``.
    """

    image_size: int = 224
    patch_size: int = 32
    channels: int = 3
    vision_features: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    vision_feedforward_features: int = 3072
    vocab_size: int = 49408
    context: int = 77
    end_token: int = 49407
    text_features: int = 512
    text_layers: int = 12
    text_heads: int = 8
    text_feedforward_features: int = 2048
    projection_features: int = 512
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    attention_dropout_rate: float = 0.0
    scan_layers: bool = False
    remat: str = "none"

    def setup(self) -> None:
        """Makes the towers, and the logarithm of the scale, which begins at 1/0.07 (section 2.5).

        Raises:
            UserError: there is no space in which to compare.
        """
        if self.projection_features < 1:
            raise UserError(f"CLIP: projection_features={self.projection_features} must be above 0")
        shared = {
            name: getattr(self, name)
            for name in (
                "projection_features", "activation", "epsilon", "attention_dropout_rate",
                "scan_layers", "remat",
            )
        }  # fmt: skip
        self.vision = CLIPVision(
            image_size=self.image_size,
            patch_size=self.patch_size,
            channels=self.channels,
            features=self.vision_features,
            num_layers=self.vision_layers,
            num_heads=self.vision_heads,
            feedforward_features=self.vision_feedforward_features,
            **shared,
        )
        self.text = CLIPText(
            vocab_size=self.vocab_size,
            context=self.context,
            end_token=self.end_token,
            features=self.text_features,
            num_layers=self.text_layers,
            num_heads=self.text_heads,
            feedforward_features=self.text_feedforward_features,
            **shared,
        )
        # To as many digits as the reference has.
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6592), ())

    def __call__(
        self,
        image: Float[Array, "images height width channels"],
        tokens: Int[Array, "texts time"],
        mask: TokenMask | None = None,
        *,
        train: bool = False,
    ) -> Compared:
        """Compares all images with all texts.

        Args:
            image: images, normalised as the family's preprocessing does.
            tokens: texts; there may be more or fewer than images.
            mask: see ``CLIPText``.
            train: whether to drop out.

        Raises:
            UserError: see ``CLIPVision`` and ``CLIPText``.
        """
        images = self.encode_image(image, train=train)
        texts = self.encode_text(tokens, mask, train=train)
        return Compared(images, texts, jnp.exp(self.logit_scale) * (images @ texts.T))

    def encode_image(
        self, image: Float[Array, "images height width channels"], *, train: bool = False
    ) -> Float[Array, "images projection_features"]:
        """Returns the vectors of images, of length 1."""
        check_images("CLIP", image, self.channels)
        return _normalized(self.vision(image, train=train)[1])

    def encode_text(
        self,
        tokens: Int[Array, "texts time"],
        mask: TokenMask | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "texts projection_features"]:
        """Returns the vectors of texts, of length 1."""
        return _normalized(self.text(tokens, mask, train=train)[1])


def _normalized(x: Float[Array, "batch features"]) -> Float[Array, "batch features"]:
    return x / jnp.sqrt(jnp.square(x).sum(axis=-1, keepdims=True))


class CLIPText(nn.Module):
    """A causal transformer; the vector at a text's end is the text's.

    Verified against Hugging Face's ``CLIPTextModel`` and, with a projection,
    ``CLIPTextModelWithProjection``.

    Attributes:
        vocab_size: number of tokens.
        context: largest number of tokens.
        end_token: the token that ends a text; the first one of a text counts. With 2 the place of
            the text's largest token is taken instead. Configs from before August 2023 say 2,
            whatever the vocabulary, in which the true one is the last.
        features: width.
        num_layers: number of blocks.
        num_heads: number of attention heads; divides ``features``.
        feedforward_features: width of the hidden layers.
        projection_features: width of the text's vector after a last linear layer; 0: there is no
            such layer.
        activation: name of the activation in the blocks.
        epsilon: added to the variances of the normalisations.
        attention_dropout_rate: share of the attention weights that is set to zero in training.
        scan_layers: see ``Encoder``.
        remat: what the gradient keeps of the blocks; see ``zoo.layers.rematerialization``.
    """

    vocab_size: int = 49408
    context: int = 77
    end_token: int = 49407
    features: int = 512
    num_layers: int = 12
    num_heads: int = 8
    feedforward_features: int = 2048
    projection_features: int = 0
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    attention_dropout_rate: float = 0.0
    scan_layers: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(
        self, tokens: Tokens, mask: TokenMask | None = None, *, train: bool = False
    ) -> tuple[Features, Float[Array, "batch pooled"]]:
        """Returns the normalised vector of each token, and that of each text, projected.

        Args:
            tokens: texts, each with its end. Compiled code cannot raise an error: there the vector
                of a text without an end is nan.
            mask: True for a token that counts, False for padding, which stands at the end and is
                seen by no other token; None: all count. Padding after the end changes nothing in a
                text's own vector, with or without a mask.
            train: whether to drop out.

        Raises:
            UserError: the tokens are not 2-D, are more than the context, or do not end; or the mask
                has another shape.
        """
        if tokens.ndim != 2:
            raise UserError(f"CLIPText: the tokens {tokens.shape} must be [batch, time]")
        time = tokens.shape[1]
        if time > self.context:
            raise UserError(f"CLIPText: {time} tokens are more than context={self.context}")
        if mask is not None and mask.shape != tokens.shape:
            raise UserError(
                f"CLIPText: the mask {mask.shape} must have the shape {tokens.shape} of the tokens"
            )
        x = Embed(self.vocab_size, self.features, std=0.02, name="tokens")(tokens)
        x = x + Embed(self.context, self.features, std=0.02, name="positions")(jnp.arange(time))
        x = Encoder(
            self.num_layers,
            self.num_heads,
            self.feedforward_features,
            self.activation,
            self.epsilon,
            self.attention_dropout_rate,
            causal=True,
            scan_layers=self.scan_layers,
            remat=self.remat,
            name="encoder",
        )(constrain(x, *RESIDUAL), mask, train=train)
        x = LayerNorm(epsilon=self.epsilon, name="ln")(x)
        pooled = self._at_the_end(x, tokens)
        if self.projection_features:
            pooled = _projection(self.features, self.projection_features)(pooled)
        return x, pooled

    def _at_the_end(self, x: Features, tokens: Tokens) -> Float[Array, "batch features"]:
        is_end = tokens == self.end_token
        if self.end_token == OLD_END_TOKEN:
            is_end = tokens == tokens.max(axis=1, keepdims=True)
        ends = is_end.any(axis=1)
        if not isinstance(ends, jax.core.Tracer) and not np.all(ends):
            raise UserError(
                f"CLIPText: the text {int(np.argmin(ends))} has no end_token={self.end_token}. "
                "Encode texts with the model's own tokenizer, and shorten a long one before its end"
            )
        place = jnp.argmax(is_end, axis=1)[:, None, None]
        vectors = jnp.take_along_axis(x, place, axis=1)[:, 0]
        return jnp.where(ends[:, None], vectors, jnp.nan)


class CLIPVision(nn.Module):
    """A vision transformer that normalises before its blocks; the class token's vector pools.

    Verified against Hugging Face's ``CLIPVisionModel`` and, with a projection,
    ``CLIPVisionModelWithProjection``.

    Attributes:
        image_size: side of the images, on which the positions depend.
        patch_size: side of a patch; divides ``image_size``.
        channels: number of channels of the images.
        features: width.
        num_layers: number of blocks.
        num_heads: number of attention heads; divides ``features``.
        feedforward_features: width of the hidden layers.
        projection_features: width of the image's vector after a last linear layer; 0: there is no
            such layer.
        activation: name of the activation in the blocks.
        epsilon: added to the variances of the normalisations.
        attention_dropout_rate: share of the attention weights that is set to zero in training.
        scan_layers: see ``Encoder``.
        remat: what the gradient keeps of the blocks; see ``zoo.layers.rematerialization``.
    """

    image_size: int = 224
    patch_size: int = 32
    channels: int = 3
    features: int = 768
    num_layers: int = 12
    num_heads: int = 12
    feedforward_features: int = 3072
    projection_features: int = 0
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    attention_dropout_rate: float = 0.0
    scan_layers: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> tuple[Float[Array, "batch 1+patches features"], Float[Array, "batch pooled"]]:
        """Returns the vectors of the class token and of each patch, and that of each image.

        The former are not normalised. The latter is the class token's, normalised and projected.

        Args:
            image: images, normalised as the family's preprocessing does.
            train: whether to drop out.

        Raises:
            UserError: the images do not fit (see ``check_images``), their sides are not
                ``image_size``, or ``patch_size`` does not divide it.
        """
        check_images("CLIPVision", image, self.channels)
        side = self.image_size
        if image.shape[1:3] != (side, side):
            raise UserError(
                f"CLIPVision: the images {image.shape} must have height and width image_size={side}"
            )
        if side % self.patch_size:
            raise UserError(
                f"CLIPVision: patch_size={self.patch_size} must divide image_size={side}"
            )
        patches = Conv(
            self.features,
            self.patch_size,
            strides=self.patch_size,
            use_bias=False,
            initialization=0.02,
            name="patches",
        )(image)
        x = patches.reshape(image.shape[0], -1, self.features)
        token = self.param(
            "class_token", nn.initializers.normal(self.features**-0.5), (self.features,)
        )
        token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.features))
        x = jnp.concatenate([token, x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(0.02), x.shape[1:])
        x = LayerNorm(epsilon=self.epsilon, name="ln_before")(x)
        x = Encoder(
            self.num_layers,
            self.num_heads,
            self.feedforward_features,
            self.activation,
            self.epsilon,
            self.attention_dropout_rate,
            causal=False,
            scan_layers=self.scan_layers,
            remat=self.remat,
            name="encoder",
        )(constrain(x, *RESIDUAL), train=train)
        pooled = LayerNorm(epsilon=self.epsilon, name="ln_after")(x[:, 0])
        if self.projection_features:
            pooled = _projection(self.features, self.projection_features)(pooled)
        return x, pooled


def _projection(inputs: int, features: int) -> Linear:
    return Linear(features, use_bias=False, initialization=inputs**-0.5, name="projection")


class Encoder(nn.Module):
    """The blocks of a tower.

    Attributes:
        num_layers: number of blocks.
        num_heads: see ``Block``.
        feedforward_features: see ``Block``.
        activation: see ``Block``.
        epsilon: see ``Block``.
        attention_dropout_rate: see ``Block``.
        causal: whether a token sees itself and the earlier ones only.
        scan_layers: whether the blocks are one program that runs in a loop, instead of one after
            another. It takes as long to compile as one block. The parameters of ``block_0``,
            ``block_1`` and so on are then stacked in ``blocks``, the layer as the first axis.
        remat: what the gradient keeps of the blocks; see ``zoo.layers.rematerialization``.
    """

    num_layers: int
    num_heads: int
    feedforward_features: int
    activation: str
    epsilon: float
    attention_dropout_rate: float
    causal: bool
    scan_layers: bool
    remat: str

    @nn.compact
    def __call__(
        self, x: Features, mask: TokenMask | None = None, *, train: bool = False
    ) -> Features:
        """Applies the blocks.

        Args:
            x: a vector for each token or patch.
            mask: which of them may be seen; None: all.
            train: whether to drop out.
        """

        def call(
            block: Block, x: Features, cache: None, mask: TokenMask | None
        ) -> tuple[Features, None]:
            return block(x, mask=mask, causal=self.causal, train=train)[0], None

        return through_layers(
            functools.partial(self._block, x.shape[-1]),
            call,
            x,
            None,
            mask,
            num_layers=self.num_layers,
            name="block",
            scan_layers=self.scan_layers,
            remat=self.remat,
        )[0]

    def _block(self, width: int, name: str, number: int) -> Block:
        # As the reference begins: the query, key, value and last layer are the smaller ones.
        deep = (2 * self.num_layers * width) ** -0.5
        return Block(
            self.num_heads,
            self.feedforward_features,
            self.activation,
            initialization=deep,
            attention_out_initialization=width**-0.5,
            hidden_initialization=(2 * width) ** -0.5,
            feedforward_out_initialization=deep,
            dropout_rate=0.0,
            attention_dropout_rate=self.attention_dropout_rate,
            epsilon=self.epsilon,
            name=name,
        )
