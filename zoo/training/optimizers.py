"""Optimizers as one optax chain, with PyTorch's update rules."""

import re
from collections.abc import Callable
from typing import Any

import jax
import optax

from zoo.errors import UserError, did_you_mean


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    weight_decay: float = 0.0,
    decay_mode: str = "auto",
    decay_exclude: str = "",
    clip_norm: float | None = None,
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
        schedule: learning rate by number of updates made so far.
        weight_decay: factor of the parameters, at least 0.
        decay_mode: ``coupled``: added to the gradient, an L2 penalty; ``decoupled``: added to the
            update, times the learning rate; ``auto``: decoupled for adamw and lion, else coupled.
        decay_exclude: regular expression; parameters whose path, such as ``conv1/bias``, has a
            match are not decayed.
        clip_norm: largest global norm of the gradient, as ``torch.nn.utils.clip_grad_norm_`` but
            without its 1e-6 in the divisor; None: no clipping.
        momentum: of sgd and rmsprop, in [0, 1).
        nesterov: sgd looks one step of momentum ahead.
        b1: decay of the mean of gradients in adam, adamw and lion.
        b2: decay of the mean of their squares; in lion, of the momentum.
        eps: added to the root in adam, adamw and rmsprop.
        rms_decay: decay of the mean of squares in rmsprop, PyTorch's ``alpha``.
        centered: rmsprop divides by the standard deviation, not by the root of the mean square.

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
            # After the division and before the learning rate, as PyTorch has it.
            *([optax.trace(momentum)] if momentum else []),
        ],
        "lion": lambda: [optax.scale_by_lion(b1, b2)],
    }
    if name not in rules:
        raise UserError(f"optimizer.name={name!r} is unknown.{did_you_mean(name, rules)}")
    modes = ("auto", "coupled", "decoupled")
    if decay_mode not in modes:
        raise UserError(
            f"optimizer.decay_mode={decay_mode!r} is unknown.{did_you_mean(decay_mode, modes)}"
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


def freeze(optimizer: optax.GradientTransformation, pattern: str) -> optax.GradientTransformation:
    """Returns an optimizer that leaves some parameters as they are and keeps no state for them.

    Args:
        optimizer: of the others.
        pattern: regular expression; parameters whose path, such as ``conv1/bias``, has a match are
            frozen.
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
