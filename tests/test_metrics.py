import json

import jax.numpy as jnp
import numpy as np
import pytest

from zoo.metrics import classification_scores, correct

LABELS = np.array([0, 0, 1, 1, 1, 3])
PREDICTIONS = np.array([0, 1, 1, 1, 0, 1])
NAMES = ("ant", "bee", "cat", "dog")


def test_correct_compares_the_largest_logit_with_the_label():
    logits = jnp.array([[0.1, 0.2, 0.0], [3.0, -1.0, 2.0], [5.0, 5.0, 0.0], [5.0, 5.0, 0.0]])
    np.testing.assert_array_equal(correct(logits, jnp.array([1, 2, 0, 1])), [1, 0, 1, 0])
    np.testing.assert_array_equal(correct(logits[None], jnp.array([[1, 2, 0, 1]])), [[1, 0, 1, 0]])


def test_scores_are_those_counted_by_hand():
    scores = classification_scores(LABELS, PREDICTIONS, NAMES)
    assert scores["confusion_matrix"] == [[1, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    report = scores["classification_report"]
    assert report["accuracy"] == pytest.approx(3 / 6)
    assert report["ant"] == pytest.approx(
        {"precision": 1 / 2, "recall": 1 / 2, "f1-score": 1 / 2, "support": 2}
    )
    assert report["bee"] == pytest.approx(
        {"precision": 2 / 4, "recall": 2 / 3, "f1-score": 4 / 7, "support": 3}
    )
    # Never the truth, or never predicted: 0, not nan, and listed all the same.
    nothing = {"precision": 0, "recall": 0, "f1-score": 0}
    assert report["cat"] == nothing | {"support": 0}
    assert report["dog"] == nothing | {"support": 1}
    assert report["macro avg"]["recall"] == pytest.approx((1 / 2 + 2 / 3) / 4)


def test_the_text_lists_every_class():
    lines = classification_scores(LABELS, PREDICTIONS, NAMES)["text"].splitlines()
    listed = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert listed["bee"] == ["0.50", "0.67", "0.57", "3"]
    assert listed["cat"] == ["0.00", "0.00", "0.00", "0"]


def test_scores_can_be_written_as_json():
    scores = classification_scores(LABELS.astype(np.int32), PREDICTIONS, NAMES)
    assert json.loads(json.dumps(scores)) == scores


def test_predictions_without_a_name_are_counted_too():
    # A model may have more outputs than the data have classes.
    scores = classification_scores(LABELS, np.array([0, 1, 1, 1, 5, 1]), NAMES)
    matrix = np.array(scores["confusion_matrix"])
    assert matrix.shape == (6, 6)
    assert matrix.sum() == len(LABELS)
    assert matrix[1, 5] == 1
    assert scores["classification_report"]["accuracy"] == pytest.approx(3 / 6 + 1 / 6 - 1 / 6)
    assert set(scores["classification_report"]) >= {*NAMES, "4", "5"}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_correct_is_argmax_with_ties_and_numbers_that_are_not_finite(dtype):
    values = np.random.default_rng(0).choice([-np.inf, -1, 0, 2, np.inf], size=(6, 200, 5))
    labels = np.random.default_rng(1).integers(-1, 6, size=(6, 200))
    expected = values.argmax(axis=-1) == labels
    ours = correct(jnp.asarray(values, dtype), jnp.asarray(labels))
    assert ours.dtype == dtype
    np.testing.assert_array_equal(ours, expected)
    # No class is right where none can be compared.
    np.testing.assert_array_equal(correct(jnp.full((5, 5), jnp.nan), jnp.arange(5)), np.zeros(5))
