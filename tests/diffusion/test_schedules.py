"""Schedules and samplers against diffusers', step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from zoo.diffusion import (
    NoiseSchedule,
    ddim_step,
    ddpm_step,
    guided,
    make_noise_schedule,
    sample,
    schedules,
)
from zoo.diffusion.samplers import sampling_steps
from zoo.errors import UserError

NAMES = {"linear": {"beta_schedule": "linear"}, "cosine": {"beta_schedule": "squaredcos_cap_v2"}}
every_schedule = pytest.mark.parametrize("name", NAMES)
every_prediction = pytest.mark.parametrize("prediction", schedules.PREDICTIONS)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@every_schedule
def test_it_is_diffusers_schedule(name):
    theirs = peers.diffusers().DDPMScheduler(**NAMES[name])
    with jax.enable_x64(True):
        ours = make_noise_schedule(name)
    np.testing.assert_allclose(ours.betas, theirs.betas, rtol=1e-5)
    np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=2e-4, atol=1e-9)


def theirs_and_ours(kind, name, prediction, steps, clip):
    """A scheduler in float64 and a schedule with its very numbers."""
    torch = peers.torch()
    scheduler = getattr(peers.diffusers(), kind)(
        **NAMES[name], prediction_type=prediction, clip_sample=clip is not None,
        **({"clip_sample_range": clip} if clip else {}),
    )  # fmt: skip
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, 0)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    if kind == "DDIMScheduler":
        scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(steps)
    ours = NoiseSchedule(
        jnp.asarray(scheduler.betas.numpy()), jnp.asarray(scheduler.alphas_cumprod.numpy())
    )
    return scheduler, ours


@every_schedule
@every_prediction
def test_noising_is_diffusers(name, prediction):
    torch = peers.torch()
    with jax.enable_x64(True):
        theirs, ours = theirs_and_ours("DDPMScheduler", name, prediction, 10, None)
        images, noise = normal(4, 3, 3, 2), normal(4, 3, 3, 2, seed=1)
        steps = np.array([0, 1, 500, 999])
        arguments = [torch.tensor(x) for x in (images, noise, steps)]
        np.testing.assert_allclose(
            ours.add_noise(images, noise, steps), theirs.add_noise(*arguments), rtol=1e-9
        )
        if prediction == "v_prediction":
            np.testing.assert_allclose(
                ours.target(images, noise, steps, prediction),
                theirs.get_velocity(*arguments),
                rtol=1e-9,
            )


@every_prediction
def test_a_right_prediction_gives_image_and_noise_back(prediction):
    with jax.enable_x64(True):
        schedule = make_noise_schedule("cosine")
        images, noise = normal(3, 2, 2), normal(3, 2, 2, seed=1)
        steps = jnp.array([1, 300, 990])
        noisy = schedule.add_noise(images, noise, steps)
        target = schedule.target(images, noise, steps, prediction)
        found = schedule.image_and_noise(noisy, target, steps, prediction)
        np.testing.assert_allclose(found[0], images, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(found[1], noise, rtol=1e-6, atol=1e-8)


@every_schedule
@every_prediction
@pytest.mark.parametrize(("steps", "clip"), [(7, None), (50, 1.0), (1000, None)])
def test_ddpm_is_diffusers_step_by_step(name, prediction, steps, clip, monkeypatch):
    torch = peers.torch()
    from diffusers.schedulers import scheduling_ddpm

    noises = iter([normal(2, 3, 3, seed=100 + i) for i in range(1000)])
    monkeypatch.setattr(
        scheduling_ddpm, "randn_tensor", lambda shape, **_: torch.tensor(next(noises))
    )
    with jax.enable_x64(True):
        theirs, ours = theirs_and_ours("DDPMScheduler", name, prediction, steps, clip)
        visited = sampling_steps(1000, steps)
        assert visited.tolist() == theirs.timesteps.tolist()
        noisy = normal(2, 3, 3)
        # Few of a thousand: the first, some between, and the last.
        chosen = range(steps) if steps < 100 else [0, 1, 500, 998, 999]
        for i in chosen:
            predicted = normal(2, 3, 3, seed=1 + i)
            expected = theirs.step(
                torch.tensor(predicted), int(visited[i]), torch.tensor(noisy)
            ).prev_sample.numpy()
            noise = normal(2, 3, 3, seed=100 + list(chosen).index(i))
            made = ddpm_step(
                ours, predicted, noisy, visited[i], visited[i] - 1000 // steps, noise,
                prediction=prediction, clip=clip,
            )  # fmt: skip
            np.testing.assert_allclose(made, expected, rtol=1e-9, atol=1e-9)
            noisy = expected if clip else noisy


@every_schedule
@every_prediction
@pytest.mark.parametrize(
    ("steps", "clip", "eta", "from_clipped"),
    [(7, None, 0.0, False), (50, 1.0, 0.0, False), (20, None, 0.7, False), (20, 1.0, 0.7, True)],
)
def test_ddim_is_diffusers_step_by_step(name, prediction, steps, clip, eta, from_clipped):
    torch = peers.torch()
    with jax.enable_x64(True):
        theirs, ours = theirs_and_ours("DDIMScheduler", name, prediction, steps, clip)
        visited = sampling_steps(1000, steps)
        assert visited.tolist() == theirs.timesteps.tolist()
        noisy = normal(2, 3, 3)
        for i, step in enumerate(visited):
            predicted, noise = normal(2, 3, 3, seed=1 + i), normal(2, 3, 3, seed=100 + i)
            expected = theirs.step(
                torch.tensor(predicted), int(step), torch.tensor(noisy), eta=eta,
                use_clipped_model_output=from_clipped,
                **({"variance_noise": torch.tensor(noise)} if eta else {}),
            ).prev_sample.numpy()  # fmt: skip
            made = ddim_step(
                ours, predicted, noisy, step, step - 1000 // steps, noise,
                prediction=prediction, clip=clip, eta=eta, noise_from_clipped=from_clipped,
            )  # fmt: skip
            np.testing.assert_allclose(made, expected, rtol=1e-9, atol=1e-9)
            noisy = expected if clip else noisy


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_perfect_network_draws_its_image(sampler):
    """Of the noise that leads to one image alone, all ways end there."""
    schedule, image = make_noise_schedule("cosine"), jnp.array([[0.5, -0.25], [1.0, 0.0]])

    def denoise(noisy, steps):
        return jnp.broadcast_to(image, noisy.shape)

    drawn = jax.jit(
        lambda key: sample(
            denoise, schedule, (3, 2, 2), key, steps=20, sampler=sampler, prediction="sample"
        )
    )
    np.testing.assert_allclose(drawn(jax.random.key(0)), jnp.stack([image] * 3), atol=1e-3)
    np.testing.assert_array_equal(drawn(jax.random.key(1)), drawn(jax.random.key(1)))


def test_samples_follow_the_distribution_of_the_data():
    """For normal data the best network is known: samples have the data's mean and variance."""
    schedule = make_noise_schedule("linear")
    mean, deviation = 0.4, 0.3

    def denoise(noisy, steps):
        left = schedule.alphas_cumprod[steps][:, None]
        variance = left * deviation**2 + 1 - left
        return jnp.sqrt(1 - left) * (noisy - jnp.sqrt(left) * mean) / variance

    for sampler, steps in (("ddim", 100), ("ddpm", 1000)):
        drawn = jax.jit(
            lambda sampler=sampler, steps=steps: sample(
                denoise,
                schedule,
                (4000, 1),
                jax.random.key(0),
                steps=steps,
                sampler=sampler,
                clip=None,
            )
        )()
        assert abs(drawn.mean() - mean) < 0.03, sampler
        assert abs(drawn.std() - deviation) < 0.03, sampler


def test_guidance_goes_from_unconditional_over_conditional_beyond():
    a, b = jnp.array([1.0, 2.0]), jnp.array([0.0, 3.0])
    np.testing.assert_array_equal(guided(a, b, 0), b)
    np.testing.assert_array_equal(guided(a, b, 1), a)
    np.testing.assert_array_equal(guided(a, b, 3), [3.0, 0.0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make_noise_schedule("cosin"), "Did you mean 'cosine'"),
        (lambda: make_noise_schedule("linear", 0), "num_steps=0"),
        (lambda: sampling_steps(10, 11), "steps=11"),
        (
            lambda: make_noise_schedule("linear").target(
                jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.zeros(1, int), "epsilom"
            ),
            "Did you mean 'epsilon'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(UserError, match=words):
        call()
