"""Classes of texts: a bidirectional LSTM and the largest of its outputs (Conneau et al. 2017)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.errors import UserError
from zoo.layers import Embed, Linear, Recurrent


class TextClassifier(nn.Module):
    """Words' vectors, recurrent layers both ways, the largest output in time, a linear layer.

    Attributes:
        num_classes: number of outputs.
        vocab_size: number of words.
        cell: ``rnn`` (tanh), ``rnn_relu``, ``lstm`` or ``gru``.
        embed_features: width of the words' vectors.
        features: width of each direction's state.
        num_layers: number of recurrent layers.
        dropout_rate: share of the vectors, of each layer's outputs and of the classified features
            that is set to zero in training.
    """

    num_classes: int = 2
    vocab_size: int = 4000
    cell: str = "lstm"
    embed_features: int = 64
    features: int = 64
    num_layers: int = 1
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        lengths: Int[Array, " batch"],
        *,
        train: bool = False,
    ) -> Float[Array, "batch num_classes"]:
        """Returns logits.

        Args:
            tokens: words.
            lengths: number of words of each row that count; a row without words is read as its
                first word.
            train: whether to drop out.

        Raises:
            UserError: the tokens are not 2-D.
        """
        if tokens.ndim != 2:
            raise UserError(f"TextClassifier: the tokens {tokens.shape} must be [batch, time]")
        # The largest of no output would be no number, also in rows that only fill up a batch.
        lengths = jnp.maximum(lengths, 1)
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        x = dropout(Embed(self.vocab_size, self.embed_features, name="embed")(tokens))
        x, _ = Recurrent(
            self.cell,
            self.features,
            self.num_layers,
            bidirectional=True,
            dropout_rate=self.dropout_rate,
            name="layers",
        )(x, lengths=lengths, train=train)
        counts = jnp.arange(x.shape[1]) < lengths[:, None]
        largest = jnp.where(counts[..., None], x, -jnp.inf).max(axis=1)
        return Linear(self.num_classes, name="output")(dropout(largest))
