"""Vectors for tokens."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zoo.axes import constrain
from zoo.errors import UserError


class Embed(nn.Module):
    """A learnt vector for each token, as ``torch.nn.Embedding``.

    Parameter: ``embedding [vocab_size, features]``.

    Attributes:
        vocab_size: number of tokens.
        features: width of a vector.
        std: standard deviation of the initial values; PyTorch's is 1.
    """

    vocab_size: int
    features: int
    std: float = 1.0

    def setup(self) -> None:
        """Makes the parameter, for both uses."""
        self.embedding = self.param(
            "embedding", nn.initializers.normal(self.std), (self.vocab_size, self.features)
        )

    def __call__(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch features"]:
        """Returns the vectors of tokens, each at least 0 and below ``vocab_size``.

        Compiled code cannot raise an error: there a token outside of this range gets a vector of
        nan. Nan spreads to the loss, and the train step that meets it marks its state as unhealthy
        and changes nothing (see ``zoo.training.step``).

        Raises:
            UserError: the tokens are not integers or, where their values are known, one is out of
                range.
        """
        name = self.name or "Embed"
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise UserError(f"{name}: the tokens are {tokens.dtype}, they must be integers")
        if not isinstance(tokens, jax.core.Tracer):
            known = np.asarray(tokens)
            outside = known[(known < 0) | (known >= self.vocab_size)]
            if outside.size:
                raise UserError(
                    f"{name}: the token {outside[0]} is out of range: with "
                    f"vocab_size={self.vocab_size}, tokens are from 0 to {self.vocab_size - 1}. "
                    "Encode the text with the model's own vocabulary, or make the model larger"
                )
        # Unlike ``take``, which counts negative tokens from the end.
        rows = self._gathered().at[tokens]
        return rows.get(mode="fill", wrap_negative_indices=False)

    def logits(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch vocab"]:
        """Returns the product with every token's vector: output weights tied to the input's."""
        return x @ self._gathered().T

    def _gathered(self) -> Float[Array, "vocab features"]:
        """Returns the vectors, each of them whole on a device that has it.

        Otherwise a table that is divided along the features would pass this on to every position.
        """
        return constrain(jnp.asarray(self.embedding), ..., None)
