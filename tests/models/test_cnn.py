"""The seed's network against the seed's PyTorch class."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import parity
import peers
import pytest

from zoo.errors import UserError
from zoo.families.cnn import cnn_table
from zoo.models import CNN

SMALL = {"num_classes": 5, "features": (4, 6, 8), "hidden_features": 16}


def seed_net(activation="relu", *, image_size, num_classes, features, kernel_size, hidden_features):
    """The seed's class, its numbers as arguments; kernels are padded to keep the size."""
    torch = peers.torch()
    function = torch.nn.functional

    class SeedNet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            channels = (3, *features)
            self.conv1, self.conv2, self.conv3 = (
                torch.nn.Conv2d(*pair, kernel_size=kernel_size, padding=kernel_size // 2)
                for pair in itertools.pairwise(channels)
            )
            side = image_size // 2 // 2
            self.fc1 = torch.nn.Linear(features[2] * side * side, hidden_features)
            self.fc2 = torch.nn.Linear(hidden_features, num_classes)
            self.dropout = torch.nn.Dropout(0.5)

        def forward(self, x):
            act = getattr(function, activation)
            x = act(self.conv1(x))
            x = act(self.conv2(x))
            x = function.max_pool2d(x, kernel_size=2, stride=2)
            x = act(self.conv3(x))
            x = function.max_pool2d(x, kernel_size=2, stride=2)
            x = self.dropout(torch.flatten(x, 1))
            x = act(self.fc1(x))
            x = self.dropout(x)
            return self.fc2(x)

    torch.manual_seed(0)
    return SeedNet()


def images(size, batch=2):
    return np.random.default_rng(3).normal(size=(batch, size, size, 3)).astype(np.float32)


def test_the_seeds_network_computes_what_the_seeds_class_does():
    reference = seed_net(
        image_size=48, num_classes=10, features=(32, 64, 128), kernel_size=3, hidden_features=512
    )
    parity.check_parity(CNN(num_classes=10), reference, cnn_table(), images(48))


@pytest.mark.parametrize(
    ("activation", "image_size", "kernel_size"),
    [("gelu", 13, 3), ("silu", 12, 5), ("tanh", 4, 1)],
)
def test_other_hyperparameters_and_odd_sizes_agree_too(activation, image_size, kernel_size):
    reference = seed_net(activation, image_size=image_size, kernel_size=kernel_size, **SMALL)
    ours = CNN(kernel_size=kernel_size, padding=kernel_size // 2, activation=activation, **SMALL)
    parity.check_parity(ours, reference, cnn_table(image_size), images(image_size, batch=3))


def test_the_comparison_notices_another_activation():
    reference = seed_net("gelu", image_size=8, kernel_size=3, **SMALL)
    with pytest.raises(AssertionError, match=r"output in float64.*conv1\.weight in float64"):
        parity.check_parity(
            CNN(activation="gelu_tanh", **SMALL), reference, cnn_table(8), images(8)
        )


def test_numbers_of_parameters_are_the_seeds():
    variables = jax.eval_shape(CNN().init, jax.random.key(0), jnp.zeros((1, 48, 48, 3)))
    counts = {
        layer: sum(leaf.size for leaf in jax.tree.leaves(leaves))
        for layer, leaves in variables["params"].items()
    }
    assert counts == {
        "conv1": 896,
        "conv2": 18_496,
        "conv3": 73_856,
        "fc1": 9_437_696,
        "fc2": 513 * 32,
    }


def test_dropout_is_off_in_evaluation_and_keeps_the_mean_in_training():
    # Without activations the output is linear in what dropout scales: its mean is the output
    # without dropout.
    model, x = CNN(activation="identity", dropout_rate=0.3, **SMALL), images(8, batch=1)
    variables = model.init(jax.random.key(0), x)

    @jax.jit
    @jax.vmap
    def trained(key):
        return model.apply(variables, x, train=True, rngs={"dropout": key})[0]

    keys = jax.random.split(jax.random.key(1), 1000)
    outputs = np.asarray(trained(keys), np.float64)
    # A key decides its output, wherever it stands; in one program, so that sums are rounded alike.
    np.testing.assert_array_equal(trained(keys[::-1])[::-1], outputs.astype(np.float32))
    standard_error = outputs.std(axis=0) / np.sqrt(len(outputs))
    assert (standard_error > 0).all()
    off = np.abs(outputs.mean(axis=0) - np.asarray(model.apply(variables, x)[0]))
    assert (off < 4 * standard_error).all()


def test_dropout_drops_the_inputs_of_both_dense_layers():
    model, x = CNN(dropout_rate=0.3, **SMALL), images(12, batch=8)
    variables = model.init(jax.random.key(0), x)
    _, state = model.apply(
        variables,
        x,
        train=True,
        rngs={"dropout": jax.random.key(1)},
        capture_intermediates=lambda module, _: type(module).__name__ == "Dropout",
    )
    dropped = jax.tree.leaves(state["intermediates"])
    assert sorted(leaf.shape for leaf in dropped) == [(8, 16), (8, 72)]
    for leaf in dropped:
        # ReLU and dropout both give zeros: more of them than ReLU's half, fewer than all.
        assert 0.5 < np.mean(np.asarray(leaf) == 0) < 0.8


def test_outputs_can_be_probabilities():
    model = CNN(output_activation="softmax", **SMALL)
    probability, _ = model.init_with_output(jax.random.key(0), images(8))
    logits, _ = CNN(**SMALL).init_with_output(jax.random.key(0), images(8))
    np.testing.assert_allclose(probability.sum(axis=-1), 1, rtol=1e-6)
    ratio = np.exp(logits[:, 0] - logits[:, 1])
    np.testing.assert_allclose(probability[:, 0] / probability[:, 1], ratio, rtol=1e-5)


@pytest.mark.parametrize(
    ("attributes", "shape", "words"),
    [
        ({}, (48, 48, 3), ["(48, 48, 3)", "batch"]),
        ({}, (1, 3, 3, 3), ["max_pool", "(1, 1, 1, 8)"]),
        ({"kernel_size": 7, "padding": 0}, (1, 12, 12, 3), ["conv2", "7"]),
        ({"features": (4, 6)}, (1, 12, 12, 3), ["features=(4, 6)", "three"]),
        ({"activation": "rleu"}, (1, 12, 12, 3), ["'rleu'", "'relu'"]),
    ],
)
def test_what_does_not_fit_is_refused(attributes, shape, words):
    model = CNN(**SMALL | attributes)
    with pytest.raises(UserError) as refusal:
        model.init(jax.random.key(0), jnp.zeros(shape))
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
