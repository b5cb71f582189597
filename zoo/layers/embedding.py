"""Vectors for tokens."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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
        """Returns the vectors of tokens.

        Raises:
            UserError: the tokens are no integers.
        """
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise UserError(f"Embed: the tokens are {tokens.dtype}, they must be integers")
        return jnp.take(self.embedding, tokens, axis=0)

    def logits(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch vocab"]:
        """Returns the product with every token's vector: output weights tied to the input's."""
        return x @ self.embedding.T
