"""Residual networks: the training step of ResNet-18 for small images, and linen's own layers."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from benchmarks.families.sides import (
    BATCHES,
    SETTINGS,
    Call,
    Work,
    our_step,
    read_batches,
    read_variables,
    torch_step,
    write,
)
from benchmarks.torch_peers import make_torchvision_importable
from zoo import flops
from zoo.families import create_model
from zoo.families.resnet import resnet_table
from zoo.losses import cross_entropy
from zoo.tasks.classification import Classification

LEARNING_RATE, MOMENTUM = 0.01, 0.9


@dataclasses.dataclass(frozen=True)
class ResNetStep(Work):
    """The network of ``configs/resnet.py:cifar10``, batch statistics, SGD with momentum.

    Attributes:
        rows: images of a batch.
        side: of the images, in pixels.
        batches: how many are prepared.
    """

    rows: int = 64
    side: int = 32
    batches: int = BATCHES

    group: ClassVar[str] = "resnet"
    goals: ClassVar[dict[str, float]] = {"torch": 0.8, "linen": 0.5}
    checked: ClassVar[tuple[str, ...]] = ("float64", "float32")
    settings: ClassVar[tuple[str, ...]] = tuple(SETTINGS)
    optimizer: ClassVar[str] = "fused SGD"

    @property
    def title(self) -> str:
        """What is done."""
        return f"ResNet-18, {self.side}x{self.side}, batch {self.rows}, training step"

    @property
    def gflop(self) -> float:
        """Arithmetic of a step in 10^9 operations.

        Three products for each forward one, but for the first layer's: images need no gradient.
        """
        image = jax.ShapeDtypeStruct((self.rows, self.side, self.side, 3), np.float32)
        # Counted in linen's layers: a tuned form may write a convolution as other products.
        model = Stock(like=self._task().model)
        variables = jax.eval_shape(model.init, jax.random.key(0), image)
        forward = flops.count_flops(model.apply, variables, image)
        first = 2 * self.rows * self.side**2 * (9 * 3) * 64
        return (3 * forward - first) / 1e9

    def prepare(self, folder: Path) -> None:
        """Writes batches and weights."""
        generator = np.random.default_rng(0)
        batches = [
            {
                "image": generator.normal(size=(self.rows, self.side, self.side, 3)).astype("f4"),
                "label": generator.integers(0, 10, self.rows).astype(np.int32),
                "mask": np.ones(self.rows, np.float32),
            }
            for _ in range(self.batches)
        ]
        write(folder, batches, jax.jit(self._init)(), self._table())

    def ours(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """The zoo."""
        like = jax.eval_shape(self._init)
        variables = read_variables(folder, self._table(), like, dtype)
        optimizer = optax.sgd(LEARNING_RATE, MOMENTUM)
        return our_step(self._task().loss, variables, read_batches(folder, dtype), optimizer)

    def torch(self, folder: Path, dtype: str, *, timed: bool, setting: str) -> Call:
        """The model of torchvision with the same stem."""
        import torch

        return torch_step(
            small_resnet18(),
            lambda model, batch: torch.nn.functional.cross_entropy(
                model(batch["image"]), batch["label"]
            ),
            folder,
            dtype,
            setting,
            lambda parameters: torch.optim.SGD(
                parameters, lr=LEARNING_RATE, momentum=MOMENTUM, fused=True
            ),
        )

    def linen(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """Linen's own layers with their own first weights."""
        batches = read_batches(folder, dtype)
        model = Stock(like=self._task().model)

        def loss_fn(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
            logits: Any
            logits, model_state = model.apply(
                {"params": params, **model_state}, batch["image"], train=True,
                mutable=["batch_stats"],
            )  # fmt: skip
            losses = cross_entropy(logits, batch["label"])
            return losses.sum(), (np.float32(len(losses)), model_state, {})

        variables = jax.jit(model.init)(jax.random.key(0), batches[0]["image"])
        optimizer = optax.sgd(LEARNING_RATE, MOMENTUM)
        return our_step(loss_fn, dict(variables), batches, optimizer, stock=True)

    def _task(self) -> Classification:
        return Classification(create_model("resnet18", num_classes=10, stem="cifar"))

    def _init(self) -> dict[str, Any]:
        image = jnp.zeros((1, self.side, self.side, 3))
        return self._task().init(jax.random.key(0), {"image": image})

    def _table(self) -> Any:
        model: Any = self._task().model
        return resnet_table(model.stages, bottleneck=model.bottleneck)


def small_resnet18() -> Any:
    """Returns torchvision's ResNet-18 with ten classes and the stem for small images."""
    import torch

    make_torchvision_importable()
    from torchvision.models import resnet18

    model = resnet18(num_classes=10)
    model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = torch.nn.Identity()
    return model


class Stock(nn.Module):
    """One of the zoo's residual networks of linen's own layers.

    Attributes:
        like: the zoo's.
    """

    like: Any

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False) -> Any:
        """Returns logits of images."""
        like = self.like

        def conv(x: Any, features: int, side: int, strides: int = 1) -> Any:
            padding = side // 2
            return nn.Conv(
                features, (side, side), strides, [(padding, padding)] * 2, use_bias=False
            )(x)

        def norm(x: Any) -> Any:
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)

        def block(x: Any, features: int, strides: int) -> Any:
            if like.bottleneck:
                y = nn.relu(norm(conv(x, features, 1)))
                y = nn.relu(norm(conv(y, features, 3, strides)))
                y = norm(conv(y, 4 * features, 1))
            else:
                y = nn.relu(norm(conv(x, features, 3, strides)))
                y = norm(conv(y, features, 3))
            if x.shape != y.shape:
                x = norm(conv(x, y.shape[-1], 1, strides))
            return nn.relu(x + y)

        if like.stem == "imagenet":
            x = nn.relu(norm(conv(x, like.features, 7, 2)))
            x = nn.max_pool(x, (3, 3), (2, 2), [(1, 1)] * 2)
        else:
            x = nn.relu(norm(conv(x, like.features, 3)))
        for stage, blocks in enumerate(like.stages):
            for index in range(blocks):
                x = block(x, like.features * 2**stage, 2 if stage and not index else 1)
        return nn.Dense(like.num_classes)(x.mean(axis=(1, 2)))
