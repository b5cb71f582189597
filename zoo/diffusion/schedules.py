"""Noise schedules: how noisy an image is at each step, and what a network predicts from it."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zoo.errors import UserError, did_you_mean

Images = Float[Array, "batch *image"]
Steps = Int[Array, " batch"]
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SCHEDULES = ("cosine", "linear")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """The forward process ``q(x_t | x_0) = N(√ᾱ_t x_0, (1 - ᾱ_t) I)`` (Ho et al. 2020, equation 4).

    Attributes:
        betas: the variance of the noise that step ``t`` adds.
        alphas_cumprod: ``ᾱ_t``, the share of the image's variance that is left after step ``t``.
    """

    betas: Float[Array, " steps"]
    alphas_cumprod: Float[Array, " steps"]

    @property
    def num_steps(self) -> int:
        """Number of steps from an image to noise."""
        return self.betas.shape[0]

    def add_noise(self, images: Images, noise: Images, steps: Steps) -> Images:
        """Returns ``x_t`` for clean images ``x_0`` and noise ``ε``."""
        signal, deviation = self._scales(steps, images)
        return signal * images + deviation * noise

    def target(self, images: Images, noise: Images, steps: Steps, prediction: str) -> Images:
        """Returns what a network should predict.

        Args:
            images: clean images.
            noise: the noise that was added.
            steps: the step of each image.
            prediction: the name of the target. ``epsilon`` is the noise, ``sample`` the image, and
                ``v_prediction`` is ``√ᾱ ε - √(1 - ᾱ) x_0`` (Salimans and Ho 2022, appendix D).

        Raises:
            UserError: the name is unknown.
        """
        signal, deviation = self._scales(steps, images)
        return _choose(
            prediction,
            epsilon=noise,
            sample=images,
            v_prediction=signal * noise - deviation * images,
        )

    def image_and_noise(
        self, noisy: Images, predicted: Images, steps: Steps, prediction: str
    ) -> tuple[Images, Images]:
        """Returns the clean images and the noise that a prediction stands for.

        Args:
            noisy: ``x_t``.
            predicted: the network's prediction.
            steps: the step of each image.
            prediction: see ``target``.

        Raises:
            UserError: the name is unknown.
        """
        signal, deviation = self._scales(steps, noisy)
        images = _choose(
            prediction,
            epsilon=(noisy - deviation * predicted) / signal,
            sample=predicted,
            v_prediction=signal * noisy - deviation * predicted,
        )
        noise = _choose(
            prediction,
            epsilon=predicted,
            sample=(noisy - signal * predicted) / deviation,
            v_prediction=signal * predicted + deviation * noisy,
        )
        return images, noise

    def _scales(self, steps: Steps, like: Images) -> tuple[Array, Array]:
        left = self.alphas_cumprod[steps].reshape(-1, *(1,) * (like.ndim - 1)).astype(like.dtype)
        return jnp.sqrt(left), jnp.sqrt(1 - left)


def make_noise_schedule(name: str, num_steps: int = 1000) -> NoiseSchedule:
    """Returns a noise schedule by name.

    Args:
        name: ``linear`` has betas from 1e-4 to 0.02 (Ho et al. 2020, section 4), as diffusers'
            ``linear``. ``cosine`` is that of Nichol and Dhariwal 2021, equation 17, as diffusers'
            ``squaredcos_cap_v2``.
        num_steps: the number of steps, at least 1. The linear schedule is made for 1000 steps;
            with fewer, an image does not become noise.

    Raises:
        UserError: the name is unknown, or the number is out of range.
    """
    if num_steps < 1:
        raise UserError(f"num_steps={num_steps} must be at least 1")
    if name == "linear":
        betas = np.linspace(1e-4, 0.02, num_steps)
    elif name == "cosine":

        def left(t: float) -> float:
            return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = np.array(
            [
                min(1 - left((step + 1) / num_steps) / left(step / num_steps), 0.999)
                for step in range(num_steps)
            ]
        )
    else:
        raise UserError(f"the noise schedule {name!r} is unknown.{did_you_mean(name, SCHEDULES)}")
    # Products of a thousand factors are computed in float64 and rounded once.
    return NoiseSchedule(jnp.asarray(betas), jnp.asarray(np.cumprod(1 - betas)))


def _choose(prediction: str, **values: Images) -> Images:
    if prediction not in values:
        raise UserError(f"prediction={prediction!r} is unknown.{did_you_mean(prediction, values)}")
    return values[prediction]
