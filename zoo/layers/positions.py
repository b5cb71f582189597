"""Where a token stands in its sequence."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def sinusoidal(
    positions: Int[Array, "*batch"] | Float[Array, "*batch"],
    features: int,
    *,
    longest: float = 10_000.0,
    interleaved: bool = True,
    shift: float = 0.0,
) -> Float[Array, "*batch features"]:
    """Returns sines and cosines of positions, of wavelengths from 2π to ``longest`` times 2π.

    Args:
        positions: any numbers.
        features: width of the result, even.
        longest: ratio of the longest to the shortest wavelength.
        interleaved: sine and cosine of a wavelength side by side (Vaswani et al. 2017, section
            3.5); False: all cosines, then all sines, as the timesteps of diffusers'
            ``UNet2DConditionModel``.
        shift: subtracted from the number of wavelengths where they are spread.

    Raises:
        ValueError: ``features`` is odd.
    """
    if features % 2:
        raise ValueError(f"features={features} must be even")
    half = features // 2
    # On the host in float64: in float32 the exponential is off by several units.
    rates = jnp.asarray([longest ** -(i / (half - shift)) for i in range(half)])
    # Angles in float32 at least: bfloat16 cannot tell large positions apart.
    dtype = jnp.promote_types(positions.dtype, jnp.float32)
    angles = positions[..., None].astype(dtype) * rates.astype(dtype)
    if interleaved:
        pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        return pairs.reshape(*positions.shape, features)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
