"""VGG (Simonyan and Zisserman 2015), as torchvision builds it."""

from __future__ import annotations

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from zoo.errors import UserError
from zoo.layers import BatchNorm, Conv, Linear, adaptive_mean_pool, max_pool
from zoo.layers.images import check_images


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each halved by a pooling, and three linear layers.

    Verified against torchvision's ``vgg11``, ``vgg16`` and their ``_bn`` forms.

    Attributes:
        num_classes: number of outputs.
        stages: number of convolutions in each stage (table 1: columns A and D).
        features: channels of each stage.
        batch_norm: whether each convolution is normalised.
        hidden_features: width of the two hidden linear layers.
        dropout_rate: share of their outputs that is set to zero in training.
        channels: number of channels of the images.
    """

    num_classes: int = 1000
    stages: tuple[int, ...] = (1, 1, 2, 2, 2)
    features: tuple[int, ...] = (64, 128, 256, 512, 512)
    batch_norm: bool = False
    hidden_features: int = 4096
    dropout_rate: float = 0.5
    channels: int = 3

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "batch height width channels"],
        *,
        train: bool = False,
        mask: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch num_classes"]:
        """Returns the logits of a batch of images.

        Args:
            image: images.
            train: whether to drop out, and to use and learn from the batch's statistics.
            mask: 1 for a row that counts in them; None: all do.

        Raises:
            UserError: the images do not fit (see ``check_images``) or are too small, or attributes
                do not fit together.
        """
        check_images("VGG", image, self.channels)
        if len(self.stages) != len(self.features):
            raise UserError(
                f"VGG: stages={self.stages} must have as many entries as features={self.features}"
            )
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        x, number = image, 0
        for convolutions, features in zip(self.stages, self.features, strict=True):
            for _ in range(convolutions):
                number += 1
                x = Conv(
                    features, 3, padding=1, initialization="he_normal_out", name=f"conv{number}"
                )(x)
                if self.batch_norm:
                    x = BatchNorm(name=f"bn{number}")(x, train=train, mask=mask)
                x = jax.nn.relu(x)
            x = max_pool(x, 2)
        # Images of another size than 224 come down to the same number of features.
        x = adaptive_mean_pool(x, (7, 7)).reshape(x.shape[0], -1)
        for layer in (1, 2):
            hidden = Linear(self.hidden_features, initialization=0.01, name=f"fc{layer}")
            x = dropout(jax.nn.relu(hidden(x)))
        return Linear(self.num_classes, initialization=0.01, name="fc3")(x)
