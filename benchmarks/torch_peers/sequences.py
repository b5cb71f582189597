"""Models of sequences in PyTorch, of its own layers: what ours are compared with and timed beside.

Their names for weights are those of the tables in ``zoo.families``.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

LAYERS: dict[str, Any] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def recurrent(
    cell: str, inputs: int, features: int, layers: int, dropout_rate: float, **options: Any
) -> Any:
    """Returns PyTorch's layers; it drops out between layers, so one layer takes no rate."""
    rate = dropout_rate if layers > 1 else 0.0
    return LAYERS[cell](inputs, features, layers, batch_first=True, dropout=rate, **options)


def carried(state: Any, goes_on: torch.Tensor) -> Any:
    """Returns the state after a batch as the start of the next; rows with 0 begin with zeros."""
    if isinstance(state, tuple):
        return tuple(carried(array, goes_on) for array in state)
    return state.detach() * goes_on[None, :, None]


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
        self,
        cell: str,
        vocab: int,
        embed_features: int,
        features: int,
        num_layers: int,
        dropout_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, embed_features)
        self.rnn = recurrent(cell, embed_features, features, num_layers, dropout_rate)
        self.output = nn.Linear(features, vocab)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the logits of each next token."""
        return self.read(tokens)[0]

    def read(self, tokens: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        """Returns the logits of each next token, and the state after the last."""
        outputs, state = self.rnn(self.dropout(self.embed(tokens)), state)
        return self.output(self.dropout(outputs)), state


class SpeechRecognizer(nn.Module):
    """``zoo.models.SpeechRecognizer``, its features by ``torch.stft``."""

    def __init__(
        self,
        filters: np.ndarray,
        symbols: int,
        features: int,
        num_layers: int,
        dropout_rate: float = 0.0,
        *,
        hop: int,
        stack: int,
    ) -> None:
        super().__init__()
        self.size, self.hop, self.stack = 2 * (len(filters) - 1), hop, stack
        self.filters = torch.tensor(filters)
        inputs = stack * filters.shape[1]
        self.rnn = recurrent("lstm", inputs, features, num_layers, dropout_rate, bidirectional=True)
        self.output = nn.Linear(2 * features, symbols)
        self.dropout = nn.Dropout(dropout_rate)

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
        return self.output(self.dropout(packed(self.rnn, x, counted))), counted


class TextClassifier(nn.Module):
    """``zoo.models.TextClassifier`` with LSTM layers."""

    def __init__(
        self,
        classes: int,
        vocab: int,
        embed_features: int,
        features: int,
        layers: int,
        dropout_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, embed_features)
        self.rnn = recurrent(
            "lstm", embed_features, features, layers, dropout_rate, bidirectional=True
        )
        self.output = nn.Linear(2 * features, classes)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        x = packed(self.rnn, self.dropout(self.embed(tokens)), lengths)
        counts = torch.arange(x.shape[1]) < lengths[:, None]
        largest = x.masked_fill(~counts[..., None], -torch.inf).amax(dim=1)
        return self.output(self.dropout(largest))


class Forecaster(nn.Module):
    """``zoo.models.Forecaster`` with three quantiles."""

    def __init__(
        self,
        horizon: int,
        period: float,
        cell: str,
        features: int,
        num_layers: int,
        dropout_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.horizon, self.period = horizon, period
        self.rnn = recurrent(cell, 3, features, num_layers, dropout_rate)
        self.output = nn.Linear(features, horizon * 3)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, series: torch.Tensor, phase: torch.Tensor) -> torch.Tensor:
        """Returns quantiles."""
        last = series[:, -1:]
        spread = series.std(dim=1, keepdim=True, correction=0) + 1e-6
        places = torch.arange(-series.shape[1] + 1, 1)
        weeks = (phase[:, None] + places).to(series.dtype)
        angle = 2 * torch.pi * weeks / self.period
        x = torch.stack([(series - last) / spread, angle.sin(), angle.cos()], dim=-1)
        state = self.dropout(self.rnn(x)[0][:, -1])
        made = self.output(state).reshape(-1, self.horizon, 3)
        rises = F.softplus(made[..., 1:], threshold=100.0)
        quantiles = torch.cat([made[..., :1], rises], dim=-1).cumsum(dim=-1)
        return last[..., None] + spread[..., None] * quantiles


class Projection(nn.Module):
    """A linear layer whose weights are [in, out], as GPT-2's are."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the products, and the bias added."""
        return F.linear(x, self.weight.T, self.bias)


