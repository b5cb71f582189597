"""Images from captions: noise is removed step by step (Ho et al. 2020; Ho and Salimans 2022)."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from zoo.diffusion import guided, make_noise_schedule, sample
from zoo.losses import mean_squared_error

Batch = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """Joins a network that predicts noise with the squared error of its predictions.

    A batch has ``image: Float[Array, "batch height width channels"]`` between -1 and 1;
    ``tokens: Int[Array, "batch words"]``, a caption filled up with 0; and
    ``mask: Float[Array, "batch"]``, 1 for a row that counts.

    Attributes:
        model: a linen module ``(image, step, tokens, train) -> prediction``.
        noise_schedule: see ``zoo.diffusion.make_noise_schedule``.
        noise_steps: number of steps from image to noise.
        prediction: see ``NoiseSchedule.target``.
        unconditional: share of captions left out in training, for guidance.
        guidance: of the samples that ``predict`` draws.
        sampling_steps: of the samples that ``predict`` draws.
        sampler: of the samples that ``predict`` draws.
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
    """Arrays of a batch that ``score`` needs."""
    draws: ClassVar[bool] = True
    """Whether ``predict`` returns images to look at."""

    def init(self, key: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        """Returns the model's variables for inputs shaped like those of ``batch``."""
        image = batch["image"][:1]
        return dict(self.model.init(key, image, jnp.zeros(1, jnp.int32), batch["tokens"][:1]))

    def loss(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Any, dict[str, Any]]]:
        """Returns the summed loss, and the number of images: step, noise and captions drawn."""
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

    def evaluate(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        """Returns ``loss`` as (sum, weight): steps spread evenly over the rows, noise from key."""
        rows = batch["image"].shape[0]
        steps = (jnp.arange(rows) * self.noise_steps) // rows
        losses = self._losses(params, batch["image"], batch["tokens"], steps, key)
        mask = batch["mask"].astype(losses.dtype)
        return {"loss": ((losses * mask).sum(), mask.sum())}

    def predict(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Returns ``image``: what is drawn for each caption."""
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
            key: the same key draws the same images.
            shape: of one image.
            guidance: 1: as the caption says; above: more so; see ``zoo.diffusion.guided``.
            steps: number of steps, at most ``noise_steps``.
        """
        rows = tokens.shape[0]
        both = jnp.concatenate([tokens, jnp.zeros_like(tokens)])

        def denoise(noisy: Array, step: Array) -> Array:
            # One call for both: with the captions and without.
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

        A weak sign only: that samples are neither empty nor all alike.
        """
        drawn, real = (images["image"].mean(axis=(1, 2)) for images in (outputs, references))
        return {"metrics": {"color_error": float(np.abs(drawn - real).mean())}}

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
        # Added up in float32 at least, whatever the model computes in.
        exact = jnp.promote_types(predicted.dtype, jnp.float32)
        losses = mean_squared_error(predicted.astype(exact), target.astype(exact))
        return losses.mean(axis=(1, 2, 3))
