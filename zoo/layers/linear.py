"""The linear layer."""

import flax.linen as nn
from jaxtyping import Array, Float

from zoo.layers.initializers import kernel_and_bias
from zoo.layers.tuned.linear import multiply


class Linear(nn.Module):
    """``x @ kernel + bias``, as ``torch.nn.Linear``.

    Parameters: ``kernel [in, features]``, ``bias [features]``. The arithmetic is in the common
    type of parameters and input.

    Attributes:
        features: number of outputs.
        use_bias: whether there is a bias.
        initialization: see ``zoo.layers.initializers.kernel_and_bias``.
    """

    features: int
    use_bias: bool = True
    initialization: str | float = "pytorch"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch features"]:
        """Applies the layer to the last axis."""
        inputs = x.shape[-1]
        kernel_init, bias_init = kernel_and_bias(self.initialization, inputs)
        y = multiply(x, self.param("kernel", kernel_init, (inputs, self.features)))
        if self.use_bias:
            y = y + self.param("bias", bias_init, (self.features,))
        return y
