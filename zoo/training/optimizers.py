"""Optimizers, each as one optax chain with PyTorch's update rule."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from zoo import fields
from zoo.errors import UserError, did_you_mean

NAMES = ("adam", "adamw", "lion", "rmsprop", "sgd")
DECAY_MODES = ("auto", "coupled", "decoupled")


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    weight_decay: float = 0.0,
    decay_mode: str = "auto",
    decay_exclude: str = "",
    clip_norm: float = 0.0,
    momentum: float = 0.0,
    nesterov: bool = False,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    rms_decay: float = 0.99,
    centered: bool = False,
) -> optax.GradientTransformation:
    """Returns an optimizer whose updates are added to the parameters.

    Args:
        name: ``sgd`` (``torch.optim.SGD``), ``adam`` (Kingma and Ba 2015, algorithm 1), ``adamw``
            (Loshchilov and Hutter 2019, algorithm 2), ``rmsprop`` (``torch.optim.RMSprop``) or
            ``lion`` (Chen et al. 2023, algorithm 2).
        schedule: the learning rate as a function of the number of updates made so far.
        weight_decay: the factor of the parameters, at least 0.
        decay_mode: ``coupled`` adds the decay to the gradient, as an L2 penalty. ``decoupled`` adds
            it, times the learning rate, to the update. ``auto`` is decoupled for adamw and lion,
            otherwise coupled.
        decay_exclude: a regular expression. Parameters whose path, such as ``conv1/bias``, has a
            match are not decayed.
        clip_norm: the largest global norm of the gradient, as ``torch.nn.utils.clip_grad_norm_``
            but without its 1e-6 in the divisor; 0 disables clipping.
        momentum: the momentum of sgd and rmsprop, in [0, 1).
        nesterov: whether sgd looks one step of momentum ahead.
        b1: the decay of the mean of gradients in adam, adamw and lion.
        b2: the decay of the mean of squared gradients in adam and adamw; in lion, the decay of the
            momentum.
        eps: the number added to the root in adam, adamw and rmsprop.
        rms_decay: the decay of the mean of squares in rmsprop, PyTorch's ``alpha``.
        centered: whether rmsprop divides by the standard deviation instead of the root of the mean
            square.

    Raises:
        UserError: a name is unknown.
    """
    rules: dict[str, Callable[[], list[optax.GradientTransformation]]] = {
        "sgd": lambda: [optax.trace(momentum, nesterov)] if momentum else [],
        "adam": lambda: [optax.scale_by_adam(b1, b2, eps)],
        "adamw": lambda: [optax.scale_by_adam(b1, b2, eps)],
        "rmsprop": lambda: [
            (optax.scale_by_stddev if centered else optax.scale_by_rms)(
                rms_decay, eps, eps_in_sqrt=False
            ),
            # The momentum comes after the division and before the learning rate, as in PyTorch.
            *([optax.trace(momentum)] if momentum else []),
        ],
        "lion": lambda: [optax.scale_by_lion(b1, b2)],
    }
    if name not in rules:
        raise UserError(f"optimizer.name={name!r} is unknown.{did_you_mean(name, rules)}")
    if decay_mode not in DECAY_MODES:
        raise UserError(
            f"optimizer.decay_mode={decay_mode!r} is unknown."
            f"{did_you_mean(decay_mode, DECAY_MODES)}"
        )
    decoupled = decay_mode == "decoupled" or (decay_mode == "auto" and name in ("adamw", "lion"))
    decay = []
    if weight_decay:
        decay = [optax.add_decayed_weights(weight_decay, _decays(decay_exclude))]
    return optax.chain(
        *([optax.clip_by_global_norm(clip_norm)] if clip_norm else []),
        *([] if decoupled else decay),
        *rules[name](),
        *(decay if decoupled else []),
        optax.scale_by_learning_rate(schedule),
    )


FIELDS: fields.Fields = {
    "name": fields.Field("adam", fields.choice(*NAMES)),
    **fields.of(
        make_optimizer,
        {
            "weight_decay": fields.at_least(0),
            "decay_mode": fields.choice(*DECAY_MODES),
            "decay_exclude": fields.PATTERN,
            "clip_norm": fields.at_least(0),
            "momentum": fields.FRACTION,
            "b1": fields.FRACTION,
            "b2": fields.FRACTION,
            "eps": fields.ABOVE_ZERO,
            "rms_decay": fields.FRACTION,
        },
    ),
}


def check(section: Mapping[str, Any]) -> None:
    """Raises ConfigError if fields of the section ``optimizer`` cannot work together."""
    if section["nesterov"] and not section["momentum"]:
        raise fields.ConfigError(
            "optimizer.nesterov=True needs optimizer.momentum above 0, for example 0.9"
        )
    owners = {"momentum": ("sgd", "rmsprop"), "nesterov": ("sgd",), "centered": ("rmsprop",)}
    for name, names in owners.items():
        if section[name] and section["name"] not in names:
            raise fields.ConfigError(
                f"optimizer.{name}={section[name]} has no meaning for "
                f"optimizer.name={section['name']!r}: it belongs to {' and '.join(names)}"
            )
    if section["name"] in ("adamw", "lion") and section["decay_mode"] == "coupled":
        raise fields.ConfigError(
            f"optimizer.name={section['name']!r} decays weights decoupled by definition; for "
            "optimizer.decay_mode='coupled' take optimizer.name='adam'"
        )


def freeze(optimizer: optax.GradientTransformation, pattern: str) -> optax.GradientTransformation:
    """Returns an optimizer that leaves some parameters unchanged and keeps no state for them.

    Args:
        optimizer: the optimizer of the other parameters.
        pattern: a regular expression. Parameters whose path, such as ``conv1/bias``, has a match
            are frozen.
    """
    search = re.compile(pattern).search

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "frozen" if search(_path(path)) else "trained", params
        )

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _decays(exclude: str) -> Callable[[Any], Any] | None:
    if not exclude:
        return None
    pattern = re.compile(exclude)

    def mask(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: not pattern.search(_path(path)), params
        )

    return mask
