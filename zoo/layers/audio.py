"""Sound as a network reads it: log-mel features, computed on the device."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zoo.errors import UserError


def mel_filters(
    num_mels: int, fft_size: int, sample_rate: int, *, low: float = 0.0, high: float | None = None
) -> Float[np.ndarray, "bins mels"]:
    """Returns triangular filters, evenly spaced on the mel scale of HTK, each of height 1.

    ``torchaudio.functional.melscale_fbanks`` with its defaults; mel = 2595 log10(1 + f / 700).

    Args:
        num_mels: number of filters.
        fft_size: length of the Fourier transform; there are ``fft_size // 2 + 1`` bins.
        sample_rate: samples a second.
        low: where the first filter begins, in hertz.
        high: where the last ends; None: half of the sample rate.

    Raises:
        UserError: the range is empty or above half of the sample rate, or so many filters are so
            narrow that some hold no bin.
    """
    high = sample_rate / 2 if high is None else high
    if not 0 <= low < high <= sample_rate / 2:
        raise UserError(
            f"mel_filters: low={low}, high={high} must be a range between 0 and "
            f"sample_rate / 2 = {sample_rate / 2}"
        )
    bins = np.linspace(0, sample_rate / 2, fft_size // 2 + 1)
    ends = 2595 * np.log10(1 + np.array([low, high]) / 700)
    corners = 700 * (10 ** (np.linspace(ends[0], ends[1], num_mels + 2) / 2595) - 1)
    left, middle, right = corners[:-2], corners[1:-1], corners[2:]
    rising = (bins[:, None] - left) / (middle - left)
    falling = (right - bins[:, None]) / (right - middle)
    filters = np.maximum(0, np.minimum(rising, falling))
    if empty := np.flatnonzero(~filters.any(axis=0)).tolist():
        raise UserError(
            f"mel_filters: num_mels={num_mels} is too many for fft_size={fft_size}: the filters "
            f"{empty} hold no bin"
        )
    return filters


def log_mel(
    samples: Float[Array, "batch time"],
    filters: Float[np.ndarray, "bins mels"],
    *,
    hop: int,
    floor: float = 1e-6,
) -> Float[Array, "batch frames mels"]:
    """Returns the logarithm of the energy in each filter, frame by frame.

    The power spectrum of ``torch.stft`` with a periodic Hann window and ``center=False``: frame
    ``k`` begins at sample ``k * hop``.

    Args:
        samples: sound, at least one window long.
        filters: as ``mel_filters`` makes them; they give the window's length.
        hop: samples from one frame to the next.
        floor: added to the energies, so that silence has a logarithm.

    Raises:
        UserError: the sound is shorter than a window.
    """
    size = 2 * (len(filters) - 1)
    if samples.shape[-1] < size:
        raise UserError(f"log_mel: {samples.shape[-1]} samples are fewer than a window of {size}")
    starts = np.arange(num_frames(samples.shape[-1], size, hop)) * hop
    frames = samples[:, starts[:, None] + np.arange(size)]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    # Products with cosines and sines: on short windows faster than a transform, and on any device.
    angles = 2 * np.pi * np.outer(np.arange(size), np.arange(len(filters))) / size
    real, imaginary = (
        jnp.einsum("bft,tk->bfk", frames, jnp.asarray(window[:, None] * part, samples.dtype))
        for part in (np.cos(angles), np.sin(angles))
    )
    power = jnp.square(real) + jnp.square(imaginary)
    return jnp.log(power @ jnp.asarray(filters, samples.dtype) + floor)


def num_frames(samples: Any, size: int, hop: int) -> Any:
    """Returns how many whole windows fit in a number of samples, 0 or less where none does."""
    return 1 + (samples - size) // hop
