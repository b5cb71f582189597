"""The linear layer."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from zoo.axes import constrain_rows
from zoo.layers.initializers import kernel_and_bias
from zoo.layers.tuned.linear import multiply, multiply_by_each


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
    def weights(
        self, inputs: int
    ) -> tuple[Float[Array, "inputs features"], Float[Array, " features"] | None]:
        """Returns the kernel, and the bias if there is one, for so many inputs."""
        kernel_init, bias_init = kernel_and_bias(self.initialization, inputs)
        kernel = self.param("kernel", kernel_init, (inputs, self.features))
        bias = self.param("bias", bias_init, (self.features,)) if self.use_bias else None
        return kernel, bias

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch features"]:
        """Applies the layer to the last axis."""
        kernel, bias = self.weights(x.shape[-1])
        y = checkpoint_name(constrain_rows(multiply(x, kernel)), "linear")
        return y if bias is None else y + bias


def apply_each(
    layers: Sequence[Linear], x: Float[Array, "*batch inputs"]
) -> list[Float[Array, "*batch features"]]:
    """Returns what several layers make of the same input, each as if called by itself.

    Args:
        layers: layers of the module that calls this, or bound ones.
        x: their input; the last axis is multiplied.
    """
    kernels, biases = zip(*(layer.weights(x.shape[-1]) for layer in layers), strict=True)
    products = [checkpoint_name(constrain_rows(y), "linear") for y in multiply_by_each(x, kernels)]
    return [y if bias is None else y + bias for y, bias in zip(products, biases, strict=True)]
