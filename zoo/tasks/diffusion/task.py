"""Draws images from captions by removing noise in steps (Ho et al. 2020; Ho and Salimans 2022)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from zoo.data.scenes import to_pixels
from zoo.diffusion import guided, make_noise_schedule, sample
from zoo.losses import mean_squared_error
from zoo.tasks.task import Batch, Sums, TaskDefaults


@dataclasses.dataclass(frozen=True)
class Diffusion(TaskDefaults):
    """Joins a network that predicts noise with the squared error of its predictions.

    A batch has ``image: Float[Array, "batch height width channels"]`` between -1 and 1,
    ``tokens: Int[Array, "batch words"]``, a caption padded with 0, and
    ``mask: Float[Array, "batch"]``, which is 1 for a row that counts.

    Attributes:
        model: a linen module ``(image, step, tokens, train) -> prediction``.
        noise_schedule: see ``zoo.diffusion.make_noise_schedule``.
        noise_steps: the number of steps from image to noise.
        prediction: see ``NoiseSchedule.target``.
        unconditional: the share of captions that training leaves out, for guidance.
        guidance: the guidance of the samples that ``predict`` draws.
        sampling_steps: the number of steps for the samples that ``predict`` draws.
        sampler: the sampler of the samples that ``predict`` draws.
    """

    model: nn.Module
    noise_schedule: str = "cosine"
    noise_steps: int = 1000
    prediction: str = "v_prediction"
    unconditional: float = 0.1
    guidance: float = 3.0
    sampling_steps: int = 50
    sampler: str = "ddim"

    references: ClassVar[tuple[str, ...]] = ("image",)
    """The arrays of a batch that ``score`` needs."""
    draws: ClassVar[bool] = True
    """Whether ``predict`` returns images to look at."""

    def init(self, key: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        """Returns the model's variables for inputs shaped like those of ``batch``."""
        image = batch["image"][:1]
        return dict(self.model.init(key, image, jnp.zeros(1, jnp.int32), batch["tokens"][:1]))

    def loss(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Any, Sums]]:
        """Returns the summed loss and the number of images; draws steps, noise and captions."""
        step_key, noise_key, caption_key, dropout_key = jax.random.split(key, 4)
        rows = batch["image"].shape[0]
        steps = jax.random.randint(step_key, (rows,), 0, self.noise_steps)
        kept = jax.random.bernoulli(caption_key, 1 - self.unconditional, (rows, 1))
        losses = self._losses(
            params,
            batch["image"],
            jnp.where(kept, batch["tokens"], 0),
            steps,
            noise_key,
            train=True,
            rngs={"dropout": dropout_key},
        )
        mask = batch["mask"].astype(losses.dtype)
        return (losses * mask).sum(), (mask.sum(), model_state, {})

    def evaluate(self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray) -> Sums:
        """Returns ``loss`` as (sum, weight), for evenly spread steps and noise from ``key``."""
        rows = batch["image"].shape[0]
        steps = (jnp.arange(rows) * self.noise_steps) // rows
        losses = self._losses(params, batch["image"], batch["tokens"], steps, key)
        mask = batch["mask"].astype(losses.dtype)
        return {"loss": ((losses * mask).sum(), mask.sum())}

    def predict(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Returns ``image``, a drawn image for each caption."""
        images = self.sample(
            params,
            batch["tokens"],
            key,
            shape=batch["image"].shape[1:],
            guidance=self.guidance,
            steps=self.sampling_steps,
        )
        return {"image": images}

    def sample(
        self,
        params: Any,
        tokens: Int[Array, "batch words"],
        key: PRNGKeyArray,
        *,
        shape: tuple[int, ...],
        guidance: float | Float[Array, ""],
        steps: int,
    ) -> Float[Array, "batch height width channels"]:
        """Draws an image for each caption.

        Args:
            params: the model's parameters.
            tokens: captions.
            key: the random key; the same key draws the same images.
            shape: the shape of one image.
            guidance: how strongly the images follow the caption; 1 adds no guidance. See
                ``zoo.diffusion.guided``.
            steps: the number of steps, at most ``noise_steps``.
        """
        rows = tokens.shape[0]
        both = jnp.concatenate([tokens, jnp.zeros_like(tokens)])

        def denoise(noisy: Array, step: Array) -> Array:
            # One call predicts both with and without the captions.
            predicted: Any = self.model.apply(
                {"params": params},
                jnp.concatenate([noisy, noisy]),
                jnp.concatenate([step, step]),
                both,
            )
            return guided(predicted[:rows], predicted[rows:], guidance)

        return sample(
            denoise,
            make_noise_schedule(self.noise_schedule, self.noise_steps),
            (rows, *shape),
            key,
            steps=steps,
            sampler=self.sampler,
            prediction=self.prediction,
        )

    def score(
        self, outputs: dict[str, np.ndarray], references: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        """Returns how far the samples' mean colours are from those of the split's own images.

        This is only weak evidence: it shows that samples are neither empty nor all alike.
        """
        drawn, real = (images["image"].mean(axis=(1, 2)) for images in (outputs, references))
        return {"metrics": {"color_error": float(np.abs(drawn - real).mean())}}

    def pictures(
        self, outputs: dict[str, np.ndarray]
    ) -> UInt8[np.ndarray, "images height width channels"]:
        """Returns the drawn images as pixels."""
        return to_pixels(outputs["image"])

    def _losses(
        self,
        params: Any,
        image: Float[Array, "batch height width channels"],
        tokens: Int[Array, "batch words"],
        steps: Int[Array, " batch"],
        noise_key: PRNGKeyArray,
        **options: Any,
    ) -> Float[Array, " batch"]:
        schedule = make_noise_schedule(self.noise_schedule, self.noise_steps)
        noise = jax.random.normal(noise_key, image.shape, image.dtype)
        noisy = schedule.add_noise(image, noise, steps)
        predicted: Any = self.model.apply({"params": params}, noisy, steps, tokens, **options)
        target = schedule.target(image, noise, steps, self.prediction)
        # Losses are summed in at least float32, whatever the model's precision.
        exact = jnp.promote_types(predicted.dtype, jnp.float32)
        losses = mean_squared_error(predicted.astype(exact), target.astype(exact))
        return losses.mean(axis=(1, 2, 3))
