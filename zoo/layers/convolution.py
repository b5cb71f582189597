"""Convolution over images."""

import math

import flax.linen as nn
from jaxtyping import Array, Float

from zoo.errors import UserError
from zoo.layers.initializers import kernel_and_bias
from zoo.layers.tuned.convolution import Pair, Window, convolve


class Conv(nn.Module):
    """A two-dimensional convolution, as ``torch.nn.Conv2d``, channels last.

    Parameters: ``kernel [height, width, in / groups, features]``, ``bias [features]``. The
    arithmetic is in the common type of parameters and input.

    Attributes:
        features: number of output channels.
        kernel_size: height and width, or one number for both.
        strides: steps of the window along height and width.
        padding: zeros added on each side of height and width; always numbers, since ``SAME`` pads
            otherwise than the references where strides are above 1.
        dilation: distance between the kernel's taps.
        groups: number of groups of channels that do not see each other; divides both channels.
        use_bias: whether there is a bias.
        initialization: see ``zoo.layers.initializers.kernel_and_bias``.
    """

    features: int
    kernel_size: int | Pair = 3
    strides: int | Pair = 1
    padding: int | Pair = 0
    dilation: int | Pair = 1
    groups: int = 1
    use_bias: bool = True
    initialization: str | float = "pytorch"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch new_height new_width features"]:
        """Convolves.

        Raises:
            UserError: the input has no four axes, the groups do not divide the channels, or the
                window does not fit into the padded image.
        """
        if x.ndim != 4:
            raise UserError(
                f"{_name(self)}: the input {x.shape} must be [batch, height, width, channels]"
            )
        channels = x.shape[-1]
        if channels % self.groups or self.features % self.groups:
            raise UserError(
                f"{_name(self)}: groups={self.groups} must divide {channels} input channels and "
                f"features={self.features}"
            )
        kernel_size, padding, dilation = (
            pair(self.kernel_size),
            pair(self.padding),
            pair(self.dilation),
        )
        for size, k, p, d in zip(x.shape[1:3], kernel_size, padding, dilation, strict=True):
            if size + 2 * p < d * (k - 1) + 1:
                raise UserError(
                    f"{_name(self)}: the image {x.shape[1:3]} with padding {padding} is smaller "
                    f"than the window: kernel_size {kernel_size}, dilation {dilation}"
                )
        shape = (*kernel_size, channels // self.groups, self.features)
        kernel_init, bias_init = kernel_and_bias(self.initialization, math.prod(shape[:-1]))
        kernel = self.param("kernel", kernel_init, shape)
        x, kernel = nn.dtypes.promote_dtype(x, kernel)
        y = convolve(x, kernel, Window(pair(self.strides), padding, dilation, self.groups))
        if self.use_bias:
            y = y + self.param("bias", bias_init, (self.features,))
        return y


def pair(value: int | Pair) -> Pair:
    """Returns (height, width) for one number or two."""
    return (value, value) if isinstance(value, int) else value


def _name(module: nn.Module) -> str:
    return module.name or type(module).__name__
