"""Sampling images from noise: single steps of DDPM and DDIM, guidance, and the whole loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from zoo.diffusion.schedules import Images, NoiseSchedule, Steps
from zoo.errors import UserError

SAMPLERS = ("ddim", "ddpm")
# (noisy images, the step of each) -> prediction
Denoiser = Callable[[Images, Steps], Images]


def sampling_steps(num_steps: int, num_inference_steps: int) -> np.ndarray:
    """Returns the steps of the forward process that sampling visits, from the noisiest down.

    The steps are evenly spaced and end at 0, as with diffusers' ``timestep_spacing="leading"``.

    Raises:
        UserError: more steps are asked for than the process has, or none.
    """
    if not 1 <= num_inference_steps <= num_steps:
        raise UserError(
            f"steps={num_inference_steps} must be between 1 and the schedule's {num_steps}"
        )
    return np.arange(num_inference_steps)[::-1] * (num_steps // num_inference_steps)


def ddpm_step(
    schedule: NoiseSchedule,
    predicted: Images,
    noisy: Images,
    step: Int[Array, ""],
    previous: Int[Array, ""],
    noise: Images,
    *,
    prediction: str = "epsilon",
    clip: float | None = None,
) -> Images:
    """Draws ``x_previous`` from the posterior (Ho et al. 2020, equations 6 and 7).

    Matches diffusers' ``DDPMScheduler`` with ``variance_type="fixed_small"``.

    Args:
        schedule: the forward process.
        predicted: the network's prediction at ``step``.
        noisy: the images at ``step``.
        step: the current step.
        previous: the next step to visit, below ``step``; a negative number is the clean image.
        noise: normal noise; not used at the last step.
        prediction: see ``NoiseSchedule.target``.
        clip: the largest absolute value of the predicted clean images; None allows any value.
    """
    images, _ = _predicted(schedule, predicted, noisy, step, prediction, clip)
    left, left_previous = _left(schedule, step), _left(schedule, previous)
    # A jump over several steps counts as one step.
    alpha = left / left_previous
    mean = (
        jnp.sqrt(left_previous) * (1 - alpha) / (1 - left) * images
        + jnp.sqrt(alpha) * (1 - left_previous) / (1 - left) * noisy
    )
    variance = jnp.maximum((1 - left_previous) / (1 - left) * (1 - alpha), 1e-20)
    return mean + jnp.where(step > 0, jnp.sqrt(variance), 0).astype(noisy.dtype) * noise


def ddim_step(
    schedule: NoiseSchedule,
    predicted: Images,
    noisy: Images,
    step: Int[Array, ""],
    previous: Int[Array, ""],
    noise: Images,
    *,
    eta: float = 0.0,
    prediction: str = "epsilon",
    clip: float | None = None,
    noise_from_clipped: bool = False,
) -> Images:
    """Goes to ``x_previous`` with no or some new noise (Song et al. 2021, equation 12).

    Matches diffusers' ``DDIMScheduler`` with ``set_alpha_to_one=True``.

    Args:
        schedule: the forward process.
        predicted: the network's prediction at ``step``.
        noisy: the images at ``step``.
        step: the current step.
        previous: the next step to visit, below ``step``; a negative number is the clean image.
        noise: normal noise; not used if ``eta`` is 0.
        eta: the amount of new noise. With 0 the same noise gives the same image; 1 adds as much
            new noise as DDPM.
        prediction: see ``NoiseSchedule.target``.
        clip: the largest absolute value of the predicted clean images; None allows any value.
        noise_from_clipped: whether the noise is recomputed as what remains of ``noisy`` without
            the clipped images (``use_clipped_model_output``). With strong guidance the network
            predicts more noise than there is, and the excess piles up.
    """
    images, direction = _predicted(schedule, predicted, noisy, step, prediction, clip)
    if noise_from_clipped:
        _, direction = _predicted(schedule, images, noisy, step, "sample", None)
    left, left_previous = _left(schedule, step), _left(schedule, previous)
    variance = (1 - left_previous) / (1 - left) * (1 - left / left_previous)
    deviation = eta * jnp.sqrt(variance)
    # At the last step rounding may leave a negative number.
    rest = jnp.sqrt(jnp.maximum(1 - left_previous - deviation**2, 0))
    return jnp.sqrt(left_previous) * images + rest * direction + deviation * noise


def guided(
    conditional: Images, unconditional: Images, guidance: float | Float[Array, ""]
) -> Images:
    """Goes past the conditional prediction, away from the unconditional one.

    This is classifier-free guidance (Ho and Salimans 2022) in diffusers' scale: 0 is unconditional,
    1 is conditional, and a number above 1 is guided.
    """
    return unconditional + guidance * (conditional - unconditional)


def sample(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    shape: tuple[int, ...],
    key: PRNGKeyArray,
    *,
    steps: int = 50,
    sampler: str = "ddim",
    eta: float = 0.0,
    prediction: str = "epsilon",
    clip: float | None = 1.0,
) -> Images:
    """Draws images, starting from noise; can be compiled.

    DDIM takes the noise from the clipped images; see ``ddim_step``.

    Args:
        denoise: the network, guidance included.
        schedule: the forward process that the network was trained on.
        shape: the shape of the images, the batch first.
        key: the random key; the same key gives the same images.
        steps: the number of steps, at most the schedule's.
        sampler: ``ddim`` or ``ddpm``.
        eta: see ``ddim_step``.
        prediction: see ``NoiseSchedule.target``.
        clip: the largest absolute value of the images.

    Raises:
        UserError: a name is unknown, or ``steps`` is out of range.
    """
    if sampler not in SAMPLERS:
        raise UserError(f"sampler={sampler!r} must be 'ddim' or 'ddpm'")
    visited = sampling_steps(schedule.num_steps, steps)
    stride = schedule.num_steps // steps
    first_key, key = jax.random.split(key)

    def body(noisy: Images, step: Int[Array, ""]) -> tuple[Images, None]:
        predicted = denoise(noisy, jnp.full(shape[0], step))
        noise = jax.random.normal(jax.random.fold_in(key, step), shape)
        arguments = (schedule, predicted, noisy, step, step - stride, noise)
        options: dict[str, Any] = {"prediction": prediction, "clip": clip}
        if sampler == "ddpm":
            return ddpm_step(*arguments, **options), None
        return ddim_step(*arguments, eta=eta, noise_from_clipped=True, **options), None

    images, _ = jax.lax.scan(body, jax.random.normal(first_key, shape), jnp.asarray(visited))
    return images


def _predicted(
    schedule: NoiseSchedule,
    predicted: Images,
    noisy: Images,
    step: Int[Array, ""],
    prediction: str,
    clip: float | None,
) -> tuple[Images, Images]:
    steps = jnp.full(noisy.shape[0], step)
    images, noise = schedule.image_and_noise(noisy, predicted, steps, prediction)
    return (images if clip is None else jnp.clip(images, -clip, clip)), noise


def _left(schedule: NoiseSchedule, step: Int[Array, ""]) -> Float[Array, ""]:
    return jnp.where(step < 0, 1.0, schedule.alphas_cumprod[jnp.maximum(step, 0)])
