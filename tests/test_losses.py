import importlib

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from zoo.losses import (
    binary_cross_entropy,
    contrastive,
    cross_entropy,
    mean_squared_error,
)

CLASSES = 7


def assert_parity(ours, theirs, inputs):
    """Compares values and gradients, in float64, of functions that reduce nothing."""
    torch = peers.torch()
    tensor = torch.tensor(inputs, requires_grad=True)
    expected = theirs(tensor)
    weight = np.random.default_rng(5).normal(size=expected.shape)
    expected.backward(torch.tensor(weight))
    with jax.enable_x64(True):
        output, backward = jax.vjp(ours, jnp.asarray(inputs))
        (gradient,) = backward(jnp.asarray(weight))
    assert np.isfinite(output).all()
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(output, expected.detach(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gradient, tensor.grad, rtol=1e-12, atol=1e-12)


def logits_of(kind, shape):
    generator = np.random.default_rng(0)
    if kind == "extreme":
        return generator.choice([-1e4, 0.0, 1e4], size=shape)
    return 3 * generator.normal(size=shape)


both_kinds = pytest.mark.parametrize("kind", ["random", "extreme"])


@both_kinds
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_of_classes(kind, label_smoothing):
    functional = peers.torch().nn.functional
    labels = np.random.default_rng(1).integers(CLASSES, size=50)
    labels[:2] = (0, CLASSES - 1)
    assert_parity(
        lambda x: cross_entropy(x, jnp.asarray(labels), label_smoothing=label_smoothing),
        lambda x: functional.cross_entropy(
            x,
            peers.torch().tensor(labels),
            label_smoothing=label_smoothing,
            reduction="none",
        ),
        logits_of(kind, (50, CLASSES)),
    )


@both_kinds
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_of_probabilities(kind, label_smoothing):
    functional = peers.torch().nn.functional
    labels = np.random.default_rng(1).dirichlet(np.ones(CLASSES), size=50)
    labels[0] = np.eye(CLASSES)[3]
    assert_parity(
        lambda x: cross_entropy(x, jnp.asarray(labels), label_smoothing=label_smoothing),
        lambda x: functional.cross_entropy(
            x,
            peers.torch().tensor(labels),
            label_smoothing=label_smoothing,
            reduction="none",
        ),
        logits_of(kind, (50, CLASSES)),
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_of_classes_has_the_derivatives_of_that_of_probabilities(label_smoothing):
    labels = jnp.asarray(np.random.default_rng(1).integers(CLASSES, size=20))
    with jax.enable_x64(True):
        logits, along = (
            jnp.asarray(np.random.default_rng(n).normal(size=(20, CLASSES))) for n in (0, 2)
        )

        def loss(labels):
            return lambda x: cross_entropy(x, labels, label_smoothing=label_smoothing)

        def derivatives(function):
            def total(x):
                return (function(x) ** 2).sum()

            return (
                jax.jvp(function, (logits,), (along,)),
                jax.jvp(jax.grad(total), (logits,), (along,)),
                jax.grad(lambda x: (jax.grad(total)(x) ** 2).sum())(logits),
                jax.vmap(jax.grad(lambda x: function(x).sum()))(jnp.stack([logits, 2 * logits])),
            )

        ours = derivatives(loss(labels))
        theirs = derivatives(loss(jax.nn.one_hot(labels, CLASSES, dtype=jnp.float64)))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def test_cross_entropy_keeps_all_axes_but_the_last():
    logits, labels = logits_of("random", (2, 3, CLASSES)), np.array([[0, 1, 2], [3, 4, 5]])
    output = cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    assert output.shape == (2, 3)
    np.testing.assert_allclose(output[1], cross_entropy(logits[1], labels[1]), rtol=1e-6)


@both_kinds
def test_binary_cross_entropy(kind):
    functional = peers.torch().nn.functional
    generator = np.random.default_rng(1)
    targets = np.where(generator.random((20, 5)) < 0.5, generator.random((20, 5)), 1.0)
    targets[:3] = 0
    assert_parity(
        lambda x: binary_cross_entropy(x, jnp.asarray(targets)),
        lambda x: functional.binary_cross_entropy_with_logits(
            x, peers.torch().tensor(targets), reduction="none"
        ),
        logits_of(kind, (20, 5)),
    )


@both_kinds
def test_mean_squared_error(kind):
    functional = peers.torch().nn.functional
    targets = np.random.default_rng(1).normal(size=(20, 5))
    assert_parity(
        lambda x: mean_squared_error(x, jnp.asarray(targets)),
        lambda x: functional.mse_loss(x, peers.torch().tensor(targets), reduction="none"),
        logits_of(kind, (20, 5)),
    )


def test_confident_and_right_costs_nothing_and_wrong_the_difference_in_float32():
    logits = jnp.array([[1e4, -1e4], [1e4, -1e4]])
    np.testing.assert_array_equal(cross_entropy(logits, jnp.array([0, 1])), [0, 2e4])
    gradient = jax.grad(lambda x: cross_entropy(x, jnp.array([0, 1])).sum())(logits)
    np.testing.assert_array_equal(gradient, [[0, 0], [1, -1]])
    np.testing.assert_array_equal(
        binary_cross_entropy(logits, jnp.array([[1.0, 0.0], [0.0, 1.0]])), [[0, 0], [1e4, 1e4]]
    )


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_that_is_no_class_is_never_a_number(label):
    labels = jnp.array([2, label, 3])
    for smoothing in (0.0, 0.1):
        loss = cross_entropy(jnp.zeros((3, CLASSES)), labels, label_smoothing=smoothing)
        np.testing.assert_array_equal(np.isnan(loss), [False, True, False])


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        (lambda: cross_entropy(jnp.zeros((4, 3)), jnp.zeros((4, 1), int)), ["(4, 1)", "(4, 3)"]),
        (lambda: cross_entropy(jnp.zeros((4, 3)), jnp.zeros(4)), ["float32", "(4,)"]),
        (lambda: cross_entropy(jnp.zeros((4, 3)), jnp.zeros(5, int)), ["(5,)", "(4,)"]),
        (
            lambda: cross_entropy(jnp.zeros((4, 3)), jnp.zeros(4, int), label_smoothing=1.5),
            ["label_smoothing=1.5"],
        ),
        (lambda: binary_cross_entropy(jnp.zeros((4, 1)), jnp.zeros(4)), ["(4, 1)", "(4,)"]),
        (lambda: mean_squared_error(jnp.zeros((4, 1)), jnp.zeros(4)), ["(4, 1)", "(4,)"]),
    ],
)
def test_what_does_not_fit_is_refused(compute, words):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        compute()
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


@both_kinds
def test_contrastive(kind):
    clip = importlib.import_module(f"{peers.transformers().__name__}.models.clip.modeling_clip")
    assert_parity(
        lambda x: contrastive(x).mean(), clip.image_text_contrastive_loss, logits_of(kind, (6, 6))
    )


@pytest.mark.parametrize("shape", [(3, 4), (4,), (2, 3, 3)])
def test_contrastive_of_other_than_pairs_is_refused(shape):
    with pytest.raises(ValueError, match="must be square"):
        contrastive(jnp.zeros(shape))
