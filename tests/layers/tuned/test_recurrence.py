"""The recurrent layers' kernels against the plain equations, and the programs they become."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tuned_forms
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from zoo.layers import recurrence
from zoo.layers.tuned import recurrence as tuned_recurrence
from zoo.layers.tuned.platform import has_native
from zoo.native import library

every_cell = pytest.mark.parametrize("cell", ["rnn", "rnn_relu", "lstm", "gru"])
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}


# Of so many rows of all steps there is no kernel.
FEW_ROWS = tuned_recurrence._FEW_ROWS


@pytest.fixture(autouse=True)
def kernels_of_few_rows(monkeypatch):
    """Small problems are the kernels', too."""
    monkeypatch.setattr(tuned_recurrence, "_FEW_ROWS", 0)


@pytest.fixture
def no_kernels(monkeypatch):
    monkeypatch.setenv(library.SWITCH, "off")
    jax.clear_caches()
    yield
    monkeypatch.undo()
    jax.clear_caches()


def plain(cell, inputs, weights, state, counts):
    """The equations of one step after the other, written without what is tested."""
    input_kernel, input_bias, kernel, bias = weights

    def step(state, of_step):
        inputs, counts = of_step
        x, h = inputs @ input_kernel + input_bias, state[0] @ kernel + bias
        x, h = (jnp.split(share, {"lstm": 4, "gru": 3}.get(cell, 1), axis=-1) for share in (x, h))
        if cell == "lstm":
            i, f, g, o = map(jnp.add, x, h)
            memory = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
            new = (jax.nn.sigmoid(o) * jnp.tanh(memory), memory)
        elif cell == "gru":
            r, z = jax.nn.sigmoid(x[0] + h[0]), jax.nn.sigmoid(x[1] + h[1])
            new = ((1 - z) * jnp.tanh(x[2] + r * h[2]) + z * state[0],)
        else:
            new = ((jnp.tanh if cell == "rnn" else jax.nn.relu)(x[0] + h[0]),)
        hidden = new[0]
        if counts is not None:
            new = tuple(jnp.where(counts > 0, n, old) for n, old in zip(new, state, strict=True))
            hidden = new[0] * counts
        return new, hidden

    state, outputs = jax.lax.scan(step, state, (inputs, counts))
    return outputs, state


def recur(cell, *arguments):
    return recurrence.recur(recurrence.CELLS[cell], *arguments)


def draw(cell, time, batch, features, dtype, masked=False, inputs=3):
    """Inputs, weights and state; and counts."""
    generator, equations = np.random.default_rng(0), recurrence.CELLS[cell]

    def normal(*shape, scale=1.0):
        return jnp.asarray(scale * generator.normal(size=shape), dtype)

    width = equations.gates * features
    weights = (
        normal(inputs, width, scale=inputs**-0.5),
        normal(width),
        normal(features, width, scale=features**-0.5),
        normal(width),
    )
    state = tuple(normal(batch, features) for _ in range(equations.arrays))
    arguments = normal(time, batch, inputs), weights, state
    lengths = generator.integers(0, time + 1, batch)
    counts = jnp.asarray((np.arange(time)[:, None] < lengths)[..., None], dtype)
    return arguments, counts if masked else None


def value_and_gradients(function, cell, counts):
    """Outputs, last state and the gradients of all arguments."""

    def of(*arguments):
        outputs, backward = jax.vjp(lambda *a: function(cell, *a, counts), *arguments)
        return outputs, backward(jax.tree.map(jnp.sin, outputs))

    return of


@every_cell
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("time", "batch", "features"), [(1, 1, 5), (2, 3, 17), (9, 7, 33), (3, 16, 64), (2, 37, 70)]
)
def test_it_computes_the_equations_and_their_gradients(cell, masked, dtype, time, batch, features):
    with jax.enable_x64(True):
        arguments, counts = draw(cell, time, batch, features, dtype, masked)
        ours = jax.jit(value_and_gradients(recur, cell, counts))
        exact = jax.tree.map(lambda leaf: leaf.astype("float64"), (arguments, counts))
        theirs = jax.jit(value_and_gradients(plain, cell, exact[1]))(*exact[0])
        theirs = jax.tree.map(lambda leaf: leaf.astype(dtype), theirs)
        tuned_forms.assert_close(ours(*arguments), theirs, TOLERANCE[dtype])
        without = jax.jit(lambda *a: recur(cell, *a, counts))(*arguments)
        tuned_forms.assert_close(without, theirs[0], TOLERANCE[dtype])


# Inputs of which some panels and parts are whole and the last is not; steps of which some are taken
# together and the last are fewer; blocks of rows for each thread, and fewer than threads.
@tuned_forms.compiled
@every_cell
@pytest.mark.parametrize(
    ("time", "batch", "features", "inputs"), [(11, 37, 20, 300), (40, 9, 65, 64), (18, 16, 270, 1)]
)
def test_many_inputs_and_steps(cell, time, batch, features, inputs):
    with jax.enable_x64(True):
        arguments, counts = draw(cell, time, batch, features, "float64", True, inputs)
        ours = jax.jit(value_and_gradients(recur, cell, counts))
        assert ours.lower(*arguments).as_text().count("recur_") >= 2
        theirs = jax.jit(value_and_gradients(plain, cell, counts))(*arguments)
        tuned_forms.assert_close(ours(*arguments), theirs, 1e-12)


