"""Normalisation of features."""

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


_ones, _zeros = nn.initializers.ones, nn.initializers.zeros


def _standardize(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = exact - exact.mean(axis=axes, keepdims=True)
    variance = jnp.square(centred).mean(axis=axes, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)
