"""MobileNetV3 (Howard et al. 2019), as torchvision builds it."""

from __future__ import annotations

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from zoo.errors import UserError
from zoo.layers import BatchNorm, Conv, Linear, SqueezeExcitation
from zoo.layers.images import check_images

Image = Float[Array, "batch height width channels"]
Mask = Float[Array, " batch"]

# Tables 1 and 2: kernel, expanded and output channels, squeeze and excitation, h-swish, stride.
LARGE = (
    (3, 16, 16, False, False, 1), (3, 64, 24, False, False, 2), (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2), (5, 120, 40, True, False, 1), (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2), (3, 200, 80, False, True, 1), (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1), (3, 480, 112, True, True, 1), (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2), (5, 960, 160, True, True, 1), (5, 960, 160, True, True, 1),
)  # fmt: skip
SMALL = (
    (3, 16, 16, True, False, 2), (3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2), (5, 240, 40, True, True, 1), (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1), (5, 144, 48, True, True, 1), (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1), (5, 576, 96, True, True, 1),
)  # fmt: skip
SIZES = {"large": (LARGE, 1280), "small": (SMALL, 1024)}


class MobileNetV3(nn.Module):
    """A stem, inverted residual blocks, and two linear layers.

    Verified against torchvision's ``mobilenet_v3_large`` and ``mobilenet_v3_small``.

    Attributes:
        num_classes: number of outputs.
        size: ``large`` or ``small``.
        dropout_rate: share of the hidden layer that is set to zero in training.
        channels: number of channels of the images.
    """

    num_classes: int = 1000
    size: str = "large"
    dropout_rate: float = 0.2
    channels: int = 3

    @nn.compact
    def __call__(
        self, image: Image, *, train: bool = False, mask: Mask | None = None
    ) -> Float[Array, "batch num_classes"]:
        """Returns the logits of a batch of images.

        Args:
            image: images.
            train: whether to drop out, and to use and learn from the batch's statistics.
            mask: 1 for a row that counts in them; None: all do.

        Raises:
            UserError: the images do not fit (see ``check_images``), or ``size`` is unknown.
        """
        check_images("MobileNetV3", image, self.channels)
        if self.size not in SIZES:
            raise UserError(f"MobileNetV3: size={self.size!r} must be 'large' or 'small'")
        blocks, hidden = SIZES[self.size]

        def norm(name: str, x: Image) -> Image:
            return _norm(name)(x, train=train, mask=mask)

        x = _conv(16, 3, strides=2, name="stem")(image)
        x = jax.nn.hard_swish(norm("stem_bn", x))
        for index, (kernel, expanded, features, squeeze, swish, strides) in enumerate(blocks):
            x = InvertedResidual(
                kernel, expanded, features, squeeze, swish, strides, name=f"block{index}"
            )(x, train=train, mask=mask)
        x = _conv(6 * x.shape[-1], 1, name="last")(x)
        x = jax.nn.hard_swish(norm("last_bn", x)).mean(axis=(1, 2))
        x = jax.nn.hard_swish(Linear(hidden, initialization=0.01, name="fc1")(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return Linear(self.num_classes, initialization=0.01, name="fc2")(x)


class InvertedResidual(nn.Module):
    """Wider, filtered channel by channel, and narrow again (figure 4).

    Attributes:
        kernel_size: side of the filters.
        expanded: channels in between.
        features: channels of the result.
        squeeze: whether there is squeeze and excitation.
        swish: h-swish instead of ReLU.
        strides: strides of the filters.
    """

    kernel_size: int
    expanded: int
    features: int
    squeeze: bool
    swish: bool
    strides: int

    @nn.compact
    def __call__(self, x: Image, *, train: bool, mask: Mask | None) -> Image:
        """Adds the result of the layers to the input, where the shapes are equal."""
        act = jax.nn.hard_swish if self.swish else jax.nn.relu

        def norm(name: str, x: Image) -> Image:
            return _norm(name)(x, train=train, mask=mask)

        y = x
        if self.expanded != x.shape[-1]:
            y = act(norm("expand_bn", _conv(self.expanded, 1, name="expand")(y)))
        y = _conv(
            self.expanded,
            self.kernel_size,
            strides=self.strides,
            groups=self.expanded,
            name="depthwise",
        )(y)
        y = act(norm("depthwise_bn", y))
        if self.squeeze:
            width = _divisible(self.expanded // 4)
            y = SqueezeExcitation(width, gate=jax.nn.hard_sigmoid, name="squeeze")(y)
        y = norm("project_bn", _conv(self.features, 1, name="project")(y))
        return x + y if self.strides == 1 and x.shape[-1] == self.features else y


def _norm(name: str) -> BatchNorm:
    return BatchNorm(momentum=0.01, epsilon=1e-3, name=name)


def _conv(features: int, size: int, *, strides: int = 1, groups: int = 1, name: str) -> Conv:
    return Conv(
        features,
        size,
        strides=strides,
        padding=size // 2,
        groups=groups,
        use_bias=False,
        initialization="he_normal_out",
        name=name,
    )


def _divisible(channels: int) -> int:
    """The nearest multiple of 8, but not less than 90 % of what was asked for."""
    rounded = max(8, (channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
