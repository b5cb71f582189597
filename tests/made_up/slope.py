"""The made-up family: one slope for all points."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo import fields
from zoo.families import Family
from zoo.weights.tables import Entry


class Slope(nn.Module):
    """``y = slope * x``.

    Attributes:
        points: numbers in an example.
        first: the slope that it begins with.
    """

    points: int = 0
    first: float = 0.5

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch points"], *, train: bool = False
    ) -> Float[Array, "batch points"]:
        """Returns the line's values."""
        return x * self.param("slope", nn.initializers.constant(self.first), (1,))


FAMILY = Family(
    module=Slope,
    kind="line",
    sizes={"slope": {}, "steep": {"first": 3.0}},
    rules={"points": fields.at_least(0), "first": fields.between(-10, 10)},
    example=lambda module: {"x": jnp.zeros((1, max(module.points, 1)))},
    weights={"elsewhere": lambda module, params: [Entry("weight", "slope")]},
)
