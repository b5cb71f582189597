"""Speech to text: log-mel features and bidirectional LSTMs (Graves et al. 2006, 2013)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.errors import UserError
from zoo.layers import Linear, Recurrent
from zoo.layers.audio import log_mel, mel_filters, num_frames


class SpeechRecognizer(nn.Module):
    """Features of sound, stacked frames, recurrent layers both ways, a symbol for each stack.

    The recurrent layers are ``torch.nn.LSTM``'s; the features torchaudio's.

    Attributes:
        num_symbols: number of outputs, the blank of CTC among them.
        sample_rate: samples a second.
        window: samples in a frame of the features.
        hop: samples from frame to frame.
        num_mels: features in a frame.
        stack: frames that are read at once (Sak et al. 2015).
        features: width of each direction's state.
        num_layers: number of recurrent layers.
        dropout_rate: share of each layer's outputs that is set to zero in training.
    """

    num_symbols: int = 11
    sample_rate: int = 8000
    window: int = 256
    hop: int = 80
    num_mels: int = 32
    stack: int = 3
    features: int = 128
    num_layers: int = 2
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(
        self,
        samples: Float[Array, "batch time"],
        lengths: Int[Array, " batch"],
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "batch frames symbols"], Int[Array, " batch"]]:
        """Returns logits, and the number of frames of each row that count.

        Args:
            samples: sound in [-1, 1].
            lengths: samples of each row that count.
            train: whether to drop out.

        Raises:
            UserError: the samples are not 2-D.
        """
        if samples.ndim != 2:
            raise UserError(f"SpeechRecognizer: the samples {samples.shape} must be [batch, time]")
        filters = mel_filters(self.num_mels, self.window, self.sample_rate)
        mels = log_mel(samples, filters, hop=self.hop)
        # About 0 and 1: silence has the logarithm of the floor, -13.8, speech around 0.
        mels = mels / 5 + 1.5
        batch, frames, _ = mels.shape
        stacks = frames // self.stack
        x = mels[:, : stacks * self.stack].reshape(batch, stacks, -1)
        counted = jnp.clip(self.count_frames(lengths), 0, stacks)
        x, _ = Recurrent(
            "lstm",
            self.features,
            self.num_layers,
            bidirectional=True,
            dropout_rate=self.dropout_rate,
            name="layers",
        )(x, lengths=counted, train=train)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return Linear(self.num_symbols, name="output")(x), counted

    def count_frames(self, samples: Any) -> Any:
        """Returns how many logits a number of samples gets, 0 or less where none does."""
        return num_frames(samples, self.window, self.hop) // self.stack
