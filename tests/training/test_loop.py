"""The loop in one process: intervals, resume at every step, non-finite losses, guards."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo.errors import Stopped
from zoo.training import loop
from zoo.training.checkpoints import Checkpoints
from zoo.training.layout import Layout, make_mesh
from zoo.training.state import create_state
from zoo.training.step import make_train_step

ROWS, EXAMPLES, STEPS = 8, 36, 23  # five batches an epoch, the last one half empty
TIMES = ("seconds", "examples_per_second", "data_wait_seconds", "data_wait_share")


def loss_fn(params, model_state, batch, key):
    """Least squares with noise from the step's key and a counter as the model's state."""
    noise = 0.01 * jax.random.normal(key, batch["y"].shape)
    error = (batch["x"] @ params["w"] + noise - batch["y"]) ** 2 * batch["mask"]
    weight = batch["mask"].sum()
    state = {"seen": model_state["seen"] + weight}
    return error.sum(), (weight, state, {"accuracy": ((error < 0.1).sum(), weight)})


def batch_at(k):
    generator = np.random.default_rng(k)
    mask = np.ones(ROWS, np.float32)
    if k % 5 == 4:
        mask[EXAMPLES % ROWS :] = 0
    return {
        "x": generator.normal(size=(ROWS, 3)).astype(np.float32),
        "y": generator.normal(size=ROWS).astype(np.float32),
        "mask": mask,
    }


class Memory:
    """A writer that keeps records."""

    def __init__(self):
        self.records = []

    def step(self, step):
        """Nothing to show."""

    def write(self, record):
        self.records.append(record)

    def flush(self):
        """Nothing to do."""


class StopAt:
    """Asks to stop at a given call of ``check`` or ``requested``."""

    def __init__(self, calls):
        self.calls = calls

    def check(self):
        self.calls -= 1
        if self.calls == 0:
            raise Stopped(15)


def parts(devices=1):
    """The layout, the first state, the step, and the shapes of a batch."""
    layout = Layout(make_mesh(devices))
    optimizer = optax.adam(0.05)
    variables = {"params": {"w": jnp.zeros(3)}, "seen": jnp.zeros(())}
    state = create_state(variables, optimizer, jax.random.key(3), ema=True)
    step = make_train_step(loss_fn, optimizer, ema=0.9)
    return layout, state, step, layout.abstract_batch(batch_at(0))


def train(
    workdir, writer, *, stop_after=10**9, devices=1, batches=batch_at, steps=STEPS, lowest=True
):
    """Runs the loop as the composition root does, until it ends or is stopped."""
    layout, state, step, shapes = parts(devices)
    checkpoints = Checkpoints(workdir, keep=2)
    stop = StopAt(stop_after)

    def evaluate(state):
        stop.check()
        return {"loss": float(jnp.square(jax.device_get(state.eval_params["w"])).sum())}

    try:
        training = loop.begin_or_resume(state, step, shapes, checkpoints, layout)
        first = training.step
        compiled = loop.compile_train_step(step, training, shapes, layout)
        lengths = loop.Lengths(steps, EXAMPLES, ROWS, 3, 7, 5, "loss", best_is_lowest=lowest)
        loop.train(
            training,
            compiled,
            (batches(k) for k in range(first, steps)),
            lengths,
            layout=layout,
            learning_rate=lambda step: 0.05,
            evaluate=lambda state: _allowed(evaluate, state),
            checkpoints=checkpoints,
            writer=writer,
            stop=stop,
        )
        return training
    finally:
        checkpoints.close()


def _allowed(function, state):
    with jax.transfer_guard("allow"):
        return function(state)


def untimed(records):
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def assert_same_bits(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(left.dtype, jax.dtypes.prng_key):
            left, right = jax.random.key_data(left), jax.random.key_data(right)
        np.testing.assert_array_equal(left, right)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run."""
    writer = Memory()
    return train(tmp_path_factory.mktemp("whole"), writer), writer.records


