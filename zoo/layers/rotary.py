"""Rotary positions (Su et al. 2021, section 3.2), and how they are stretched over longer texts."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.errors import UserError

SCALINGS = ("default", "linear", "dynamic", "llama3", "yarn")

Rates = Float[Array, " half"]


class Scaling(NamedTuple):
    """How rotary positions are stretched; the names are those of transformers' ``rope_type``.

    Attributes:
        name: ``default``: not at all; ``linear``: every rate is divided by ``factor`` (Chen et al.
            2023, section 2.3); ``dynamic``: the base grows with the text's length once it is more
            than ``original_context`` (NTK-aware; Peng et al. 2023, section 3.1); ``llama3``: slow
            rates are divided (Grattafiori et al. 2024, as published with Llama 3.1); ``yarn``:
            slow rates are divided, and queries and keys are multiplied (Peng et al. 2023, section
            3.4).
        factor: how many times longer the texts become.
        original_context: the longest text before.
        rotations: how often a rate turns within the original context. One that turns less often
            than the first number is divided by ``factor``, one that turns more often than the
            second stays, and those between are mixed. Of ``llama3`` and ``yarn``, which call them
            ``low_freq_factor`` and ``high_freq_factor``, ``beta_slow`` and ``beta_fast``.
        attention_factor: what sines and cosines are multiplied by; 0: the usual, which is
            ``0.1 * log(factor) + 1`` for ``yarn`` and 1 for the others.
        truncate: whether ``yarn`` mixes from a whole pair of features to another.
    """

    name: str = "default"
    factor: float = 1.0
    original_context: int = 8192
    rotations: tuple[float, float] = (1.0, 4.0)
    attention_factor: float = 0.0
    truncate: bool = True


class Table(NamedTuple):
    """Cosines and sines of positions, one of each for a pair of features."""

    cosine: Float[Array, "#batch time half"]
    sine: Float[Array, "#batch time half"]


def rotary_rates(
    features: int,
    base: float,
    scaling: Scaling | None = None,
    length: int | Int[Array, ""] = 0,
) -> Rates:
    """Returns by which angle each pair of features turns from one position to the next.

    As transformers' ``ROPE_INIT_FUNCTIONS``.

    Args:
        features: width of a head, even.
        base: the ratio of the slowest wavelength to the fastest, above 1.
        scaling: how positions are stretched; None: not at all.
        length: the number of tokens so far, which only ``dynamic`` asks for.

    Raises:
        UserError: the width is odd, or the scaling is unknown.
    """
    scaling = scaling or Scaling()
    if features % 2 or features < 2:
        raise UserError(f"rotary positions turn pairs: {features} features of a head must be even")
    if scaling.name not in SCALINGS:
        raise UserError(f"rope_scaling={scaling.name!r} must be one of {', '.join(SCALINGS)}")
    half = features // 2
    if scaling.name == "dynamic":
        return _dynamic(features, base, scaling, length)
    # On the host in float64: in float32 a power is off by several units.
    rates = [base ** -(i / half) for i in range(half)]
    if scaling.name == "linear":
        rates = [rate / scaling.factor for rate in rates]
    elif scaling.name == "llama3":
        slow, fast = scaling.rotations
        for i, rate in enumerate(rates):
            turns = scaling.original_context * rate / (2 * math.pi)
            kept = min(max((turns - slow) / (fast - slow), 0.0), 1.0)
            rates[i] = rate * (kept + (1 - kept) / scaling.factor)
    elif scaling.name == "yarn":
        first, last = _mixed_pairs(features, base, scaling)
        for i, rate in enumerate(rates):
            divided = min(max((i - first) / (last - first), 0.0), 1.0)
            rates[i] = rate * (1 - divided + divided / scaling.factor)
    return jnp.asarray(rates)


def _dynamic(features: int, base: float, scaling: Scaling, length: int | Int[Array, ""]) -> Rates:
    half, factor, original = features // 2, scaling.factor, scaling.original_context
    if features == 2:
        return jnp.ones(1)  # whatever the base
    power = features / (features - 2)
    if isinstance(length, int):
        stretched = factor * max(length, original) / original - (factor - 1)
        base = base * stretched**power
        return jnp.asarray([base ** -(i / half) for i in range(half)])
    many = jnp.maximum(length, original).astype(jnp.result_type(float))
    growth = (factor * many / original - (factor - 1)) ** power
    pairs = jnp.arange(half) / half
    # The growth apart, which is near 1: a float32 power of the base would be less exact.
    return jnp.asarray([base ** -(i / half) for i in range(half)]) * growth**-pairs


def _mixed_pairs(features: int, base: float, scaling: Scaling) -> tuple[float, float]:
    """Returns between which pairs of features ``yarn`` mixes (Peng et al. 2023, equation 23)."""

    def turning(rotations: float) -> float:
        turns = scaling.original_context / (2 * math.pi * rotations)
        return features * math.log(turns) / (2 * math.log(base))

    slow, fast = scaling.rotations
    first, last = turning(fast), turning(slow)
    if scaling.truncate:
        first, last = float(math.floor(first)), float(math.ceil(last))
    first, last = max(first, 0.0), min(last, features - 1.0)
    return first, last if last != first else last + 0.001


def attention_factor(scaling: Scaling) -> float:
    """Returns what sines and cosines are multiplied by (Peng et al. 2023, equation 25)."""
    if scaling.attention_factor:
        return scaling.attention_factor
    return yarn_magnitude(scaling.factor) if scaling.name == "yarn" else 1.0


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """Returns by how much YaRN makes queries and keys longer for texts ``factor`` times as long."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def rotary_table(positions: Int[Array, "#batch time"], rates: Rates, factor: float = 1.0) -> Table:
    """Returns the cosines and sines of positions, times ``factor``, in float32 at least."""
    dtype = jnp.promote_types(rates.dtype, jnp.float32)
    angles = positions[..., None].astype(dtype) * rates.astype(dtype)
    return Table(factor * jnp.cos(angles), factor * jnp.sin(angles))


def rotate(
    x: Float[Array, "batch time heads head_features"], table: Table
) -> Float[Array, "batch time heads head_features"]:
    """Turns feature ``i`` of each head with feature ``i + half`` by the angles of its position.

    As transformers' ``apply_rotary_pos_emb``. The paper pairs neighbouring features instead; with
    queries and keys permuted alike, as published weights have them, it is the same.
    """
    cosine, sine = (part[:, :, None] for part in table)
    first, second = jnp.split(x, 2, axis=-1)
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
