"""Models of sequences in PyTorch, of its own layers: what ours are compared with and timed beside.

Their names for weights are those of ``zoo.pretrained.rnn_table``.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

LAYERS: dict[str, Any] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def packed(layers: Any, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Runs recurrent layers over padded sequences, PyTorch's own way; outputs after them are 0."""
    given = nn.utils.rnn.pack_padded_sequence(
        x, lengths.cpu(), batch_first=True, enforce_sorted=False
    )
    outputs, _ = nn.utils.rnn.pad_packed_sequence(
        layers(given)[0], batch_first=True, total_length=x.shape[1]
    )
    return outputs


class LanguageModel(nn.Module):
    """``zoo.models.RNN``."""

    def __init__(
        self, cell: str, vocab: int, embed_features: int, features: int, num_layers: int
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, embed_features)
        self.rnn = LAYERS[cell](embed_features, features, num_layers=num_layers, batch_first=True)
        self.output = nn.Linear(features, vocab)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the logits of each next token."""
        return self.output(self.rnn(self.embed(tokens))[0])


class SpeechRecognizer(nn.Module):
    """``zoo.models.SpeechRecognizer``, its features by ``torch.stft``."""

    def __init__(
        self,
        filters: np.ndarray,
        symbols: int,
        features: int,
        num_layers: int,
        *,
        hop: int,
        stack: int,
    ) -> None:
        super().__init__()
        self.size, self.hop, self.stack = 2 * (len(filters) - 1), hop, stack
        self.filters = torch.tensor(filters)
        self.rnn = nn.LSTM(
            stack * filters.shape[1], features, num_layers, batch_first=True, bidirectional=True
        )
        self.output = nn.Linear(2 * features, symbols)

    def forward(
        self, samples: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns logits, and how many of each row's frames count."""
        window = torch.hann_window(self.size, dtype=samples.dtype)
        spectrum = torch.stft(
            samples, self.size, hop_length=self.hop, window=window, center=False,
            return_complex=True,
        )  # fmt: skip
        energies = spectrum.abs().square().transpose(1, 2) @ self.filters.to(samples.dtype)
        mels = torch.log(energies + 1e-6) / 5 + 1.5
        stacks = mels.shape[1] // self.stack
        x = mels[:, : self.stack * stacks].reshape(len(mels), stacks, -1)
        counted = (1 + (lengths - self.size) // self.hop) // self.stack
        return self.output(packed(self.rnn, x, counted)), counted


class TextClassifier(nn.Module):
    """``zoo.models.TextClassifier`` with LSTM layers."""

    def __init__(
        self, classes: int, vocab: int, embed_features: int, features: int, layers: int
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, embed_features)
        self.rnn = nn.LSTM(embed_features, features, layers, batch_first=True, bidirectional=True)
        self.output = nn.Linear(2 * features, classes)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        x = packed(self.rnn, self.embed(tokens), lengths)
        counts = torch.arange(x.shape[1]) < lengths[:, None]
        return self.output(x.masked_fill(~counts[..., None], -torch.inf).amax(dim=1))


class Forecaster(nn.Module):
    """``zoo.models.Forecaster`` with three quantiles."""

    def __init__(
        self, horizon: int, period: float, cell: str, features: int, num_layers: int
    ) -> None:
        super().__init__()
        self.horizon, self.period = horizon, period
        self.rnn = LAYERS[cell](3, features, num_layers=num_layers, batch_first=True)
        self.output = nn.Linear(features, horizon * 3)

    def forward(self, series: torch.Tensor, phase: torch.Tensor) -> torch.Tensor:
        """Returns quantiles."""
        last = series[:, -1:]
        spread = series.std(dim=1, keepdim=True, correction=0) + 1e-6
        places = torch.arange(-series.shape[1] + 1, 1)
        weeks = (phase[:, None] + places).to(series.dtype)
        angle = 2 * torch.pi * weeks / self.period
        x = torch.stack([(series - last) / spread, angle.sin(), angle.cos()], dim=-1)
        made = self.output(self.rnn(x)[0][:, -1]).reshape(-1, self.horizon, 3)
        rises = nn.functional.softplus(made[..., 1:], threshold=100.0)
        quantiles = torch.cat([made[..., :1], rises], dim=-1).cumsum(dim=-1)
        return last[..., None] + spread[..., None] * quantiles
