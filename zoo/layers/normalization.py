"""Normalisation of features."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.errors import UserError


class LayerNorm(nn.Module):
    """Mean 0 and variance 1 over the last axis (Ba et al. 2016), as ``torch.nn.LayerNorm``.

    Parameters: ``scale [features]``, ``bias [features]``. Statistics are in float32 at least.

    Attributes:
        epsilon: added to the variance.
        use_bias: whether there is a bias.
    """

    epsilon: float = 1e-5
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        """Normalises each vector."""
        features = x.shape[-1]
        y = _standardize(x, (-1,), self.epsilon) * self.param("scale", _ones, (features,))
        return y + self.param("bias", _zeros, (features,)) if self.use_bias else y


class RMSNorm(nn.Module):
    """Root mean square 1 over the last axis (Zhang and Sennrich 2019), as ``torch.nn.RMSNorm``.

    Parameter: ``scale [features]``. The mean square is in float32 at least.

    Attributes:
        epsilon: added to the mean square.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        """Divides each vector by the root of its mean square."""
        exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean_square = jnp.square(exact).mean(axis=-1, keepdims=True)
        y = (exact * jax.lax.rsqrt(mean_square + self.epsilon)).astype(x.dtype)
        return y * self.param("scale", _ones, (x.shape[-1],))


class GroupNorm(nn.Module):
    """Mean 0 and variance 1 over groups of channels of an image (Wu and He 2018).

    As ``torch.nn.GroupNorm``, channels last. Parameters: ``scale [channels]``, ``bias [channels]``.

    Attributes:
        num_groups: number of groups; divides the channels.
        epsilon: added to the variance.
    """

    num_groups: int = 32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *space channels"]
    ) -> Float[Array, "batch *space channels"]:
        """Normalises each group of each image.

        Raises:
            UserError: the groups do not divide the channels.
        """
        channels = x.shape[-1]
        if channels % self.num_groups:
            raise UserError(f"GroupNorm: num_groups={self.num_groups} must divide {channels}")
        groups = x.reshape(*x.shape[:-1], self.num_groups, channels // self.num_groups)
        axes = (*range(1, x.ndim - 1), x.ndim)
        y = _standardize(groups, axes, self.epsilon).reshape(x.shape)
        scale = self.param("scale", _ones, (channels,))
        return y * scale + self.param("bias", _zeros, (channels,))


class BatchNorm(nn.Module):
    """Mean 0 and variance 1 of each channel over a batch (Ioffe and Szegedy 2015).

    As ``torch.nn.BatchNorm2d``, channels last: batches are divided by their own deviation, the
    running variance is the unbiased one, and evaluation uses the running statistics. Over several
    devices the statistics are those of the whole batch. Parameters: ``scale [channels]``,
    ``bias [channels]``; collection ``batch_stats``: ``mean [channels]``, ``var [channels]``.

    Attributes:
        momentum: weight of the newest batch in the running statistics; PyTorch's convention.
        epsilon: added to the variance.
        scale_init: first value of every ``scale``.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    scale_init: float = 1.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *space channels"],
        *,
        train: bool = False,
        mask: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch *space channels"]:
        """Normalises.

        Args:
            x: features.
            train: whether to use and to learn from the batch's statistics.
            mask: 1 for a row that counts in them, 0 for padding; None: all do.
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.constant(self.scale_init), (channels,))
        bias = self.param("bias", _zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if not train:
            mean, variance = running_mean.value, running_var.value
        else:
            axes = tuple(range(x.ndim - 1))
            rows = jnp.ones(x.shape[0], exact.dtype) if mask is None else mask.astype(exact.dtype)
            weight = rows.reshape(-1, *(1,) * (x.ndim - 1))
            count = rows.sum() * math.prod(x.shape[1:-1])
            mean = (exact * weight).sum(axes) / jnp.maximum(count, 1)
            variance = (jnp.square(exact - mean) * weight).sum(axes) / jnp.maximum(count, 1)
            if not self.is_initializing():
                # A part of a batch that is all padding teaches nothing.
                share = jnp.where(count > 0, self.momentum, 0.0)
                unbiased = variance * count / jnp.maximum(count - 1, 1)
                running_mean.value = _towards(running_mean.value, mean, share)
                running_var.value = _towards(running_var.value, unbiased, share)
        y = (exact - mean) * jax.lax.rsqrt(variance + self.epsilon)
        return (y * scale + bias).astype(x.dtype)


_ones, _zeros = nn.initializers.ones, nn.initializers.zeros


def _standardize(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = exact - exact.mean(axis=axes, keepdims=True)
    variance = jnp.square(centred).mean(axis=axes, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


def _towards(old: Array, new: Array, share: Array) -> Array:
    return (old + share * (jax.lax.stop_gradient(new) - old)).astype(old.dtype)
