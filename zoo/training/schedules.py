"""Learning rate by step."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from zoo.errors import UserError, did_you_mean


def make_schedule(
    name: str,
    learning_rate: float,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    end_value: float = 0.0,
    step_size: int | None = None,
    gamma: float = 0.1,
) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates made so far.

    Args:
        name: ``constant``; ``step``: times ``gamma`` every ``step_size`` steps
            (``torch.optim.lr_scheduler.StepLR``); ``cosine``: half a cosine down to ``end_value``
            (Loshchilov and Hutter 2017, equation 5; ``CosineAnnealingLR``); ``linear``: a straight
            line down to it (``LinearLR``); ``warmup_cosine``: a straight line up from 0 over
            ``warmup_steps``, then the cosine over the rest; ``inverse_sqrt``: up over
            ``warmup_steps`` to the largest rate, then down with the root of the step (Vaswani et
            al. 2017, section 5.3; theirs is ``learning_rate`` (features * warmup_steps) ** -0.5).
        learning_rate: the largest rate, above 0.
        total_steps: number of updates of the run, at least 1; after them the rate stays at
            ``end_value``.
        warmup_steps: length of the warm-up, at least 0; a run that is shorter ends within it.
        end_value: the last rate of those that fall, between 0 and ``learning_rate``.
        step_size: steps between two drops of ``step``, at least 1.
        gamma: factor of a drop, above 0.

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
        if step_size is None or step_size < 1:
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
        # The first update is step 1: a rate of 0 would change nothing.
        return lambda step: (
            learning_rate
            * jnp.minimum((step + 1) / warmup_steps, jnp.sqrt(warmup_steps / (step + 1)))
        )
    known = ("constant", "cosine", "inverse_sqrt", "linear", "step", "warmup_cosine")
    raise UserError(f"optimizer.schedule={name!r} is unknown.{did_you_mean(name, known)}")
