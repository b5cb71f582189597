"""Learning rates as functions of the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from zoo import fields
from zoo.errors import UserError, did_you_mean

NAMES = ("constant", "cosine", "inverse_sqrt", "linear", "step", "warmup_cosine")
# Schedules whose rate at a step depends on the total number of steps.
DEPEND_ON_LENGTH = ("cosine", "linear", "warmup_cosine")


def make_schedule(
    name: str,
    learning_rate: float,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    end_value: float = 0.0,
    step_size: int = 0,
    gamma: float = 0.1,
) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates made so far.

    Args:
        name: one of the following schedules. ``constant`` keeps the rate. ``step`` multiplies it by
            ``gamma`` every ``step_size`` steps (``torch.optim.lr_scheduler.StepLR``). ``cosine``
            falls along half a cosine to ``end_value`` (Loshchilov and Hutter 2017, equation 5;
            ``CosineAnnealingLR``). ``linear`` falls along a straight line to ``end_value``
            (``LinearLR``). ``warmup_cosine`` rises along a straight line from 0 over
            ``warmup_steps`` and then follows the cosine. ``inverse_sqrt`` rises over
            ``warmup_steps`` to the largest rate and then falls with the root of the step (Vaswani
            et al. 2017, section 5.3; theirs has the ``learning_rate`` (features * warmup_steps) **
            -0.5).
        learning_rate: the largest rate, above 0.
        total_steps: the number of updates of the run, at least 1. After them the rate stays at
            ``end_value``.
        warmup_steps: the length of the warm-up, at least 0. A shorter run ends within the warm-up.
        end_value: the last rate of schedules that fall to it, between 0 and ``learning_rate``.
        step_size: the number of steps between two drops of ``step``, at least 1.
        gamma: the factor of a drop, above 0.

    Raises:
        UserError: the name is unknown, ``step`` lacks its ``step_size``, or a number is out of
            range.
    """
    for field, value, fits, rule in (
        ("learning_rate", learning_rate, learning_rate > 0, "above 0"),
        ("warmup_steps", warmup_steps, warmup_steps >= 0, "at least 0"),
        (
            "end_value",
            end_value,
            0 <= end_value <= learning_rate,
            f"between 0 and optimizer.learning_rate={learning_rate}",
        ),
        ("gamma", gamma, gamma > 0, "above 0"),
    ):
        if not fits:
            raise UserError(f"optimizer.{field}={value} must be {rule}")
    if total_steps < 1:
        raise UserError(f"total_steps={total_steps} must be at least 1")

    def cosine(step: Float[Array, ""], steps: int) -> Float[Array, ""]:
        share = jnp.clip(step / steps, 0, 1)
        return end_value + (learning_rate - end_value) * 0.5 * (1 + jnp.cos(jnp.pi * share))

    if name == "constant":
        return optax.constant_schedule(learning_rate)
    if name == "step":
        if step_size < 1:
            raise UserError(
                f"optimizer.schedule='step' needs optimizer.step_size, at least 1, not {step_size}"
            )
        return lambda step: learning_rate * jnp.power(gamma, step // step_size)
    if name == "cosine":
        return lambda step: cosine(step, total_steps)
    if name == "linear":
        return optax.linear_schedule(learning_rate, end_value, total_steps)
    if name == "warmup_cosine":
        rest = max(total_steps - warmup_steps, 1)
        return lambda step: jnp.where(
            step < warmup_steps,
            learning_rate * step / max(warmup_steps, 1),
            cosine(step - warmup_steps, rest),
        )
    if name == "inverse_sqrt":
        if warmup_steps < 1:
            raise UserError(
                "optimizer.schedule='inverse_sqrt' needs optimizer.warmup_steps, at least 1"
            )
        # Count the first update as step 1, since a rate of 0 would change nothing.
        return lambda step: (
            learning_rate
            * jnp.minimum((step + 1) / warmup_steps, jnp.sqrt(warmup_steps / (step + 1)))
        )
    raise UserError(f"optimizer.schedule={name!r} is unknown.{did_you_mean(name, NAMES)}")


FIELDS: fields.Fields = {
    "learning_rate": fields.Field(1e-3, fields.ABOVE_ZERO),
    "schedule": fields.Field("constant", fields.choice(*NAMES)),
    **fields.of(
        make_schedule,
        {
            "warmup_steps": fields.at_least(0),
            "end_value": fields.at_least(0),
            "step_size": fields.at_least(0),
            "gamma": fields.ABOVE_ZERO,
        },
    ),
}


def check(section: Mapping[str, Any]) -> None:
    """Raises ConfigError if the schedule's fields of a config cannot work together."""
    if section["schedule"] == "step" and not section["step_size"]:
        raise fields.ConfigError(
            "optimizer.schedule='step' needs optimizer.step_size, the steps between two drops"
        )
    if section["schedule"] == "inverse_sqrt" and not section["warmup_steps"]:
        raise fields.ConfigError(
            "optimizer.schedule='inverse_sqrt' needs optimizer.warmup_steps, at least 1"
        )
    if section["warmup_steps"] and section["schedule"] not in ("inverse_sqrt", "warmup_cosine"):
        raise fields.ConfigError(
            f"optimizer.warmup_steps={section['warmup_steps']} has no meaning for "
            f"optimizer.schedule={section['schedule']!r}: take 'warmup_cosine' or 'inverse_sqrt'"
        )
