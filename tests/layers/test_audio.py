"""Log-mel features against PyTorch's spectrum and Hugging Face's filters."""

import jax
import numpy as np
import peers
import pytest

from zoo.errors import UserError
from zoo.layers.audio import log_mel, mel_filters, num_frames


@pytest.mark.parametrize(("mels", "low", "high"), [(20, 0.0, None), (13, 60.0, 3400.0)])
def test_filters_are_torchaudios(mels, low, high):
    peers.transformers()
    from transformers.audio_utils import mel_filter_bank

    expected = mel_filter_bank(129, mels, low, high or 4000.0, 8000, norm=None, mel_scale="htk")
    np.testing.assert_allclose(
        mel_filters(mels, 256, 8000, low=low, high=high), expected, rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("length", [256, 300, 2003])
def test_energies_are_those_of_pytorchs_spectrum(length):
    torch = peers.torch()
    samples = np.random.default_rng(0).normal(size=(3, length))
    filters = mel_filters(20, 256, 8000)
    window = torch.hann_window(256, dtype=torch.double)
    spectrum = torch.stft(
        torch.tensor(samples), 256, hop_length=80, window=window, center=False, return_complex=True
    )
    power = spectrum.abs().square().numpy().transpose(0, 2, 1)
    with jax.enable_x64(True):
        found = log_mel(jax.numpy.asarray(samples), filters, hop=80)
    assert found.shape == (3, num_frames(length, 256, 80), 20)
    np.testing.assert_allclose(found, np.log(power @ filters + 1e-6), rtol=1e-9, atol=1e-9)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="must be a range between 0 and"):
        mel_filters(20, 256, 8000, high=5000.0)
    with pytest.raises(UserError, match="hold no bin"):
        mel_filters(80, 64, 8000)
    with pytest.raises(UserError, match="255 samples are fewer than a window of 256"):
        log_mel(np.zeros((1, 255)), mel_filters(20, 256, 8000), hop=80)
