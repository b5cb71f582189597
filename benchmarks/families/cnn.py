"""The training step of the seed's CNN, made as ``train.py`` makes it from ``configs/cnn.py``."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from benchmarks.families.sides import (
    BATCHES,
    Call,
    compiled,
    load_weights,
    our_step,
    read_batches,
    read_params,
    torch_batches,
    write,
)
from configs.cnn import get_config
from zoo import building, data
from zoo import config as configs
from zoo.losses import cross_entropy
from zoo.pretrained import cnn_table
from zoo.training.state import create_state


def gflop(batch: int) -> float:
    """Arithmetic of a training step of the seed's CNN with 10 classes, in 10^9 operations.

    A product costs two operations each for the output, the weight's gradient and the input's; the
    images need no gradient.
    """
    conv1 = 48 * 48 * (9 * 3) * 32
    conv2 = 48 * 48 * (9 * 32) * 64
    conv3 = 24 * 24 * (9 * 64) * 128
    dense = 128 * 12 * 12 * 512 + 512 * 10
    return 2 * batch * (2 * conv1 + 3 * (conv2 + conv3 + dense)) / 1e9


@dataclasses.dataclass(frozen=True)
class CNNStep:
    """Augmented images in batches of 64, the seed's optimizer; timed with dropout."""

    group: ClassVar[str] = "cnn"
    title: ClassVar[str] = "seed CNN, batch 64, training step"
    goals: ClassVar[dict[str, float]] = {"torch": 0.75, "linen": 0.5}
    checked: ClassVar[tuple[str, ...]] = ("float64", "float32")
    gflop: ClassVar[float] = gflop(64)

    def prepare(self, folder: Path) -> None:
        """Writes batches and weights."""
        parts = _parts(dropout_rate=0.5)
        batches = data.train_batches(
            data.open_source(parts.dataset.name, "train"),
            data.make_transform("seed", train=True),
            batch_size=parts.config.train.batch_size,
            seed=parts.config.seed,
            start=0,
            stop=BATCHES,
        )
        with contextlib.closing(batches):
            write(folder, list(batches), building.init_state(parts).params, cnn_table())

    def ours(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """The zoo."""
        parts = _parts(dropout_rate=0.5 if timed else 0.0)
        like = jax.eval_shape(lambda: building.init_state(parts)).params
        variables = {"params": read_params(folder, cnn_table(), like, dtype)}
        state = create_state(variables, parts.optimizer, jax.random.key(0))
        return compiled(parts.train_step, state, read_batches(folder, dtype))

    def torch(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """The seed's class, in PyTorch's own layout."""
        import torch

        from benchmarks.torch_peers.cnn_seed import SeedNet, make_optimizer, train_step

        model = SeedNet(num_classes=10, dropout_rate=0.5 if timed else 0.0)
        load_weights(model, folder)
        optimizer = make_optimizer(model.to(getattr(torch, dtype)).train())
        # Channels first, and in memory so: what the seed's loader gives.
        batches = [
            (batch["image"].permute(0, 3, 1, 2).contiguous(), batch["label"])
            for batch in torch_batches(folder, dtype)
        ]
        return lambda index: train_step(model, optimizer, *batches[index % len(batches)])[0]

    def linen(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """Linen's own layers with their own first weights, and optax's Adam."""
        from flax import linen as nn

        class Stock(nn.Module):
            @nn.compact
            def __call__(self, x: Any, *, train: bool) -> Any:
                x = nn.relu(nn.Conv(32, (3, 3))(x))
                x = nn.max_pool(nn.relu(nn.Conv(64, (3, 3))(x)), (2, 2), (2, 2))
                x = nn.max_pool(nn.relu(nn.Conv(128, (3, 3))(x)), (2, 2), (2, 2))
                x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
                x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(512)(x)))
                return nn.Dense(10)(x)

        batches = read_batches(folder, dtype)
        model = Stock()

        def loss_fn(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
            logits: Any = model.apply(
                {"params": params}, batch["image"], train=timed, rngs={"dropout": key}
            )
            losses = cross_entropy(logits, batch["label"])
            return losses.sum(), (np.float32(len(losses)), model_state, {})

        params = model.init(jax.random.key(0), batches[0]["image"], train=False)["params"]
        return our_step(loss_fn, params, batches)


def _parts(*, dropout_rate: float) -> building.Parts:
    config = get_config()
    config.model.dropout_rate = dropout_rate
    config.train.ema_decay = 0.0  # the seed's script keeps no average
    return building.build(*building.with_data(configs.check(config)))
