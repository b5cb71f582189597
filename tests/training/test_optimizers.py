"""Twenty updates beside PyTorch's, from the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peers
import pytest

from zoo.errors import UserError
from zoo.training.optimizers import make_optimizer

UPDATES = 20
SHAPES = {"conv1/kernel": (3, 4), "conv1/bias": (4,), "fc/kernel": (5,)}


def start():
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=shape) for name, shape in SHAPES.items()}


def gradients():
    # Of very different sizes, zeros among them.
    generator = np.random.default_rng(1)
    for _ in range(UPDATES):
        size = 10.0 ** generator.integers(-3, 2)
        yield {
            name: size * generator.normal(size=shape) * (generator.random(shape) < 0.8)
            for name, shape in SHAPES.items()
        }


def nested(flat):
    tree = {}
    for name, leaf in flat.items():
        layer, parameter = name.split("/")
        tree.setdefault(layer, {})[parameter] = jnp.asarray(leaf)
    return tree


def half_cosine(count):
    return 0.05 * (1 + jnp.cos(jnp.pi * count.astype(float) / 25)) / 2


def ours(name, schedule=half_cosine, all_gradients=None, **arguments):
    """The parameters after each update."""
    found = []
    with jax.enable_x64(True):
        optimizer = make_optimizer(name, schedule, **arguments)
        params = nested(start())
        state = optimizer.init(params)

        @jax.jit
        def update(params, state, gradient):
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        for gradient in all_gradients or gradients():
            params, state = update(params, state, nested(gradient))
            found.append({n: np.asarray(params[n.split("/")[0]][n.split("/")[1]]) for n in SHAPES})
    return found


def pytorchs(make, clip_norm=None):
    torch = peers.torch()
    params = {name: torch.tensor(value, requires_grad=True) for name, value in start().items()}
    optimizer = make(torch.optim, list(params.values()))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 25)
    found = []
    for gradient in gradients():
        for name, parameter in params.items():
            parameter.grad = torch.tensor(gradient[name])
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(params.values(), clip_norm)
        optimizer.step()
        scheduler.step()
        found.append({name: p.detach().numpy().copy() for name, p in params.items()})
    return found


def assert_same(found, expected, rtol=1e-9):
    assert len(found) == len(expected) == UPDATES
    for a, b in zip(found, expected, strict=True):
        for name in SHAPES:
            np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=rtol * 1e-2)


@pytest.mark.parametrize(
    ("name", "arguments", "make"),
    [
        ("sgd", {}, lambda optim, p: optim.SGD(p, 0.05)),
        ("sgd", {"momentum": 0.9}, lambda optim, p: optim.SGD(p, 0.05, momentum=0.9)),
        (
            "sgd",
            {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
            lambda optim, p: optim.SGD(p, 0.05, momentum=0.8, nesterov=True, weight_decay=0.1),
        ),
        ("adam", {}, lambda optim, p: optim.Adam(p, 0.05)),
        (
            "adam",
            {"weight_decay": 0.1, "b1": 0.8, "b2": 0.9, "eps": 1e-3},
            lambda optim, p: optim.Adam(p, 0.05, (0.8, 0.9), 1e-3, weight_decay=0.1),
        ),
        (
            "adamw",
            {"weight_decay": 0.1, "b1": 0.8},
            lambda optim, p: optim.AdamW(p, 0.05, (0.8, 0.999), weight_decay=0.1),
        ),
        (
            "adam",
            {"weight_decay": 0.1, "decay_mode": "decoupled"},
            lambda optim, p: optim.AdamW(p, 0.05, weight_decay=0.1),
        ),
        (
            "rmsprop",
            {"eps": 1e-3, "rms_decay": 0.9},
            lambda optim, p: optim.RMSprop(p, 0.05, 0.9, 1e-3),
        ),
        (
            "rmsprop",
            {"centered": True, "weight_decay": 0.1},
            lambda optim, p: optim.RMSprop(p, 0.05, centered=True, weight_decay=0.1),
        ),
        (
            "rmsprop",
            {"momentum": 0.9, "rms_decay": 0.9},
            lambda optim, p: optim.RMSprop(p, 0.05, 0.9, momentum=0.9),
        ),
    ],
)
def test_updates_are_pytorchs(name, arguments, make):
    assert_same(ours(name, **arguments), pytorchs(make))


def test_clipping_is_pytorchs_and_comes_before_the_decay():
    norms = [np.sqrt(sum((g**2).sum() for g in gradient.values())) for gradient in gradients()]
    assert min(norms) < 0.5 < max(norms)  # some are clipped, some are not
    found = ours("sgd", clip_norm=0.5, weight_decay=0.1, momentum=0.9)
    expected = pytorchs(
        lambda optim, p: optim.SGD(p, 0.05, weight_decay=0.1, momentum=0.9), clip_norm=0.5
    )
    # PyTorch adds 1e-6 to the norm that it divides by.
    assert_same(found, expected, rtol=1e-5)


def test_clipping_scales_all_gradients_to_one_norm_and_leaves_small_ones():
    gradient = {"conv1/kernel": np.full((3, 4), 3.0), "conv1/bias": np.full(4, -3.0)}
    gradient["fc/kernel"] = np.zeros(5)
    for factor, norm in ((1.0, 2.0), (0.01, 0.12)):
        small = {name: factor * g for name, g in gradient.items()}
        (after,) = ours("sgd", lambda count: 1.0, [small], clip_norm=2.0)
        moved = {name: start()[name] - after[name] for name in SHAPES}
        for name, g in gradient.items():
            np.testing.assert_allclose(moved[name], g / 12 * norm, rtol=1e-6, atol=1e-12)


def test_lion_is_its_papers_algorithm():
    expected, params = [], start()
    momentum = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for t, gradient in enumerate(gradients()):
        rate = 0.05 * (1 + np.cos(np.pi * t / 25)) / 2
        for name, g in gradient.items():
            direction = np.sign(0.9 * momentum[name] + 0.1 * g)
            params[name] = params[name] - rate * (direction + 0.1 * params[name])
            momentum[name] = 0.99 * momentum[name] + 0.01 * g
        expected.append(dict(params))
    assert_same(ours("lion", b1=0.9, b2=0.99, weight_decay=0.1), expected)


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd"])
def test_what_the_expression_names_is_not_decayed(name):
    zero = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    arguments = {"weight_decay": 0.1, "decay_exclude": "bias$|^fc/"}
    *_, after = ours(name, lambda count: 0.5, [zero] * 3, **arguments)
    before = start()
    np.testing.assert_allclose(after["conv1/kernel"], before["conv1/kernel"] * 0.95**3, rtol=1e-12)
    np.testing.assert_array_equal(after["conv1/bias"], before["conv1/bias"])
    np.testing.assert_array_equal(after["fc/kernel"], before["fc/kernel"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "adma"}, ["'adma'", "Did you mean 'adam'"]),
        ({"name": "adam", "decay_mode": "coupeld"}, ["'coupeld'", "Did you mean 'coupled'"]),
    ],
)
def test_unknown_names_are_refused(arguments, words):
    with pytest.raises(UserError) as refusal:
        make_optimizer(schedule=optax.constant_schedule(0.1), **arguments)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
