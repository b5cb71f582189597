"""The training step of the seed's CNN, made as ``train.py`` makes it from ``configs/cnn.py``."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from flax import linen as nn

from benchmarks.families.sides import (
    BATCHES,
    SETTINGS,
    Call,
    Work,
    compiled,
    our_step,
    read_batches,
    read_variables,
    torch_batches,
    torch_model,
    write,
)
from configs.cnn import get_config
from zoo import building
from zoo import config as configs
from zoo.families.cnn import cnn_table
from zoo.losses import cross_entropy
from zoo.training.state import create_state


def gflop(batch: int, side: int = 48) -> float:
    """Arithmetic of a training step of the seed's CNN with 10 classes, in 10^9 operations.

    A product costs two operations each for the output, the weight's gradient and the input's; the
    images need no gradient.
    """
    conv1 = side**2 * (9 * 3) * 32
    conv2 = side**2 * (9 * 32) * 64
    conv3 = (side // 2) ** 2 * (9 * 64) * 128
    dense = 128 * (side // 4) ** 2 * 512 + 512 * 10
    return 2 * batch * (2 * conv1 + 3 * (conv2 + conv3 + dense)) / 1e9


@dataclasses.dataclass(frozen=True)
class CNNStep(Work):
    """Augmented images, the seed's optimizer; timed with dropout.

    Attributes:
        rows: images of a batch.
        side: of the images, in pixels; a multiple of 4.
        batches: how many are prepared.
    """

    rows: int = 64
    side: int = 48
    batches: int = BATCHES

    group: ClassVar[str] = "cnn"
    goals: ClassVar[dict[str, float]] = {"torch": 0.75, "linen": 0.5}
    checked: ClassVar[tuple[str, ...]] = ("float64", "float32")
    settings: ClassVar[tuple[str, ...]] = tuple(SETTINGS)
    optimizer: ClassVar[str] = "fused Adam"

    @property
    def title(self) -> str:
        """What is done."""
        return f"seed CNN, {self.side}x{self.side}, batch {self.rows}, training step"

    @property
    def gflop(self) -> float:
        """Arithmetic of a step in 10^9 operations."""
        return gflop(self.rows, self.side)

    def prepare(self, folder: Path) -> None:
        """Writes batches and weights."""
        parts = self._parts(dropout_rate=0.5)
        with building.train_batches(parts) as batches:
            chosen = [next(batches) for _ in range(self.batches)]
        params = building.init_state(parts).params
        write(folder, chosen, {"params": params}, cnn_table(self.side))

    def ours(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """The zoo."""
        parts = self._parts(dropout_rate=0.5 if timed else 0.0)
        like = {"params": jax.eval_shape(lambda: building.init_state(parts)).params}
        variables = read_variables(folder, cnn_table(self.side), like, dtype)
        state = create_state(variables, parts.optimizer, jax.random.key(0))
        return compiled(parts.train_step, state, read_batches(folder, dtype))

    def torch(self, folder: Path, dtype: str, *, timed: bool, setting: str) -> Call:
        """The seed's class."""
        from benchmarks.torch_peers.cnn_seed import SeedNet, make_optimizer, train_step

        net = SeedNet(10, dropout_rate=0.5 if timed else 0.0, image_size=self.side)
        model = torch_model(net, folder, dtype, setting).train()
        optimizer = make_optimizer(model, fused=True)
        batches = [(b["image"], b["label"]) for b in torch_batches(folder, dtype, setting)]
        return lambda index: train_step(model, optimizer, *batches[index % len(batches)])[0]

    def linen(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """Linen's own layers with their own first weights, and optax's Adam."""
        batches = read_batches(folder, dtype)
        model = Stock()

        def loss_fn(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
            logits: Any = model.apply(
                {"params": params}, batch["image"], train=timed, rngs={"dropout": key}
            )
            losses = cross_entropy(logits, batch["label"])
            return losses.sum(), (np.float32(len(losses)), model_state, {})

        variables = model.init(jax.random.key(0), batches[0]["image"])
        return our_step(loss_fn, dict(variables), batches, stock=True)

    def _parts(self, *, dropout_rate: float) -> building.Parts:
        config = get_config()
        config.model.dropout_rate = dropout_rate
        config.data.image_size = self.side
        config.train.batch_size = self.rows
        config.train.ema_decay = 0.0  # the seed's script keeps no average
        return building.build(*building.with_data(configs.check(config)))


class Stock(nn.Module):
    """The seed's network of linen's own layers."""

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False) -> Any:
        """Returns logits of images."""
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.max_pool(nn.relu(nn.Conv(64, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.max_pool(nn.relu(nn.Conv(128, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(512)(x)))
        return nn.Dense(10)(x)
