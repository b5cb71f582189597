import jax
import numpy as np
import peers
import pytest

from zoo import config
from zoo.errors import UserError
from zoo.training.schedules import make_schedule

STEPS = 30


def rates(name, steps=STEPS + 5, **arguments):
    arguments = {"total_steps": STEPS} | arguments
    with jax.enable_x64(True):
        schedule = make_schedule(name, 0.5, **arguments)
        return np.array([float(schedule(step)) for step in range(steps)])


def pytorchs(make, steps):
    torch = peers.torch()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return np.array(found)


@pytest.mark.parametrize(
    ("name", "arguments", "make"),
    [
        ("step", {"step_size": 7}, lambda module, o: module.StepLR(o, 7, gamma=0.1)),
        ("step", {"step_size": 1, "gamma": 0.9}, lambda module, o: module.ExponentialLR(o, 0.9)),
        ("cosine", {}, lambda module, o: module.CosineAnnealingLR(o, STEPS)),
        (
            "cosine",
            {"end_value": 0.02},
            lambda module, o: module.CosineAnnealingLR(o, STEPS, eta_min=0.02),
        ),
        ("linear", {}, lambda module, o: module.LinearLR(o, 1, 0, total_iters=STEPS)),
        (
            "linear",
            {"end_value": 0.1},
            lambda module, o: module.LinearLR(o, 1, 0.2, total_iters=STEPS),
        ),
    ],
)
def test_rates_are_pytorchs(name, arguments, make):
    expected = pytorchs(make, STEPS + 1)
    found = rates(name, STEPS + 1, **arguments)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_inverse_sqrt_is_the_papers():
    features, warmup = 64, 4
    found = rates("inverse_sqrt", 12, warmup_steps=warmup)
    step = np.arange(1, 13)
    papers = features**-0.5 * np.minimum(step**-0.5, step * warmup**-1.5)
    np.testing.assert_allclose(found / found.max(), papers / papers.max(), rtol=1e-9)
    assert found.max() == found[warmup - 1] == 0.5


def test_constant_does_not_change():
    np.testing.assert_array_equal(rates("constant"), 0.5)


def test_warmup_rises_in_a_line_and_then_is_the_cosine_of_the_rest():
    found = rates("warmup_cosine", warmup_steps=10, end_value=0.02)
    np.testing.assert_allclose(found[:10], 0.05 * np.arange(10), rtol=1e-12)
    np.testing.assert_allclose(
        found[10:], rates("cosine", STEPS - 5, total_steps=20, end_value=0.02), rtol=1e-12
    )


def test_without_a_warmup_it_is_the_cosine():
    np.testing.assert_allclose(rates("warmup_cosine"), rates("cosine"), rtol=1e-12)


def test_a_run_shorter_than_its_warmup_sees_the_warmup_only():
    np.testing.assert_allclose(
        rates("warmup_cosine", 6, total_steps=6, warmup_steps=100), 0.005 * np.arange(6), rtol=1e-12
    )


@pytest.mark.parametrize("name", ["cosine", "linear", "warmup_cosine"])
def test_rates_stay_at_the_end_value_after_the_last_step(name):
    np.testing.assert_allclose(rates(name, end_value=0.02)[STEPS:], 0.02, rtol=1e-9)


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "step", "warmup_cosine"])
def test_the_config_knows_which_depend_on_the_length(name):
    arguments = {"step_size": 3} if name == "step" else {}
    same = np.array_equal(rates(name, **arguments), rates(name, total_steps=50, **arguments))
    made = config.base(model="cnn", task="classification")
    made.optimizer.schedule = name
    assert config.schedule_depends_on_length(made) != same


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "step", "warmup_cosine"])
def test_rates_are_the_same_inside_a_compiled_step(name):
    schedule = make_schedule(name, 0.5, total_steps=STEPS, step_size=4)
    compiled = jax.jit(schedule)
    for step in (0, 1, 13, STEPS):
        np.testing.assert_allclose(compiled(step), schedule(step), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("cosin", {}, ["schedule='cosin'", "Did you mean 'cosine'"]),
        ("step", {}, ["step_size"]),
        ("step", {"step_size": 0}, ["step_size", "0"]),
        ("step", {"step_size": 2, "gamma": 0.0}, ["gamma=0.0", "above 0"]),
        ("linear", {"end_value": 0.6}, ["end_value=0.6", "learning_rate=0.5"]),
        ("cosine", {"end_value": -0.1}, ["end_value=-0.1"]),
        ("cosine", {"total_steps": 0}, ["total_steps=0"]),
        ("warmup_cosine", {"warmup_steps": -1}, ["warmup_steps=-1"]),
    ],
)
def test_what_cannot_work_is_refused(name, arguments, words):
    with pytest.raises(UserError) as refusal:
        make_schedule(name, 0.5, **{"total_steps": STEPS} | arguments)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
