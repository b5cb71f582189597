"""Sound as a network reads it: log-mel features, computed on the device."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zoo.errors import UserError


def mel_filters(
    num_mels: int,
    fft_size: int,
    sample_rate: int,
    *,
    low: float = 0.0,
    high: float | None = None,
    slaney: bool = False,
) -> Float[np.ndarray, "bins mels"]:
    """Returns triangular filters, evenly spaced on a mel scale.

    By default the scale is HTK's, mel = 2595 log10(1 + f / 700), and each filter has the height 1:
    ``torchaudio.functional.melscale_fbanks`` with its defaults.

    Args:
        num_mels: number of filters.
        fft_size: length of the Fourier transform; there are ``fft_size // 2 + 1`` bins.
        sample_rate: samples a second.
        low: where the first filter begins, in hertz.
        high: where the last ends; None: half of the sample rate.
        slaney: whether the scale is that of Slaney's Auditory Toolbox (1998), linear up to 1000 Hz
            and logarithmic above, and each filter has the area 1, as in ``librosa.filters.mel``.

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
    to_mel, to_hertz = (_slaney_mel, _slaney_hertz) if slaney else (_htk_mel, _htk_hertz)
    ends = to_mel(np.array([low, high]))
    corners = to_hertz(np.linspace(ends[0], ends[1], num_mels + 2))
    left, middle, right = corners[:-2], corners[1:-1], corners[2:]
    rising = (bins[:, None] - left) / (middle - left)
    falling = (right - bins[:, None]) / (right - middle)
    filters = np.maximum(0, np.minimum(rising, falling))
    if empty := np.flatnonzero(~filters.any(axis=0)).tolist():
        raise UserError(
            f"mel_filters: num_mels={num_mels} is too many for fft_size={fft_size}: the filters "
            f"{empty} hold no bin"
        )
    return filters * 2 / (right - left) if slaney else filters


Frequencies = Float[np.ndarray, " count"]


def _htk_mel(hertz: Frequencies) -> Frequencies:
    return 2595 * np.log10(1 + hertz / 700)


def _htk_hertz(mel: Frequencies) -> Frequencies:
    return 700 * (10 ** (mel / 2595) - 1)


# Slaney's scale has 15 mel up to 1000 Hz, and 27 for each factor of 6.4 above.
_CORNER, _CORNER_MEL = 1000.0, 15.0
_MEL_OF_E = 27 / np.log(6.4)


def _slaney_mel(hertz: Frequencies) -> Frequencies:
    above = _CORNER_MEL + _MEL_OF_E * np.log(np.maximum(hertz, _CORNER) / _CORNER)
    return np.where(hertz < _CORNER, hertz * _CORNER_MEL / _CORNER, above)


def _slaney_hertz(mel: Frequencies) -> Frequencies:
    above = _CORNER * np.exp((np.maximum(mel, _CORNER_MEL) - _CORNER_MEL) / _MEL_OF_E)
    return np.where(mel < _CORNER_MEL, mel * _CORNER / _CORNER_MEL, above)


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
    return jnp.log(_mel_energies(samples, filters, hop, None) + floor)


def whisper_features(
    samples: Float[Array, "batch time"],
    filters: Float[np.ndarray, "bins mels"],
    *,
    hop: int = 160,
    length: int = 480_000,
) -> Float[Array, "batch frames mels"]:
    """Returns the features that Whisper reads (Radford et al. 2022, section 2.2).

    They are those of Hugging Face's ``WhisperFeatureExtractor``, channels last. The sound is cut,
    or filled up with silence, to ``length``. Frame ``k`` has sample ``k * hop`` in its middle; what
    a window lacks at both ends is the sound mirrored. The logarithms are to base 10. Those more
    than 8 below the largest of a row are raised to that, and then ``(x + 4) / 4`` is returned.

    Args:
        samples: sound in [-1, 1], 16,000 samples a second in the published models.
        filters: as ``mel_filters(80, 400, 16_000, slaney=True)`` makes them, with 128 for the
            third large model.
        hop: samples from one frame to the next.
        length: samples that are read, 30 seconds in the published models; there are
            ``length // hop`` frames.

    Raises:
        UserError: the samples are not 2-D, or ``length`` is no longer than half of a window.
    """
    if samples.ndim != 2:
        raise UserError(f"whisper_features: the samples {samples.shape} must be [batch, time]")
    half = len(filters) - 1
    if length <= half:
        raise UserError(f"whisper_features: length={length} must be more than {half}")
    samples = samples[:, :length]
    samples = jnp.pad(samples, ((0, 0), (0, length - samples.shape[1])))
    samples = jnp.pad(samples, ((0, 0), (half, half)), mode="reflect")
    # A matrix unit's usual precision would drown quiet frequencies in the error of loud ones.
    energies = _mel_energies(samples, filters, hop, "highest")[:, : length // hop]
    logarithms = jnp.log10(jnp.maximum(energies, 1e-10))
    loudest = logarithms.max(axis=(1, 2), keepdims=True)
    return (jnp.maximum(logarithms, loudest - 8) + 4) / 4


def _mel_energies(
    samples: Float[Array, "batch time"],
    filters: Float[np.ndarray, "bins mels"],
    hop: int,
    precision: str | None,
) -> Float[Array, "batch frames mels"]:
    size = 2 * (len(filters) - 1)
    starts = np.arange(num_frames(samples.shape[-1], size, hop)) * hop
    frames = samples[:, starts[:, None] + np.arange(size)]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    # Products with cosines and sines: on short windows faster than a transform, and on any device.
    angles = 2 * np.pi * np.outer(np.arange(size), np.arange(len(filters))) / size
    real, imaginary = (
        jnp.einsum(
            "bft,tk->bfk",
            frames,
            jnp.asarray(window[:, None] * part, samples.dtype),
            precision=precision,
        )
        for part in (np.cos(angles), np.sin(angles))
    )
    power = jnp.square(real) + jnp.square(imaginary)
    return jnp.matmul(power, jnp.asarray(filters, samples.dtype), precision=precision)


def num_frames(samples: Any, size: int, hop: int) -> Any:
    """Returns how many whole windows fit in a number of samples, 0 or less where none does."""
    return 1 + (samples - size) // hop
