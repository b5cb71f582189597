"""Mixup and CutMix as torchvision has them, given the same drawn numbers."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from zoo.tasks.classification import Classification
from zoo.tasks.classification.mixing import cutmix, mix, mixup

ROWS, HEIGHT, WIDTH = 4, 9, 14
LABELS = np.array([0, 2, 1, 4])


def images():
    return np.random.default_rng(0).normal(size=(ROWS, HEIGHT, WIDTH, 3)).astype(np.float32)


def theirs(mixer, share):
    """Images, and the mixed one-hot labels, of torchvision's mixer with a given share."""
    torch = peers.torch()
    mixer._dist = types.SimpleNamespace(sample=lambda shape: torch.tensor([share]))
    batch = torch.from_numpy(images().transpose(0, 3, 1, 2).copy())
    mixed, labels = mixer(batch, torch.from_numpy(LABELS))
    return mixed.numpy().transpose(0, 2, 3, 1), labels.numpy()


def mixed_labels(own):
    one_hot = np.eye(5)[LABELS]
    return own * one_hot + (1 - own) * np.roll(one_hot, 1, axis=0)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.75, 1.0])
def test_mixup(share):
    peers.torchvision()
    from torchvision.transforms import v2

    expected, labels = theirs(v2.MixUp(num_classes=5), share)
    np.testing.assert_allclose(mixup(images(), share), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(mixed_labels(share), labels, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.75, 0.99, 1.0])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (8, 13), (4, 7), (2, 11)])
def test_cutmix(monkeypatch, share, row, column):
    torch = peers.torch()
    peers.torchvision()
    from torchvision.transforms import v2

    mixer = v2.CutMix(num_classes=5)
    drawn = {HEIGHT: row, WIDTH: column}
    monkeypatch.setattr(torch, "randint", lambda high, size: torch.tensor([drawn[high]]))
    expected, labels = theirs(mixer, share)
    made, own = cutmix(images(), share, ((row + 0.5) / HEIGHT, (column + 0.5) / WIDTH))
    np.testing.assert_array_equal(made, expected)
    np.testing.assert_allclose(mixed_labels(float(own)), labels, atol=1e-6)


@pytest.mark.parametrize("alphas", [(0.2, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_a_row_after_padding_is_left_alone(alphas):
    mask = jnp.array([1.0, 1.0, 1.0, 0.0])
    x = images()
    for seed in range(6):
        made, own = mix(
            jax.random.key(seed), x, mask, mixup_alpha=alphas[0], cutmix_alpha=alphas[1]
        )
        np.testing.assert_array_equal(made[0], x[0])
        assert own[0] == 1
        assert ((own >= 0) & (own <= 1)).all()


class Linear(nn.Module):
    """Logits of the whole image."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(5)(x.reshape(len(x), -1))


def test_the_loss_is_that_of_the_mixed_target():
    task = Classification(model=Linear(), mixup=0.4, label_smoothing=0.1)
    batch = {"image": images(), "label": LABELS, "mask": np.ones(ROWS, np.float32)}
    variables = task.init(jax.random.key(0), batch)
    key = jax.random.key(5)
    total, _ = task.loss(variables["params"], {}, batch, key)
    mixed, own = mix(
        jax.random.split(key)[1], batch["image"], batch["mask"], mixup_alpha=0.4, cutmix_alpha=0.0
    )
    target = 0.9 * mixed_labels(np.asarray(own)[:, None]) + 0.1 / 5
    logits = task.model.apply(variables, mixed)
    expected = -(target * jax.nn.log_softmax(logits)).sum()
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_evaluation_mixes_nothing():
    batch = {"image": images(), "label": LABELS, "mask": np.ones(ROWS, np.float32)}
    plain, mixing = (Classification(model=Linear(), mixup=alpha) for alpha in (0.0, 0.4))
    params = plain.init(jax.random.key(0), batch)["params"]
    one, other = (task.evaluate(params, {}, batch, jax.random.key(1)) for task in (plain, mixing))
    assert one == other
