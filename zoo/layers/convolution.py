"""Convolution over images."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float

from zoo.axes import constrain_rows
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
        padding: number of zeros added on each side of height and width. ``SAME`` is not supported:
            with strides above 1 it pads differently from the reference implementations.
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
            UserError: the input is not 4-D, an attribute is not a number or pair as described, the
                groups do not divide the channels, or the window does not fit into the padded image.
        """
        owner = _name(self)
        kernel_size = pair(owner, "kernel_size", self.kernel_size)
        strides = pair(owner, "strides", self.strides)
        padding = pair(owner, "padding", self.padding, least=0)
        dilation = pair(owner, "dilation", self.dilation)
        if x.ndim != 4:
            raise UserError(
                f"{owner}: the input {x.shape} must be [batch, height, width, channels]"
            )
        channels = x.shape[-1]
        if not _is_whole(self.groups, 1):
            raise UserError(f"{owner}: groups={self.groups!r} must be an integer of at least 1")
        if channels % self.groups or self.features % self.groups:
            raise UserError(
                f"{owner}: groups={self.groups} must divide {channels} input channels and "
                f"features={self.features}"
            )
        for size, k, p, d in zip(x.shape[1:3], kernel_size, padding, dilation, strict=True):
            if size + 2 * p < d * (k - 1) + 1:
                raise UserError(
                    f"{owner}: the image {x.shape[1:3]} with padding {padding} is smaller "
                    f"than the window: kernel_size {kernel_size}, dilation {dilation}"
                )
        shape = (*kernel_size, channels // self.groups, self.features)
        kernel_init, bias_init = kernel_and_bias(self.initialization, math.prod(shape[:-1]))
        kernel = self.param("kernel", kernel_init, shape)
        x, kernel = nn.dtypes.promote_dtype(x, kernel)
        y = constrain_rows(convolve(x, kernel, Window(strides, padding, dilation, self.groups)))
        if self.use_bias:
            y = y + self.param("bias", bias_init, (self.features,))
        return y


def pair(owner: str, name: str, value: int | Pair, *, least: int = 1) -> Pair:
    """Returns (height, width) for one number or two.

    Args:
        owner: what has the argument or attribute, for the message.
        name: its name.
        value: what was given.
        least: smallest number that is allowed.

    Raises:
        UserError: the value is neither an integer nor a pair of integers, or is below ``least``.
    """
    both: Any = (value, value) if isinstance(value, int | np.integer) else value
    if (
        isinstance(both, tuple | list)
        and len(both) == 2
        and all(_is_whole(number, least) for number in both)
    ):
        return int(both[0]), int(both[1])
    fix = ""
    if name == "padding" and isinstance(value, str):
        fix = (
            ". Names of paddings are not supported: give size // 2 for what 'SAME' does to windows "
            "of odd size at strides of 1, and 0 for 'VALID'"
        )
    raise UserError(
        f"{owner}: {name}={value!r} must be an integer of at least {least}, or two of them, "
        f"(height, width){fix}"
    )


def _is_whole(number: Any, least: int) -> bool:
    if isinstance(number, bool) or not isinstance(number, int | np.integer):
        return False
    return int(number) >= least


def _name(module: nn.Module) -> str:
    return module.name or type(module).__name__
