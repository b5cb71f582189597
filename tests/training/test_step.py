"""The shared train step, on small losses whose answers are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo.errors import UserError
from zoo.layers import Recurrent
from zoo.training.state import create_state
from zoo.training.step import ema_decay, make_train_step


def least_squares(params, model_state, batch, key):
    """Half the squared error of a linear model, over the rows that count."""
    error = batch["x"] @ params["w"] - batch["y"]
    weight = batch["mask"].sum()
    loss_sum = (0.5 * error**2 * batch["mask"]).sum()
    return loss_sum, (weight, model_state, {"rows": (weight, jnp.ones_like(weight))})


def problem(rows=8, mask=None, seed=0):
    generator = np.random.default_rng(seed)
    batch = {
        "x": jnp.asarray(generator.normal(size=(rows, 3))),
        "y": jnp.asarray(generator.normal(size=rows)),
        "mask": jnp.asarray(np.ones(rows) if mask is None else mask, float),
    }
    return batch, {"params": {"w": jnp.asarray(generator.normal(size=3))}}


def test_gradient_is_the_closed_form_of_the_rows_that_count():
    with jax.enable_x64(True):
        batch, variables = problem(mask=[1, 1, 0, 1, 0, 1, 1, 0])
        step = make_train_step(least_squares, optax.sgd(0.1))
        before = variables["params"]["w"]
        state, metrics = step(create_state(variables, optax.sgd(0.1), jax.random.key(0)), batch)
        x, y = (np.asarray(batch[name])[np.asarray(batch["mask"]) > 0] for name in "xy")
        gradient = x.T @ (x @ np.asarray(before) - y) / len(y)
        np.testing.assert_allclose(state.params["w"], before - 0.1 * gradient, rtol=1e-12)
        np.testing.assert_allclose(metrics["gradient_norm"][0], np.linalg.norm(gradient))
        assert metrics["rows"] == (5, 1)
        assert state.step == 1


def test_accumulation_with_unequal_masks_equals_one_batch():
    with jax.enable_x64(True):
        batch, variables = problem(mask=[1, 0, 0, 0, 1, 1, 1, 1])
        optimizer = optax.adam(1e-2)
        results = []
        for accumulate in (1, 4):
            state = create_state(variables, optimizer, jax.random.key(0))
            step = jax.jit(make_train_step(least_squares, optimizer, accumulate=accumulate))
            for _ in range(3):
                state, metrics = step(state, batch)
            results.append((state.params["w"], metrics["loss"], metrics["gradient_norm"]))
        for one, four in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True):
            np.testing.assert_allclose(four, one, rtol=0, atol=1e-10)


def test_a_batch_in_which_nothing_counts_changes_no_parameter():
    batch, variables = problem(mask=np.zeros(8))
    step = make_train_step(least_squares, optax.sgd(0.1))
    state, metrics = step(create_state(variables, optax.sgd(0.1), jax.random.key(0)), batch)
    np.testing.assert_array_equal(state.params["w"], variables["params"]["w"])
    assert state.healthy
    assert metrics["loss"][1] == 0


def test_randomness_depends_on_key_and_step_only():
    def noisy(params, model_state, batch, key):
        return params["w"].sum() * jax.random.normal(key), (jnp.float32(1), model_state, {})

    batch, variables = problem()
    step = make_train_step(noisy, optax.sgd(0.1))
    state = create_state(variables, optax.sgd(0.1), jax.random.key(7))
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["gradient_norm"][0]))
    draws = [
        abs(float(jax.random.normal(jax.random.fold_in(jax.random.key(7), k)))) for k in (0, 1, 2)
    ]
    np.testing.assert_allclose(losses, np.array(draws) * np.sqrt(3), rtol=1e-5)


def test_a_non_finite_loss_freezes_the_last_good_state():
    batch, variables = problem()
    bad = batch | {"y": batch["y"].at[2].set(jnp.nan)}
    optimizer = optax.adam(0.1)
    step = jax.jit(make_train_step(least_squares, optimizer, ema=0.9))
    good, _ = step(create_state(variables, optimizer, jax.random.key(0), ema=True), batch)
    frozen, metrics = step(good, bad)
    again, _ = step(frozen, batch)
    for state in (frozen, again):
        assert not state.healthy
        expected = dataclasses.replace(good, healthy=state.healthy)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(_raw(a), _raw(b)), state, expected)
    assert all(value == 0 for value in jax.tree.leaves(metrics))


def test_only_on_a_cpu_the_update_is_a_branch():
    batch, variables = problem()
    optimizer = optax.adam(0.1)
    state = create_state(variables, optimizer, jax.random.key(0))
    traced = jax.jit(make_train_step(least_squares, optimizer)).trace(state, batch)
    branches = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.case")
        for platform in ("cpu", "cuda", "tpu")
    }
    # The choice of the platform is there everywhere, and constant.
    assert branches["cpu"] == branches["cuda"] + 1 == branches["tpu"] + 1


def test_elsewhere_the_update_is_a_choice_of_the_same_numbers(monkeypatch):
    batch, variables = problem()
    bad = batch | {"y": batch["y"].at[2].set(jnp.nan)}
    optimizer = optax.adam(0.1)

    def states():
        step = jax.jit(make_train_step(least_squares, optimizer, ema=0.9))
        state = create_state(variables, optimizer, jax.random.key(0), ema=True)
        for each in (batch, batch, bad, batch):
            state, _ = step(state, each)
            yield jax.tree.map(_raw, state)

    on_cpu = list(states())
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *arguments, default, **_: default(*arguments)
    )
    for ours, theirs in zip(on_cpu, states(), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_moving_average_follows_its_recurrence():
    batch, variables = problem()
    step = make_train_step(least_squares, optax.sgd(0.1), ema=0.3)
    state = create_state(variables, optax.sgd(0.1), jax.random.key(0), ema=True)
    average = np.asarray(variables["params"]["w"], np.float64)
    for t in range(6):
        state, _ = step(state, batch)
        decay = min(0.3, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * np.asarray(state.params["w"])
    np.testing.assert_allclose(state.ema_params["w"], average, rtol=1e-5)
    assert state.eval_params is state.ema_params


@pytest.mark.parametrize(("step", "decay"), [(0, 0.1), (8, 0.5), (10**6, 0.999)])
def test_ema_decay_warms_up(step, decay):
    np.testing.assert_allclose(ema_decay(jnp.int32(step), 0.999), decay, rtol=1e-6)


def test_model_state_runs_through_accumulated_parts():
    def counting(params, model_state, batch, key):
        seen = model_state["seen"] + batch["mask"].sum()
        return (params["w"] ** 2).sum(), (batch["mask"].sum(), {"seen": seen}, {})

    batch, variables = problem(mask=[1, 0, 0, 0, 1, 1, 1, 1])
    state = create_state(variables | {"seen": jnp.zeros(())}, optax.sgd(0.1), jax.random.key(0))
    state, _ = make_train_step(counting, optax.sgd(0.1), accumulate=2)(state, batch)
    assert state.model_state["seen"] == 5


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    seen = []

    def recording(params, model_state, batch, key):
        seen.append((params["w"].dtype, batch["x"].dtype))
        return least_squares(params, model_state, batch, key)

    batch, variables = problem()
    step = make_train_step(recording, optax.sgd(0.1), precision="bfloat16")
    state, _ = step(create_state(variables, optax.sgd(0.1), jax.random.key(0)), batch)
    assert seen[0] == (jnp.bfloat16, jnp.bfloat16)
    assert state.params["w"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("float32", "precision = [HIGHEST, HIGHEST]"),
        ("tf32", "precision = [HIGH, HIGH]"),
        ("bfloat16", "xbf16>"),
    ],
)
def test_precision_reaches_forward_and_backward_products(precision, expected):
    batch, variables = problem()
    step = make_train_step(least_squares, optax.sgd(0.1), precision=precision)
    state = create_state(variables, optax.sgd(0.1), jax.random.key(0))
    text = jax.jit(step).lower(state, batch).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 2
    assert all(expected in line for line in products), products


@pytest.mark.parametrize(("precision", "expected"), [("float32", "HIGHEST"), ("tf32", "HIGH")])
def test_precision_reaches_a_layers_own_rule_of_the_gradient(precision, expected):
    layer = Recurrent("gru", 4)
    x = jnp.ones((2, 3, 5))

    def loss(params, model_state, batch, key):
        outputs, _ = layer.apply({"params": params}, batch["x"])
        return (outputs**2).sum(), (jnp.float32(2), model_state, {})

    optimizer = optax.sgd(0.1)
    state = create_state(layer.init(jax.random.key(0), x), optimizer, jax.random.key(1))
    step = make_train_step(loss, optimizer, precision=precision)
    # Where the precision of products is a choice: a CPU has one, and kernels of our own.
    traced = jax.jit(step).trace(state, {"x": x})
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    # Two forward; in the rule of the gradient the state's and the weights'; the input's kernel's.
    assert len(products) >= 5
    assert all(f"precision = [{expected}, {expected}]" in line for line in products), products


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate"),
        ({"ema": 1.0}, "ema"),
        ({"precision": "fp16"}, "precision"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_train_step(least_squares, optax.sgd(0.1), **options)


@pytest.mark.parametrize(("rows", "parts"), [(7, 2), (8, 3), (2, 4)])
def test_accumulation_that_does_not_divide_the_batch_is_refused(rows, parts):
    batch, variables = problem(rows)
    step = jax.jit(make_train_step(least_squares, optax.sgd(0.1), accumulate=parts))
    state = create_state(variables, optax.sgd(0.1), jax.random.key(0))
    with pytest.raises(UserError) as refusal:
        step(state, batch)
    text = str(refusal.value)
    assert text.startswith(f"accumulate={parts} must divide the rows of the batch, but batch['")
    assert f"has the shape ({rows}," in text


@pytest.mark.parametrize(
    ("decay", "kept", "words"),
    [
        (
            0.99,
            False,
            r"ema=0\.99, but the state keeps no average.*create_state\(\.\.\., ema=True\)",
        ),
        (None, True, r"the state keeps an average.* ema=None .*create_state\(\.\.\., ema=False\)"),
    ],
)
def test_an_average_that_only_one_of_step_and_state_has_is_refused(decay, kept, words):
    batch, variables = problem()
    step = jax.jit(make_train_step(least_squares, optax.sgd(0.1), ema=decay))
    state = create_state(variables, optax.sgd(0.1), jax.random.key(0), ema=kept)
    with pytest.raises(UserError, match=words):
        step(state, batch)


def _raw(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def test_a_state_of_ones_own_goes_to_disk_and_back(tmp_path):
    import zoo

    variables = {"params": {"w": jnp.arange(6.0).reshape(2, 3)}, "stats": {"n": jnp.ones(2)}}
    state = create_state(variables, optax.adam(0.1), jax.random.key(3), ema=True)
    zoo.save_state(tmp_path / "state", state)
    again = zoo.load_state(tmp_path / "state", jax.eval_shape(lambda: state))
    assert jax.tree.structure(again) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        assert a.dtype == b.dtype
        bits = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
                for x in (a, b)]  # fmt: skip
        np.testing.assert_array_equal(*bits)
    with pytest.raises(UserError, match="exists already"):
        zoo.save_state(tmp_path / "state", state)
    with pytest.raises(UserError, match="no such folder"):
        zoo.load_state(tmp_path / "elsewhere", state)
    other = create_state({"params": {"v": jnp.ones(2)}}, optax.sgd(0.1), jax.random.key(0))
    with pytest.raises(UserError, match="does not hold a state of this structure"):
        zoo.load_state(tmp_path / "state", other)
