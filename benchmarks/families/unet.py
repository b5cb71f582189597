"""A UNet for 32x32 images: its training step, and sampling with DDIM."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.families.sides import (
    BATCHES,
    Call,
    load_weights,
    our_step,
    read_batches,
    read_params,
    torch_batches,
    torch_step,
    write,
)
from benchmarks.torch_peers import make_torchvision_importable
from zoo.diffusion import make_noise_schedule, sample
from zoo.losses import mean_squared_error
from zoo.models import UNet
from zoo.pretrained import unet_table

FEATURES, ATTENTION, LAYERS = (32, 64, 96), (False, True, True), 1
HEADS, GROUPS, SIDE, WORDS, CONTEXT = 4, 8, 32, 12, 64
STEPS = 50


@dataclasses.dataclass(frozen=True)
class UNetStep:
    """32 images with a context of 12 vectors, the squared error of the noise, Adam."""

    group: ClassVar[str] = "unet"
    title: ClassVar[str] = "UNet, 32x32, features 32, 64, 96, batch 32, training step"
    goals: ClassVar[dict[str, float]] = {}
    checked: ClassVar[tuple[str, ...]] = ("float32",)  # diffusers' time is float32 in any case
    gflop: ClassVar[None] = None

    def prepare(self, folder: Path) -> None:
        """Writes batches and weights."""
        write(folder, [_batch(32, index) for index in range(BATCHES)], _first_params(), _table())

    def ours(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """The zoo."""

        def loss_fn(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
            predicted: Any = _model().apply(
                {"params": params}, batch["image"], batch["step"], batch["context"]
            )
            losses = mean_squared_error(predicted, batch["noise"])
            return losses.sum(), (jnp.asarray(losses.size, losses.dtype), model_state, {})

        return our_step(loss_fn, _read(folder, dtype), read_batches(folder, dtype))

    def torch(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """Diffusers' model, its images with the channels last in memory."""
        import torch

        def loss_fn(model: Any, batch: Any) -> Any:
            # [batch, height, width, channels] seen as PyTorch names it: no copy.
            image, noise = (batch[name].permute(0, 3, 1, 2) for name in ("image", "noise"))
            predicted = model(image, batch["step"], batch["context"]).sample
            return torch.nn.functional.mse_loss(predicted, noise)

        model = _theirs().to(memory_format=torch.channels_last)
        return torch_step(model, loss_fn, folder, dtype)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """16 images in 50 steps of DDIM, one call of the network for each."""

    group: ClassVar[str] = "sampling"
    title: ClassVar[str] = "sampling, DDIM, 50 steps, the same UNet, 16 images"
    goals: ClassVar[dict[str, float]] = {}
    checked: ClassVar[tuple[str, ...]] = ()  # each side draws its own noise; tests compare steps
    gflop: ClassVar[None] = None

    def prepare(self, folder: Path) -> None:
        """Writes contexts and weights."""
        write(folder, [_batch(16, index) for index in range(2)], _first_params(), _table())

    def ours(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """The zoo: one compiled function."""
        params, batches = _read(folder, dtype), read_batches(folder, dtype)
        schedule = make_noise_schedule("linear", 1000)

        @jax.jit
        def draw(params: Any, context: Any, key: Any) -> Any:
            def denoise(noisy: Any, step: Any) -> Any:
                return _model().apply({"params": params}, noisy, step, context)

            return sample(
                denoise,
                schedule,
                (16, SIDE, SIDE, 3),
                key,
                steps=STEPS,
            )

        return lambda index: float(
            draw(params, batches[index % 2]["context"], jax.random.key(index)).mean()
        )

    def torch(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """Diffusers' model and scheduler."""
        import torch

        make_torchvision_importable()
        from diffusers import DDIMScheduler

        model = _theirs()
        load_weights(model, folder)
        model = model.to(getattr(torch, dtype)).to(memory_format=torch.channels_last).eval()
        batches = torch_batches(folder, dtype)

        def draw(index: int) -> float:
            scheduler: Any = DDIMScheduler()
            scheduler.set_timesteps(STEPS)
            images = torch.randn(16, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
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


def _first_params() -> Any:
    batch = _batch(1, 0)
    return jax.jit(_model().init)(
        jax.random.key(0), batch["image"], batch["step"], batch["context"]
    )["params"]


def _read(folder: Path, dtype: str) -> Any:
    return read_params(folder, _table(), jax.eval_shape(_first_params), dtype)


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
