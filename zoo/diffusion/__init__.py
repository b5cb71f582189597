"""Diffusion: noise schedules, prediction targets and samplers. A model is a function."""

from zoo.diffusion.samplers import ddim_step, ddpm_step, guided, sample
from zoo.diffusion.schedules import NoiseSchedule, make_noise_schedule

__all__ = [
    "NoiseSchedule",
    "ddim_step",
    "ddpm_step",
    "guided",
    "make_noise_schedule",
    "sample",
]
