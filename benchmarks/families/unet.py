"""A UNet for 32x32 images: its training step, and sampling with DDIM."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.families.sides import (
    BATCHES,
    SETTINGS,
    Call,
    Work,
    our_step,
    read_batches,
    read_variables,
    torch_batches,
    torch_model,
    torch_step,
    write,
)
from benchmarks.torch_peers import make_torchvision_importable
from zoo.diffusion import make_noise_schedule, sample
from zoo.families.unet import unet_table
from zoo.losses import mean_squared_error
from zoo.models import UNet
from zoo.training import jit

FEATURES, ATTENTION, LAYERS = (32, 64, 96), (False, True, True), 1
HEADS, GROUPS, SIDE, WORDS, CONTEXT = 4, 8, 32, 12, 64
STEPS = 50


@dataclasses.dataclass(frozen=True)
class UNetStep(Work):
    """32 images with a context of 12 vectors, the squared error of the noise, Adam."""

    group: ClassVar[str] = "unet"
    title: ClassVar[str] = "UNet, 32x32, features 32, 64, 96, batch 32, training step"
    goals: ClassVar[dict[str, float]] = {}
    checked: ClassVar[tuple[str, ...]] = ("float32",)  # diffusers' time is float32 in any case
    settings: ClassVar[tuple[str, ...]] = tuple(SETTINGS)
    optimizer: ClassVar[str] = "fused Adam"

    def prepare(self, folder: Path) -> None:
        """Writes batches and weights."""
        write(folder, [_batch(32, index) for index in range(BATCHES)], _init(), _table())

    def ours(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """The zoo."""

        def loss_fn(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
            predicted: Any = _model().apply(
                {"params": params}, batch["image"], batch["step"], batch["context"]
            )
            losses = mean_squared_error(predicted, batch["noise"])
            return losses.sum(), (jnp.asarray(losses.size, losses.dtype), model_state, {})

        return our_step(loss_fn, _read(folder, dtype), read_batches(folder, dtype))

    def torch(self, folder: Path, dtype: str, *, timed: bool, setting: str) -> Call:
        """Diffusers' model."""
        import torch

        def loss_fn(model: Any, batch: Any) -> Any:
            predicted = model(batch["image"], batch["step"], batch["context"]).sample
            return torch.nn.functional.mse_loss(predicted, batch["noise"])

        return torch_step(_theirs(), loss_fn, folder, dtype, setting)


@dataclasses.dataclass(frozen=True)
class Sampling(Work):
    """16 images in 50 steps of DDIM, one call of the network for each."""

    group: ClassVar[str] = "sampling"
    title: ClassVar[str] = "sampling, DDIM, 50 steps, the same UNet, 16 images"
    goals: ClassVar[dict[str, float]] = {}
    checked: ClassVar[tuple[str, ...]] = ()  # each side draws its own noise; tests compare steps
    settings: ClassVar[tuple[str, ...]] = ("eager", "channels_last")

    def prepare(self, folder: Path) -> None:
        """Writes contexts and weights."""
        write(folder, [_batch(16, index) for index in range(2)], _init(), _table())

    def ours(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """The zoo: one compiled function."""
        variables, batches = _read(folder, dtype), read_batches(folder, dtype)
        schedule = make_noise_schedule("linear", 1000)

        @jit
        def draw(variables: Any, context: Any, key: Any) -> Any:
            def denoise(noisy: Any, step: Any) -> Any:
                return _model().apply(variables, noisy, step, context)

            return sample(
                denoise,
                schedule,
                (16, SIDE, SIDE, 3),
                key,
                steps=STEPS,
            )

        return lambda index: float(
            draw(variables, batches[index % 2]["context"], jax.random.key(index)).mean()
        )

    def torch(self, folder: Path, dtype: str, *, timed: bool, setting: str) -> Call:
        """Diffusers' model and scheduler."""
        import torch

        make_torchvision_importable()
        from diffusers import DDIMScheduler

        model = torch_model(_theirs(), folder, dtype, setting).eval()
        batches = torch_batches(folder, dtype, setting)
        layout = torch.contiguous_format if setting == "eager" else torch.channels_last

        def draw(index: int) -> float:
            scheduler: Any = DDIMScheduler()
            scheduler.set_timesteps(STEPS)
            images = torch.randn(16, 3, SIDE, SIDE).to(memory_format=layout)
            with torch.inference_mode():
                for step in scheduler.timesteps:
                    predicted = model(images, step, batches[index % 2]["context"]).sample
                    images = scheduler.step(predicted, step, images).prev_sample
            return float(images.mean())

        return draw


def _batch(rows: int, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    return {
        "image": normal(rows, SIDE, SIDE, 3),
        "noise": normal(rows, SIDE, SIDE, 3),
        "step": generator.integers(0, 1000, rows).astype(np.int32),
        "context": normal(rows, WORDS, CONTEXT),
    }


def _model() -> UNet:
    return UNet(
        features=FEATURES,
        attention=ATTENTION,
        layers_per_level=LAYERS,
        num_heads=HEADS,
        norm_groups=GROUPS,
    )


def _table() -> Any:
    return unet_table(FEATURES, ATTENTION, LAYERS)


def _init() -> dict[str, Any]:
    batch = _batch(1, 0)
    return dict(
        jax.jit(_model().init)(jax.random.key(0), batch["image"], batch["step"], batch["context"])
    )


def _read(folder: Path, dtype: str) -> dict[str, Any]:
    return read_variables(folder, _table(), jax.eval_shape(_init), dtype)


def _theirs() -> Any:
    make_torchvision_importable()
    from diffusers import UNet2DConditionModel

    kinds = ["CrossAttn" if attends else "" for attends in ATTENTION]
    return UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=3,
        out_channels=3,
        block_out_channels=FEATURES,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        layers_per_block=LAYERS,
        cross_attention_dim=CONTEXT,
        attention_head_dim=HEADS,
        norm_num_groups=GROUPS,
    )