def test_records_come_at_their_intervals(whole):
    training, records = whole
    steps = {
        split: [record["step"] for record in records if record["split"] == split]
        for split in ("train", "validation", "train_epoch")
    }
    assert steps["train"] == [3, 6, 9, 12, 15, 18, 21]
    assert steps["validation"] == [7, 14, 21, 23]
    assert steps["train_epoch"] == [5, 10, 15, 20]
    assert [record["epoch"] for record in records if record["split"] == "train_epoch"] == [
        1,
        2,
        3,
        4,
    ]
    assert training.state.model_state["seen"] == 4 * EXAMPLES + 3 * ROWS


def test_an_epoch_record_is_the_mean_over_its_examples(whole):
    """The sums of the first epoch, computed again step by step without the loop."""
    state = create_state(
        {"params": {"w": jnp.zeros(3)}, "seen": jnp.zeros(())},
        optax.adam(0.05), jax.random.key(3),
    )  # fmt: skip
    step = make_train_step(loss_fn, optax.adam(0.05))
    total = weight = 0.0
    for k in range(5):
        state, metrics = step(state, batch_at(k))
        total, weight = total + metrics["loss"][0], weight + metrics["loss"][1]
    assert weight == EXAMPLES
    epoch = next(record for record in whole[1] if record["split"] == "train_epoch")
    np.testing.assert_allclose(epoch["loss"], total / weight, rtol=1e-5)


@pytest.mark.parametrize("stop_after", [1, 6, 9, 17, 26])
def test_a_stopped_run_continues_with_the_same_bits(tmp_path, whole, stop_after):
    writer = Memory()
    with pytest.raises(Stopped):
        train(tmp_path, writer, stop_after=stop_after)
    training = train(tmp_path, writer)
    assert_same_bits(training.arrays, whole[0].arrays)
    assert untimed(writer.records) == untimed(whole[1])
    assert training.progress.best == whole[0].progress.best
    assert training.progress.validation == whole[0].progress.validation


def test_an_extended_run_equals_the_longer_one(tmp_path, whole):
    train(tmp_path, Memory(), steps=12)
    assert_same_bits(train(tmp_path, Memory()).arrays, whole[0].arrays)


def test_a_run_continues_on_another_number_of_devices(tmp_path, whole):
    with pytest.raises(Stopped):
        train(tmp_path, Memory(), stop_after=12, devices=2)
    training = train(tmp_path, Memory(), devices=4)
    np.testing.assert_allclose(
        training.state.params["w"], whole[0].state.params["w"], rtol=2e-6, atol=2e-7
    )


@pytest.mark.parametrize("lowest", [True, False])
def test_latest_checkpoints_and_the_best_one_are_kept(tmp_path, lowest):
    writer = Memory()
    training = train(tmp_path, writer, lowest=lowest)
    checkpoints = Checkpoints(tmp_path, read_only=True)
    validation = {r["step"]: r["loss"] for r in writer.records if r["split"] == "validation"}
    best = (min if lowest else max)(validation, key=validation.get)
    assert checkpoints.latest_step() == STEPS
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [20, 23]
    assert checkpoints.best_step() == best == training.progress.best_step


@pytest.mark.parametrize("bad", [5, 8])
def test_a_non_finite_loss_names_its_step_and_keeps_the_state_before(tmp_path, whole, bad):
    def batches(k):
        batch = batch_at(k)
        return batch | {"y": batch["y"] * np.nan} if k == bad else batch

    with pytest.raises(loop.NonFiniteLoss, match=f"not finite at step {bad + 1} "):
        train(tmp_path, Memory(), batches=batches)
    assert Checkpoints(tmp_path, read_only=True).latest_step() == bad
    # What was saved is good: with mended data the run ends where the whole one did.
    assert_same_bits(train(tmp_path, Memory()).arrays, whole[0].arrays)


def test_an_implicit_transfer_in_the_loop_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Layout, "put_batch", lambda layout, batch: batch)
    with pytest.raises(Exception, match=r"[Dd]isallowed host-to-device transfer"):
        train(tmp_path, Memory())


def test_the_step_is_compiled_once(tmp_path, caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        train(tmp_path, Memory())
    compiled = [r for r in caplog.records if "Finished XLA compilation of jit(step)" in r.message]
    assert len(compiled) == 1
