"""A UNet with cross-attention that removes noise from images (Rombach et al. 2022, appendix E)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zoo.errors import UserError
from zoo.layers import (
    Conv,
    GroupNorm,
    LayerNorm,
    Linear,
    MultiHeadAttention,
    activation,
    sinusoidal,
)
from zoo.layers.images import check_images

Image = Float[Array, "batch height width channels"]
Vector = Float[Array, "batch features"]
Context = Float[Array, "batch length context_features"]
ContextMask = Bool[Array, "batch length"]


class ResidualBlock(nn.Module):
    """Two convolutions around which the image goes too; the time comes in between.

    Attributes:
        features: channels of the result.
        norm_groups: groups of the normalisations.
        dropout_rate: share of the second convolution's input that is set to zero in training.
        scale_shift: whether the time scales and shifts what is normalised (Dhariwal and Nichol
            2021, section 3), instead of being added before.
    """

    features: int
    norm_groups: int
    dropout_rate: float
    scale_shift: bool

    @nn.compact
    def __call__(self, x: Image, time: Vector, *, train: bool) -> Image:
        """Adds the result of the convolutions to the input."""
        y = jax.nn.silu(GroupNorm(self.norm_groups, name="norm1")(x))
        y = Conv(self.features, 3, padding=1, name="conv1")(y)
        norm2 = GroupNorm(self.norm_groups, name="norm2")
        width = 2 * self.features if self.scale_shift else self.features
        time = Linear(width, name="time")(jax.nn.silu(time))[:, None, None]
        if self.scale_shift:
            scale, shift = jnp.split(time, 2, axis=-1)
            y = jax.nn.silu(norm2(y) * (1 + scale) + shift)
        else:
            y = jax.nn.silu(norm2(y + time))
        y = nn.Dropout(self.dropout_rate, deterministic=not train)(y)
        y = Conv(self.features, 3, padding=1, name="conv2")(y)
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, name="shortcut")(x)
        return x + y


class SpatialTransformer(nn.Module):
    """A transformer layer over the places of an image, which also sees a context.

    Attributes:
        num_heads: number of attention heads; divides the channels.
        norm_groups: number of groups of the first normalisation.
    """

    num_heads: int
    norm_groups: int

    @nn.compact
    def __call__(self, x: Image, context: Context, context_mask: ContextMask | None) -> Image:
        """Adds the results of attention to image and context, and of a gated layer."""
        features = x.shape[-1]
        mask = None if context_mask is None else context_mask[:, None, None, :]

        def attention(name: str) -> MultiHeadAttention:
            return MultiHeadAttention(
                self.num_heads,
                use_bias=False,
                initialization="pytorch",
                out_initialization="pytorch",
                name=name,
            )

        y = GroupNorm(self.norm_groups, epsilon=1e-6, name="norm")(x)
        y = Conv(features, 1, name="proj_in")(y).reshape(x.shape[0], -1, features)
        y = y + attention("self_attention")(LayerNorm(name="norm1")(y))[0]
        y = y + attention("cross_attention")(LayerNorm(name="norm2")(y), context, mask=mask)[0]
        # GEGLU (Shazeer 2020).
        hidden = Linear(8 * features, name="gate")(LayerNorm(name="norm3")(y))
        value, gate = jnp.split(hidden, 2, axis=-1)
        y = y + Linear(features, name="down")(value * activation("gelu")(gate))
        return x + Conv(features, 1, name="proj_out")(y.reshape(x.shape))


class UNet(nn.Module):
    """Predicts what a noise schedule asks for, given a noisy image, its step and a context.

    The image is halved from level to level and doubled on the way back, where each level also sees
    the image of that level on the way down. Verified against diffusers'
    ``UNet2DConditionModel`` with ``CrossAttnDownBlock2D`` and ``DownBlock2D``, their counterparts,
    and ``UNetMidBlock2DCrossAttn``.

    Attributes:
        channels: number of channels of the image and of the prediction.
        features: channels at each level, from the whole image down; divisible by ``norm_groups``.
        attention: whether each level attends to the context; the lowest point always does.
        layers_per_level: residual blocks of a level on the way down; one more on the way back.
        num_heads: number of attention heads; divides the features where there is attention.
        norm_groups: groups of the normalisations.
        dropout_rate: share of the second convolutions' inputs that is set to zero in training.
        scale_shift: see ``ResidualBlock`` (``resnet_time_scale_shift="scale_shift"``).
    """

    channels: int = 3
    features: tuple[int, ...] = (320, 640, 1280, 1280)
    attention: tuple[bool, ...] = (True, True, True, False)
    layers_per_level: int = 2
    num_heads: int = 8
    norm_groups: int = 32
    dropout_rate: float = 0.0
    scale_shift: bool = False

    @nn.compact
    def __call__(
        self,
        image: Image,
        step: Int[Array, " batch"] | Float[Array, " batch"],
        context: Context,
        context_mask: ContextMask | None = None,
        *,
        vector: Vector | None = None,
        train: bool = False,
    ) -> Image:
        """Returns the prediction.

        Args:
            image: the noisy image.
            step: step of the noise schedule.
            context: vectors to attend to, such as those of a caption's tokens.
            context_mask: True for the vectors that count; None: all do.
            vector: what every block should know, such as a class (``class_embed_type="identity"``);
                four times as wide as the first features, and added to the vector of the time. None:
                nothing.
            train: whether to drop out.

        Raises:
            UserError: the images do not fit (see ``check_images``) or cannot be halved so often, or
                an attribute does not fit.
        """
        check_images("UNet", image, self.channels)
        levels = len(self.features)
        if len(self.attention) != levels:
            raise UserError(
                f"UNet: attention={self.attention} must have as many entries as "
                f"features={self.features}"
            )
        if any(side % 2 ** (levels - 1) for side in image.shape[1:3]):
            raise UserError(
                f"UNet: height and width of the image {image.shape} must be multiples of "
                f"{2 ** (levels - 1)}, to be halved {levels - 1} times"
            )

        def block(name: str, x: Image, features: int) -> Image:
            made = ResidualBlock(
                features, self.norm_groups, self.dropout_rate, self.scale_shift, name=name
            )
            return made(x, time, train=train)

        def attend(name: str, x: Image) -> Image:
            made = SpatialTransformer(self.num_heads, self.norm_groups, name=name)
            return made(x, context, context_mask)

        exact = jnp.promote_types(image.dtype, jnp.float32)
        time = sinusoidal(step.astype(exact), self.features[0], interleaved=False)
        time = Linear(4 * self.features[0], name="time1")(time.astype(image.dtype))
        time = Linear(4 * self.features[0], name="time2")(jax.nn.silu(time))
        if vector is not None:
            time = time + vector

        x = Conv(self.features[0], 3, padding=1, name="conv_in")(image)
        seen = [x]
        for level, features in enumerate(self.features):
            for layer in range(self.layers_per_level):
                x = block(f"down{level}_block{layer}", x, features)
                if self.attention[level]:
                    x = attend(f"down{level}_attention{layer}", x)
                seen.append(x)
            if level < levels - 1:
                x = Conv(features, 3, strides=2, padding=1, name=f"down{level}_halve")(x)
                seen.append(x)

        x = block("middle_block0", x, self.features[-1])
        x = attend("middle_attention", x)
        x = block("middle_block1", x, self.features[-1])

        for level, features in reversed(list(enumerate(self.features))):
            for layer in range(self.layers_per_level + 1):
                x = jnp.concatenate([x, seen.pop()], axis=-1)
                x = block(f"up{level}_block{layer}", x, features)
                if self.attention[level]:
                    x = attend(f"up{level}_attention{layer}", x)
            if level > 0:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
                x = Conv(features, 3, padding=1, name=f"up{level}_double")(x)

        x = jax.nn.silu(GroupNorm(self.norm_groups, name="norm_out")(x))
        return Conv(self.channels, 3, padding=1, name="conv_out")(x)
