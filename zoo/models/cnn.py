"""A small convolutional network for 48x48 images: the seed's ``MY_NET``."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float

from zoo.errors import UserError
from zoo.layers import Conv, Linear, activation, max_pool
from zoo.layers.images import check_images


class CNN(nn.Module):
    """Three convolutions, two poolings, two linear layers.

    With the defaults and images of 48x48x3 the layers have 896, 18,496, 73,856, 9,437,696 and
    513 * num_classes parameters. Verified against the seed's PyTorch class.

    Attributes:
        num_classes: number of outputs.
        features: output channels of the three convolutions.
        kernel_size: side of the convolutions' windows.
        padding: zeros on each side of a convolution's input; 1 keeps the size for windows of 3.
        pool_size: side of the poolings' windows, and their step.
        hidden_features: width of the hidden linear layer.
        dropout_rate: share of the inputs of both linear layers that is set to zero in training.
        activation: name of the activation between layers.
        output_activation: name of the activation of the outputs; ``identity`` gives logits.
        initialization: name of the parameters' initialisation.
        channels: number of channels of the images.
    """

    num_classes: int = 32
    features: tuple[int, int, int] = (32, 64, 128)
    kernel_size: int = 3
    padding: int = 1
    pool_size: int = 2
    hidden_features: int = 512
    dropout_rate: float = 0.5
    activation: str = "relu"
    output_activation: str = "identity"
    initialization: str = "pytorch"
    channels: int = 3

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch num_classes"]:
        """Returns the logits of a batch of images.

        Raises:
            UserError: the images do not fit (see ``check_images``) or are too small for both
                poolings, or an attribute does not fit.
        """
        check_images("CNN", image, self.channels)
        if len(self.features) != 3:
            raise UserError(f"CNN: features={self.features} must be three numbers")
        act = activation(self.activation)
        conv = [
            Conv(
                features,
                self.kernel_size,
                padding=self.padding,
                initialization=self.initialization,
                name=f"conv{number}",
            )
            for number, features in enumerate(self.features, start=1)
        ]
        fc1 = Linear(self.hidden_features, initialization=self.initialization, name="fc1")
        fc2 = Linear(self.num_classes, initialization=self.initialization, name="fc2")
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)

        x = act(conv[0](image))
        x = act(conv[1](x))
        x = max_pool(x, self.pool_size)
        x = act(conv[2](x))
        x = max_pool(x, self.pool_size)
        x = x.reshape(x.shape[0], -1)
        x = dropout(x)
        x = act(fc1(x))
        x = dropout(x)
        return activation(self.output_activation)(fc2(x))
