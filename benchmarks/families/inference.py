"""The forward pass alone: the seed's CNN and ResNet-50, one image and many."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from flax import linen as nn

from benchmarks.families import cnn, resnet
from benchmarks.families.sides import (
    SETTINGS,
    Call,
    Work,
    read_batches,
    read_variables,
    torch_batches,
    torch_model,
    write,
)
from benchmarks.torch_peers import make_torchvision_importable
from zoo import flops
from zoo.families import create_model, find
from zoo.layers import fuse
from zoo.pretrained import tables_of
from zoo.training import jit

BATCHES = 4
SIDES = {"cnn": 48, "resnet50": 224}
TITLES = {"cnn": "seed CNN", "resnet50": "ResNet-50"}
CLASSES = {"cnn": 10, "resnet50": 1000}


@dataclasses.dataclass(frozen=True)
class Forward(Work):
    """Logits of images; what must agree is a number made of all.

    Attributes:
        model: ``cnn`` or ``resnet50``.
        rows: images at once.
    """

    model: str
    rows: int

    group: ClassVar[str] = "inference"
    goals: ClassVar[dict[str, float]] = {"torch": 0.8, "linen": 0.5}
    checked: ClassVar[tuple[str, ...]] = ("float64", "float32")
    settings: ClassVar[tuple[str, ...]] = tuple(SETTINGS)

    @property
    def title(self) -> str:
        """What is done."""
        side = SIDES[self.model]
        return f"{TITLES[self.model]}, {side}x{side}, batch {self.rows}, inference"

    @property
    def gflop(self) -> float:
        """Arithmetic in 10^9 operations, counted in linen's layers."""
        image = jax.ShapeDtypeStruct(self._shape, np.float32)
        variables = jax.eval_shape(self._stock().init, jax.random.key(0), image)
        return flops.count_flops(self._stock().apply, variables, image) / 1e9

    def prepare(self, folder: Path) -> None:
        """Writes images and weights."""
        generator = np.random.default_rng(0)
        batches = [
            {"image": generator.normal(size=self._shape).astype(np.float32)} for _ in range(BATCHES)
        ]
        variables = jax.jit(self._init)()
        # As after training: with a variance of 1 in all 53 normalisations of a ResNet-50 the
        # rounding of one number is repeated 53 times.
        for stats in jax.tree.leaves(variables.get("batch_stats", {}), is_leaf=_has_variance):
            size = stats["var"].shape
            stats["var"] = generator.uniform(0.5, 1.5, size).astype(np.float32)
            stats["mean"] = generator.normal(0, 0.1, size).astype(np.float32)
        write(folder, batches, variables, self._table())

    def ours(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """The zoo."""
        variables = read_variables(folder, self._table(), jax.eval_shape(self._init), dtype)
        return _forward(jit(fuse(self._module().apply)), variables, folder, dtype)

    def torch(self, folder: Path, dtype: str, *, timed: bool, setting: str) -> Call:
        """The seed's class, or torchvision's model."""
        import torch

        model = torch_model(self._theirs(), folder, dtype, setting).eval()
        batches = torch_batches(folder, dtype, setting)

        def forward(index: int) -> float:
            with torch.inference_mode():
                return _fingerprint(model(batches[index % len(batches)]["image"]).numpy())

        return forward

    def linen(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """Linen's own layers with their own first weights."""
        image = np.zeros(self._shape, np.float32)
        variables = jax.jit(self._stock().init)(jax.random.key(0), image)
        return _forward(jax.jit(self._stock().apply), variables, folder, dtype)

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        side = SIDES[self.model]
        return self.rows, side, side, 3

    def _module(self) -> Any:
        return create_model(self.model, num_classes=CLASSES[self.model])

    def _stock(self) -> nn.Module:
        return cnn.Stock() if self.model == "cnn" else resnet.Stock(like=self._module())

    def _init(self) -> dict[str, Any]:
        image = np.zeros((1, *self._shape[1:]), np.float32)
        return dict(self._module().init(jax.random.key(0), image))

    def _table(self) -> Any:
        params = jax.eval_shape(self._init)["params"]
        (table,) = tables_of(find(self.model), self._module(), params).values()
        return table

    def _theirs(self) -> Any:
        make_torchvision_importable()
        if self.model == "cnn":
            from benchmarks.torch_peers.cnn_seed import SeedNet

            return SeedNet(CLASSES[self.model])
        from torchvision.models import resnet50

        return resnet50()


def _forward(forward: Callable, variables: Any, folder: Path, dtype: str) -> Call:
    batches = [jax.device_put(batch["image"]) for batch in read_batches(folder, dtype)]
    variables = jax.device_put(variables)
    return lambda index: _fingerprint(np.asarray(forward(variables, batches[index % len(batches)])))


def _has_variance(node: Any) -> bool:
    return isinstance(node, dict) and "var" in node


def _fingerprint(logits: np.ndarray) -> float:
    """The mean of log(sum(exp)), to which every logit adds and in which none cancels another."""
    exact = logits.astype(np.float64)
    most = exact.max(axis=-1, keepdims=True)
    return float((np.log(np.exp(exact - most).sum(axis=-1)) + most[:, 0]).mean())
