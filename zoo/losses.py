"""Losses. Each returns one value for each example or element, and the caller adds them up."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"] | Float[Array, "*batch classes"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, "*batch"]:
    """Cross-entropy between the softmax of logits and labels.

    Matches ``torch.nn.functional.cross_entropy(reduction="none")``.

    Args:
        logits: any real numbers.
        labels: classes, or probabilities over the classes. A class that does not exist gives nan,
            which stops a run. A row that does not count needs a valid label and the weight 0.
        label_smoothing: the weight of the uniform distribution in the target, in [0, 1) (Szegedy
            et al. 2016, section 7).

    Raises:
        ValueError: the shapes do not match, or the smoothing is out of range.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing} must be at least 0 and below 1")
    if labels.shape == logits.shape[:-1] and jnp.issubdtype(labels.dtype, jnp.integer):
        return _of_classes(label_smoothing, logits, labels)
    if labels.shape != logits.shape:
        raise ValueError(
            f"labels {labels.dtype}{labels.shape} must be integers {logits.shape[:-1]} or "
            f"probabilities {logits.shape}"
        )
    log_probabilities = jax.nn.log_softmax(logits)
    picked = (labels * log_probabilities).sum(axis=-1)
    if not label_smoothing:
        return -picked
    return -(1 - label_smoothing) * picked - label_smoothing * log_probabilities.mean(axis=-1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _of_classes(
    label_smoothing: float, logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Cross-entropy of classes whose gradient is the softmax minus the target.

    JAX's own rule would scatter the selected logits into an array of zeros over all classes. With
    thousands of classes this takes as long as a product.
    """
    largest = logits.max(axis=-1)
    log_total = jnp.log(jnp.exp(logits - largest[..., None]).sum(axis=-1))
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    # An index that is too large gives nan, but a negative one would count from the end.
    loss = jnp.where(labels >= 0, log_total - (picked - largest), jnp.nan)
    if not label_smoothing:
        return loss
    of_all = log_total - (logits - largest[..., None]).mean(axis=-1)
    return (1 - label_smoothing) * loss + label_smoothing * of_all


@_of_classes.defjvp
def _of_classes_jvp(label_smoothing: float, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (logits, labels), (d_logits, _) = primals, tangents
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    softmax = weights / weights.sum(axis=-1, keepdims=True)
    classes = logits.shape[-1]
    is_label = jnp.arange(classes) == labels[..., None]
    target = (1 - label_smoothing) * is_label + label_smoothing / classes
    loss = _of_classes(label_smoothing, logits, labels)
    return loss, ((softmax - target) * d_logits).sum(axis=-1)


def binary_cross_entropy(
    logits: Float[Array, "*shape"], targets: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Cross-entropy between the sigmoid of logits and targets in [0, 1].

    Matches ``torch.nn.functional.binary_cross_entropy_with_logits(reduction="none")``.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(logits, targets)
    return -targets * jax.nn.log_sigmoid(logits) - (1 - targets) * jax.nn.log_sigmoid(-logits)


def mean_squared_error(
    predictions: Float[Array, "*shape"], targets: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Squared difference of each element; the caller takes the mean.

    Matches ``torch.nn.functional.mse_loss(reduction="none")``.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(predictions, targets)
    return jnp.square(predictions - targets)


def contrastive(logits: Float[Array, "examples examples"]) -> Float[Array, " examples"]:
    """Cross-entropy of finding the other half of each pair among all of the batch, both ways.

    The loss of CLIP (Radford et al. 2021, figure 3): the mean of the loss that finds the text of
    each image and the one that finds the image of each text. The mean of the result is the
    ``loss`` that Hugging Face's ``CLIPModel`` returns.

    Args:
        logits: how well each image goes with each text; pairs are on the diagonal.

    Raises:
        ValueError: there are not as many images as texts.
    """
    if logits.ndim != 2 or logits.shape[0] != logits.shape[1]:
        raise ValueError(f"the logits {logits.shape} must be square: a text for each image")
    pairs = jnp.arange(logits.shape[0])
    return (cross_entropy(logits, pairs) + cross_entropy(logits.T, pairs)) / 2


def _check_same_shape(a: Array, b: Array) -> None:
    if a.shape != b.shape:
        raise ValueError(f"the shapes {a.shape} and {b.shape} must be equal")


def pinball(
    predictions: Float[Array, "*shape"],
    targets: Float[Array, "*shape"],
    probabilities: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    """Pinball loss, whose expectation is smallest at a quantile (Koenker and Bassett 1978).

    Matches scikit-learn's ``mean_pinball_loss`` before the mean. Shapes are broadcast.

    Args:
        predictions: predicted quantiles.
        targets: the observed values.
        probabilities: the probabilities of the quantiles, between 0 and 1.
    """
    over = targets - predictions
    return jnp.maximum(probabilities * over, (probabilities - 1) * over)