class Attention(nn.Module):
    """Each position sees itself and the earlier ones."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = Projection(features, 3 * features)
        self.c_proj = Projection(features, features, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns what is found."""
        batch, time, features = x.shape
        q, k, v = self.c_attn(x).view(batch, time, 3 * self.heads, -1).transpose(1, 2).chunk(3, 1)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(found.transpose(1, 2).reshape(batch, time, features))


class Block(nn.Module):
    """Attention and two linear layers, each normalised before and added."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = (nn.LayerNorm(features, bias=False) for _ in range(2))
        self.attn = Attention(features, heads)
        self.mlp = nn.ModuleDict(
            {
                "c_fc": Projection(features, 4 * features),
                "c_proj": Projection(4 * features, features),
            }
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Adds what both parts find."""
        x = x + self.attn(self.ln_1(x))
        hidden = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")
        return x + self.mlp["c_proj"](hidden)


class GPT(nn.Module):
    """``zoo.models.GPT`` with ``use_bias=False`` and without dropout, made as nanoGPT is."""

    def __init__(self, vocab: int, context: int, layers: int, heads: int, features: int) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab, features),
                "wpe": nn.Embedding(context, features),
                "h": nn.Sequential(*(Block(features, heads) for _ in range(layers))),
                "ln_f": nn.LayerNorm(features, bias=False),
            }
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the logits of each next token."""
        parts: Any = self.transformer
        x = parts["wte"](tokens) + parts["wpe"](torch.arange(tokens.shape[1]))
        return F.linear(parts["ln_f"](parts["h"](x)), parts["wte"].weight)


class Transformer(nn.Module):
    """``zoo.models.Transformer`` with untied weights and sinusoidal positions."""

    def __init__(
        self,
        source_vocab: int,
        target_vocab: int,
        features: int,
        heads: int,
        encoder_layers: int,
        decoder_layers: int,
        hidden: int,
        dropout_rate: float = 0.1,
        max_length: int = 64,
        tie_weights: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.scale = features**0.5
        self.source_embed = nn.Embedding(source_vocab, features)
        self.target_embed = nn.Embedding(target_vocab, features)
        self.transformer = nn.Transformer(
            features, heads, encoder_layers, decoder_layers, hidden, dropout=dropout_rate,
            batch_first=True, **options,
        )  # fmt: skip
        self.output = nn.Linear(features, target_vocab, bias=not tie_weights)
        if tie_weights:
            self.output.weight = self.target_embed.weight
        self.dropout = nn.Dropout(dropout_rate)
        # Section 3.5, written anew.
        position = torch.arange(max_length, dtype=torch.float64)[:, None]
        rate = 10_000 ** (-torch.arange(0, features, 2, dtype=torch.float64) / features)
        table = torch.stack([torch.sin(position * rate), torch.cos(position * rate)], -1)
        self.register_buffer("positions", table.flatten(1), persistent=False)

    def forward(
        self,
        source: torch.Tensor,
        target: torch.Tensor,
        source_counts: torch.Tensor,
        target_counts: torch.Tensor,
    ) -> torch.Tensor:
        """Returns the logits of each next target token; the counts are False for padding."""
        time = target.shape[1]
        hidden = self.transformer(
            self._embedded(self.source_embed(source)),
            self._embedded(self.target_embed(target)),
            tgt_mask=torch.ones(time, time).triu(1).bool(),
            tgt_is_causal=True,
            src_key_padding_mask=~source_counts,
            memory_key_padding_mask=~source_counts,
            tgt_key_padding_mask=~target_counts,
        )
        return self.output(hidden)

    def _embedded(self, vectors: torch.Tensor) -> torch.Tensor:
        table: Any = self.positions
        return self.dropout(vectors * self.scale + table[: vectors.shape[1]].to(vectors.dtype))