@tuned_forms.compiled
@every_cell
def test_without_need_there_is_no_gradient_of_the_inputs(cell):
    """A kernel's results are all computed, whether they are used or not."""
    arguments, _ = draw(cell, 4, 3, 8, "float32", inputs=5)
    x, weights, state = arguments

    def of_weights(function):
        def of(weights):
            outputs, final = function(cell, x, weights, state, None)
            return jnp.sin(outputs).sum() + sum((array**2).sum() for array in final)

        return jax.grad(of)

    (call,) = (
        line
        for line in jax.jit(of_weights(recur)).lower(weights).as_text().splitlines()
        if "custom_call" in line and "recur_backward" in line
    )
    assert "tensor<4x3x5xf32>" not in call
    tuned_forms.assert_close(of_weights(recur)(weights), of_weights(plain)(weights), 2e-6)


@tuned_forms.compiled
@every_cell
def test_of_few_rows_there_is_the_scan(cell, monkeypatch):
    monkeypatch.setattr(tuned_recurrence, "_FEW_ROWS", FEW_ROWS)
    for time, batch, calls in [(1, FEW_ROWS, 0), (8, FEW_ROWS // 8, 0), (5, FEW_ROWS // 4, 2)]:
        arguments, counts = draw(cell, time, batch, 8, "float32", masked=True)
        program = jax.jit(value_and_gradients(recur, cell, counts)).lower(*arguments)
        assert program.as_text().count("custom_call @") == calls


@every_cell
def test_without_kernels_it_computes_the_same(cell, no_kernels):
    with jax.enable_x64(True):
        arguments, counts = draw(cell, 5, 3, 9, "float64", masked=True)
        program = jax.jit(value_and_gradients(recur, cell, counts))
        assert "custom_call" not in program.lower(*arguments).as_text()
        theirs = value_and_gradients(plain, cell, counts)(*arguments)
        tuned_forms.assert_close(program(*arguments), theirs, 1e-13)


@tuned_forms.compiled
@every_cell
def test_far_from_zero_the_gates_are_exact(cell):
    # Where exponentials overflow, and on the way there.
    gates = recurrence.CELLS[cell].gates
    none = jnp.zeros(64 * gates), jnp.zeros((64, 64 * gates)), jnp.zeros(64 * gates)
    weights = (jnp.eye(64 * gates), *none)
    state = (jnp.full((3, 64), 0.5),) * recurrence.CELLS[cell].arrays

    def of(function):
        def of_inputs(cell, x, counts):
            return function(cell, x, weights, state, counts)

        gradients = value_and_gradients(of_inputs, cell, None)
        return jax.jit(gradients, compiler_options=tuned_forms.AS_FOR_USERS)

    for size in (1.0, 10.0, 30.0, 1e3, 1e30):
        x = jnp.linspace(-size, size, 64 * gates, dtype="float32").reshape(1, 1, -1)
        x = jnp.concatenate([x, jnp.roll(x, 64, axis=-1), -x], axis=1)
        for a, b in zip(jax.tree.leaves(of(recur)(x)), jax.tree.leaves(of(plain)(x)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@tuned_forms.compiled
@every_cell
def test_what_is_not_a_number_stays_so(cell):
    arguments, _ = draw(cell, 2, 3, 17, "float32")
    x = arguments[0].at[0, 1].set(jnp.nan)
    outputs, _ = jax.jit(lambda x: recur(cell, x, *arguments[1:], None))(x)
    assert np.isnan(outputs[:, 1]).all()
    assert np.isfinite(outputs[:, [0, 2]]).all()


@tuned_forms.compiled
@every_cell
def test_the_kernels_are_called_where_they_can_be(cell):
    def calls(arguments, platform="cpu", counts=None):
        program = jax.jit(value_and_gradients(recur, cell, counts)).trace(*arguments)
        return program.lower(lowering_platforms=(platform,)).as_text().count("custom_call @")

    arguments, counts = draw(cell, 4, 3, 8, "float32", masked=True)
    assert calls(arguments) == calls(arguments, counts=counts) == 2
    assert calls(arguments, "tpu") == calls(arguments, "cuda") == 0
    half, _ = draw(cell, 4, 3, 8, "bfloat16")
    assert calls(half) == 0
    empty, _ = draw(cell, 0, 3, 8, "float32")
    assert calls(empty) == 0


@tuned_forms.compiled
@every_cell
def test_an_export_of_any_batch_has_the_scan(cell):
    arguments, _ = draw(cell, 4, 3, 8, "float32")
    (rows,) = jax.export.symbolic_shape("rows")
    x, weights, state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "float32"), arguments
    )
    x = jax.ShapeDtypeStruct((4, rows, 3), "float32")
    state = tuple(jax.ShapeDtypeStruct((rows, 8), "float32") for _ in state)
    exported = jax.export.export(jax.jit(lambda *a: recur(cell, *a, None)))(x, weights, state)
    tuned_forms.assert_close(
        exported.call(*arguments), plain(cell, *arguments, None), TOLERANCE["float32"]
    )


@every_cell
@pytest.mark.parametrize("masked", [False, True])
def test_it_may_be_mapped(cell, masked):
    with jax.enable_x64(True):
        arguments, counts = draw(cell, 3, 4, 5, "float64", masked)
        x, weights, state = arguments
        x, kernel = jnp.stack([x, 2 * x]), jnp.stack([weights[2], -weights[2]])
        for axes, mapped in [
            ((0, None, None), (x, *arguments[1:])),
            (
                (None, (None, None, 0, None), None),
                (x[0], (*weights[:2], kernel, weights[3]), state),
            ),
        ]:
            ours, theirs = (
                jax.jit(jax.vmap(value_and_gradients(function, cell, counts), axes))(*mapped)
                for function in (recur, plain)
            )
            tuned_forms.assert_close(ours, theirs, 1e-13)


@every_cell
def test_second_derivatives(cell):
    with jax.enable_x64(True):
        arguments, counts = draw(cell, 3, 4, 5, "float64", masked=True)

        def total(function):
            def of(*arguments):
                outputs, final = function(cell, *arguments, counts)
                return (outputs**2).sum() + sum(jnp.sin(array).sum() for array in final)

            return of

        def of_the_gradient(function):
            def of(*arguments):
                gradients = jax.grad(total(function), argnums=(0, 1, 2))(*arguments)
                return sum((leaf**3).sum() for leaf in jax.tree.leaves(gradients))

            return jax.grad(of, argnums=(0, 1, 2))

        def along(function):
            gradient = jax.grad(total(function), argnums=(0, 1, 2))
            return lambda *a: jax.jvp(gradient, a, a)

        for derivative in (of_the_gradient, along):
            ours = jax.jit(derivative(recur))(*arguments)
            # Not compiled as a whole: of the LSTM's loop, XLA for a CPU makes a wrong program.
            theirs = derivative(plain)(*arguments)
            tuned_forms.assert_close(ours, theirs, 1e-11)


@every_cell
@pytest.mark.parametrize("masked", [False, True])
def test_each_device_keeps_its_rows(cell, masked):
    arguments, counts = draw(cell, 3, 16, 5, "float32", masked)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    whole, steps, rows = (
        NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (None, "data"), ("data",))
    )
    weights, state = (whole,) * 4, (rows,) * recurrence.CELLS[cell].arrays
    program = (
        jax.jit(
            lambda counts, *a: value_and_gradients(recur, cell, counts)(*a),
            in_shardings=(steps if masked else None, steps, weights, state),
            out_shardings=((steps, state), (steps, weights, state)),
        )
        .lower(counts, *arguments)
        .compile()
    )
    text = program.as_text()
    assert "all-gather" not in text
    assert "all-reduce" in text
    if has_native("recur_forward", np.dtype("float32")):
        assert "recur_forward" in text
        assert "recur_backward" in text
    whole = jax.jit(value_and_gradients(recur, cell, counts))(*arguments)
    tuned_forms.assert_close(program(counts, *arguments), whole, TOLERANCE["float32"])


@every_cell
def test_inside_a_shard_map(cell):
    with jax.enable_x64(True):
        arguments, _ = draw(cell, 3, 16, 5, "float64")
        mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
        whole, steps, rows = (PartitionSpec(*axes) for axes in ((), (None, "data"), ("data",)))
        mapped = jax.shard_map(
            lambda *a: recur(cell, *a, None),
            mesh=mesh,
            in_specs=(steps, whole, rows),
            out_specs=(steps, rows),
        )
        tuned_forms.assert_close(jax.jit(mapped)(*arguments), plain(cell, *arguments, None), 1e-13)


@every_cell
def test_again_it_gives_the_same_bits(cell):
    arguments, counts = draw(cell, 7, 33, 40, "float32", masked=True)
    program = jax.jit(value_and_gradients(recur, cell, counts))
    once, again = program(*arguments), program(*arguments)
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(again), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize(
    ("cell", "kept_of_each_step"), [("rnn", 2), ("rnn_relu", 2), ("lstm", 6), ("gru", 5)]
)
def test_shares_and_states_are_kept_for_the_gradient(cell, kept_of_each_step):
    arguments, _ = draw(cell, 20, 3, 8, "float32")
    _, backward = jax.vjp(lambda *a: recur(cell, *a, None), *arguments)
    x, (input_kernel, _, kernel, _), _ = arguments
    kept = sum(leaf.size for leaf in jax.tree.leaves(backward))
    others = x.size + input_kernel.size + kernel.size
    assert kept <= math.prod((20, 3, 8, kept_of_each_step)) + others
