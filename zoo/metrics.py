"""Metrics: sums that are computed on the device, and scores of whole splits on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def correct(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Returns 1 where the largest logit, or the first of several, is the label's, otherwise 0."""
    # The same as ``argmax(logits) == labels``, which XLA computes class by class on a CPU.
    own = jnp.take_along_axis(logits, labels[..., None], axis=-1)
    is_later = jnp.arange(logits.shape[-1]) >= labels[..., None]
    is_first = ((logits < own) | ((logits == own) & is_later)).all(axis=-1)
    return (is_first & (labels >= 0)).astype(logits.dtype)


def classification_scores(
    labels: Int[np.ndarray, " examples"],
    predictions: Int[np.ndarray, " examples"],
    class_names: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns scikit-learn's classification report and confusion matrix.

    Args:
        labels: true classes.
        predictions: predicted classes.
        class_names: a name for each class; a class that does not occur is listed too. A class
            without a name, which a model with more outputs may predict, is listed by its number.

    Returns:
        A dictionary. ``text`` is the report for people, and ``classification_report`` is the same
        report as a dictionary. ``confusion_matrix`` has the counts: rows are the true classes,
        columns the predicted ones.
    """
    # This import takes seconds, so it happens only where it is used.
    from sklearn.metrics import classification_report, confusion_matrix

    count = max(len(class_names), 1 + int(labels.max()), 1 + int(predictions.max()))
    classes = list(range(count))
    options: dict[str, Any] = {
        "labels": classes,
        "target_names": [*class_names, *map(str, classes[len(class_names) :])],
        "zero_division": 0,
    }
    return {
        "text": classification_report(labels, predictions, **options),
        "classification_report": classification_report(
            labels, predictions, output_dict=True, **options
        ),
        "confusion_matrix": confusion_matrix(labels, predictions, labels=classes).tolist(),
    }


def edit_errors(
    outputs: Sequence[Sequence[int]], references: Sequence[Sequence[Sequence[int]]]
) -> tuple[int, int, int]:
    """Counts the errors of outputs against the nearest of their references.

    Args:
        outputs: sequences of symbols.
        references: for each output, all sequences that count as correct, at least one.

    Returns:
        The number of outputs that equal no reference; the number of insertions, deletions and
        substitutions (Levenshtein distance) to the nearest references; the total length of these
        references.
    """
    from rapidfuzz.distance import Levenshtein

    wrong = edits = length = 0
    for output, right in zip(outputs, references, strict=True):
        # If two are equally near, take the longer one: it gives the smaller share of errors.
        distance, minus_length = min((Levenshtein.distance(output, r), -len(r)) for r in right)
        wrong += distance > 0
        edits += distance
        length -= minus_length
    return wrong, edits, length
