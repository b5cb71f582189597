"""A recurrent language model (Mikolov et al. 2010), with plain, LSTM or GRU layers."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.errors import UserError
from zoo.layers import Embed, Linear, Recurrent
from zoo.layers.recurrence import States, initial_states


class RNN(nn.Module):
    """Embedding, recurrent layers, and a linear layer to the logits of the next token.

    The layers are those of ``torch.nn.RNN``, ``LSTM`` and ``GRU``, against which it is verified.

    Attributes:
        vocab_size: number of tokens.
        cell: ``rnn`` (tanh), ``rnn_relu``, ``lstm`` or ``gru``.
        embed_features: width of the tokens' vectors.
        features: width of the recurrent state.
        num_layers: number of recurrent layers.
        dropout_rate: share of the inputs of each recurrent layer and of the last layer that is set
            to zero in training (Zaremba et al. 2014).
        initialization: name of the layers' initialisation.
    """

    vocab_size: int = 256
    cell: str = "lstm"
    embed_features: int = 256
    features: int = 256
    num_layers: int = 2
    dropout_rate: float = 0.0
    initialization: str = "pytorch"

    recurrent: ClassVar[bool] = True

    def setup(self) -> None:
        """Makes the layers."""
        self.embed = Embed(self.vocab_size, self.embed_features)
        self.layers = Recurrent(
            self.cell,
            self.features,
            self.num_layers,
            dropout_rate=self.dropout_rate,
            initialization=self.initialization,
        )
        self.output = Linear(self.vocab_size, initialization=self.initialization)
        self.dropout = nn.Dropout(self.dropout_rate)

    def __call__(
        self, tokens: Int[Array, "batch time"], cache: States | None = None, *, train: bool = False
    ) -> tuple[Float[Array, "batch time vocab"], States]:
        """Returns the logits of each next token, and the state after the last.

        Args:
            tokens: the text.
            cache: the state before the first token; None: zeros.
            train: whether to drop out.

        Raises:
            UserError: the tokens are not 2-D, or the cache has another shape.
        """
        if tokens.ndim != 2:
            raise UserError(f"RNN: the tokens {tokens.shape} must be [batch, time]")
        return self.decode(self.embed(tokens), cache, train=train)

    def decode(
        self,
        embedded: Float[Array, "batch time features"],
        cache: States | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "batch time vocab"], States]:
        """Does what ``__call__`` does, given the vectors of the tokens."""
        x = self.dropout(embedded, deterministic=not train)
        x, cache = self.layers(x, cache, train=train)
        x = self.dropout(x, deterministic=not train)
        return self.output(x), cache

    def initial_cache(self, batch_size: int, max_length: int) -> States:
        """Returns the state before any token; it has the same size for every ``max_length``."""
        return initial_states(self.cell, self.features, self.num_layers, batch_size)


def gradient_by_distance(
    model: RNN,
    params: Any,
    tokens: Int[Array, "batch time"],
    targets: Int[Array, " batch"],
) -> Float[Array, "batch time"]:
    """Returns how strongly the loss at the last position depends on each earlier token.

    In a plain recurrence the gradient falls geometrically with the distance in time (Bengio et al.
    1994); gates carry it further.

    Args:
        model: the language model; without dropout.
        params: its parameters.
        tokens: the texts.
        targets: the token after each text.

    Returns:
        Norms of the gradient with respect to the vector of the token ``d`` steps before the last.
    """
    embedded: Any = model.apply(
        {"params": params}, tokens, method=lambda module, tokens: module.embed(tokens)
    )

    def loss(embedded: Float[Array, "batch time features"]) -> Float[Array, ""]:
        logits, _ = model.apply({"params": params}, embedded, method="decode")
        log_probabilities = jax.nn.log_softmax(logits[:, -1])
        return -jnp.take_along_axis(log_probabilities, targets[:, None], axis=-1).sum()

    return jnp.linalg.norm(jax.grad(loss)(embedded), axis=-1)[:, ::-1]
