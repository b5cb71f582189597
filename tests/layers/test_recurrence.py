"""Recurrent layers against PyTorch's, and the rule of their gradient against the scan's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import parity
import peers
import pytest

from zoo.errors import UserError
from zoo.families.rnn import recurrent_table
from zoo.layers import Recurrent, recurrence
from zoo.weights.tables import from_reference, to_reference

every_cell = pytest.mark.parametrize("cell", ["rnn", "rnn_relu", "lstm", "gru"])


# Options of ours and the same ones of PyTorch's.
OPTIONS = {
    "plain": ({}, {}),
    "both ways": ({"bidirectional": True}, {"bidirectional": True}),
    "no bias": ({"use_bias": False}, {"bias": False}),
    "projected": ({"projection": 3}, {"proj_size": 3}),
    "all": (
        {"bidirectional": True, "use_bias": False, "projection": 2},
        {"bidirectional": True, "bias": False, "proj_size": 2},
    ),
}
every_option = pytest.mark.parametrize(
    ("cell", "option"),
    [
        (cell, option)
        for cell in ("rnn", "rnn_relu", "lstm", "gru")
        for option in OPTIONS
        if cell == "lstm" or "projection" not in OPTIONS[option][0]
    ],
)


def table(option, num_layers=2):
    ours, _ = OPTIONS[option]
    return recurrent_table(num_layers, **ours | {"projection": "projection" in ours})


def reference(cell, inputs=3, features=4, num_layers=2, option="plain"):
    torch = peers.torch()
    torch.manual_seed(0)
    layers, options = {
        "rnn": (torch.nn.RNN, {}),
        "rnn_relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
        "lstm": (torch.nn.LSTM, {}),
        "gru": (torch.nn.GRU, {}),
    }[cell]
    options |= OPTIONS[option][1]
    return layers(inputs, features, num_layers=num_layers, batch_first=True, **options)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@every_option
@pytest.mark.parametrize(("num_layers", "batch", "time"), [(1, 1, 1), (2, 3, 7)])
def test_it_computes_what_pytorch_does(cell, option, num_layers, batch, time):
    # Of the last state too: outputs and state side by side.
    torch = peers.torch()
    given, _ = OPTIONS[option]
    layers = num_layers * (2 if "bidirectional" in given else 1)
    widths = [given.get("projection", 4), 4][: recurrence.CELLS[cell].arrays]
    states = [normal(layers, batch, width, seed=1 + i) for i, width in enumerate(widths)]

    def ours(apply, x, *states):
        before = (
            tuple(tuple(array[layer] for array in states) for layer in range(layers))
            if states
            else None
        )
        outputs, final = apply(x, before)
        return jnp.concatenate(
            [outputs.reshape(-1), *(array.reshape(-1) for layer in final for array in layer)]
        )

    def theirs(module, x, *states):
        outputs, final = module(x, states if cell == "lstm" else states[0])
        final = final if cell == "lstm" else (final,)
        last = [array[layer].reshape(-1) for layer in range(layers) for array in final]
        return torch.cat([outputs.reshape(-1), *last])

    parity.check_parity(
        _Stateful(Recurrent(cell, 4, num_layers, **given), ours),
        reference(cell, num_layers=num_layers, option=option),
        table(option, num_layers),
        normal(batch, time, 3),
        *states,
        axes=None,
        ours=ours,
        theirs=theirs,
        name=f"Recurrent, {cell}, {option}",
    )


class _Stateful:
    """A module whose ``init`` takes the states as arrays of their own."""

    def __init__(self, module, call):
        self.module, self.call = module, call

    def init(self, key, x, *states):
        return self.module.init(key, x)

    def apply(self, variables, *inputs, **options):
        return self.module.apply(variables, *inputs, **options)


@every_option
def test_padded_it_computes_what_pytorch_does_on_packed_sequences(cell, option):
    torch = peers.torch()
    lengths = np.array([5, 2, 7])

    def ours(apply, x, lengths):
        outputs, final = apply(x, lengths=lengths)
        last = [array.reshape(-1) for layer in final for array in layer]
        return jnp.concatenate([outputs.reshape(-1), *last])

    def theirs(module, x, lengths):
        given = torch.nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        packed, final = module(given)
        outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
        final = final if cell == "lstm" else (final,)
        last = [array[layer].reshape(-1) for layer in range(len(final[0])) for array in final]
        return torch.cat([outputs.reshape(-1), *last])

    parity.check_parity(
        _Stateful(Recurrent(cell, 4, 2, **OPTIONS[option][0]), ours),
        reference(cell, option=option),
        table(option),
        normal(3, 7, 3),
        lengths,
        axes=None,
        ours=ours,
        theirs=theirs,
        name=f"Recurrent, {cell}, {option}, lengths",
    )


@every_cell
@pytest.mark.parametrize("bidirectional", [False, True])
def test_no_gradient_reaches_padding(cell, bidirectional):
    module = Recurrent(cell, 4, 2, bidirectional=bidirectional)
    x, lengths = jnp.asarray(normal(2, 6, 3)), jnp.array([4, 1])
    variables = module.init(jax.random.key(0), x)

    def total(x):
        outputs, states = module.apply(variables, x, lengths=lengths)
        return outputs.sum() + sum(leaf.sum() for leaf in jax.tree.leaves(states))

    reached = np.abs(jax.grad(total)(x)).sum(axis=-1) > 0
    counts = np.arange(6) < np.array([[4], [1]])
    assert not (reached & ~counts).any()
    assert cell == "rnn_relu" or (reached == counts).all()


@every_cell
@pytest.mark.parametrize("masked", [False, True])
def test_the_rule_of_the_gradient_is_the_scans(cell, masked):
    equations = recurrence.CELLS[cell]
    with jax.enable_x64(True):
        keys = iter(jax.random.split(jax.random.key(0), 9))
        inputs = jax.random.normal(next(keys), (5, 3, 2))
        width = equations.gates * 4
        shapes = ((2, width), (width,), (4, width), (width,))
        weights = tuple(jax.random.normal(next(keys), shape) for shape in shapes)
        state = tuple(jax.random.normal(next(keys), (3, 4)) for _ in range(equations.arrays))
        counts = jnp.array([[1.0, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]])[..., None]

        def total(function):
            def inner(*inputs):
                outputs, final = function(equations, *inputs, counts if masked else None)
                return jnp.sin(outputs).sum() + sum((array**2).sum() for array in final)

            return jax.value_and_grad(inner, argnums=(0, 1, 2))

        ours = jax.jit(total(recurrence.recur))(inputs, weights, state)
        theirs = total(recurrence.scan_steps)(inputs, weights, state)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_mapped_over_sequences():
    module, x = Recurrent("gru", 4, 1), jnp.asarray(normal(3, 5, 2))
    variables = module.init(jax.random.key(0), x)

    def gradient(x):
        return jax.grad(lambda v: (module.apply(v, x)[0] ** 2).sum())(variables)

    mapped = jax.vmap(lambda row: gradient(row[None]))(x)
    summed = jax.tree.map(lambda leaf: leaf.sum(axis=0), mapped)
    for a, b in zip(jax.tree.leaves(summed), jax.tree.leaves(gradient(x)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("projection", [0, 2])
@pytest.mark.parametrize(("inputs", "weights"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_types_may_be_mixed_and_gradients_keep_theirs(projection, inputs, weights):
    module, x = Recurrent("lstm", 4, 2, projection=projection), jnp.asarray(normal(2, 5, 3))
    variables = module.init(jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: leaf.astype(weights), variables)
    x = x.astype(inputs)

    def total(variables, x):
        return (module.apply(variables, x)[0] ** 2).sum()

    exact = [a.astype("float32") for a in (x, *jax.tree.leaves(variables))]
    whole = jax.tree.unflatten(jax.tree.structure(variables), exact[1:])
    for ours, full, given in zip(
        jax.tree.leaves(jax.grad(total, argnums=(0, 1))(variables, x)),
        jax.tree.leaves(jax.grad(total, argnums=(0, 1))(whole, exact[0])),
        jax.tree.leaves((variables, x)),
        strict=True,
    ):
        assert ours.dtype == given.dtype
        np.testing.assert_allclose(ours.astype("float32"), full, atol=0.02 * np.abs(full).max())


def test_forward_mode_is_refused():
    module, x = Recurrent("gru", 4, 1), jnp.asarray(normal(1, 2, 3))
    variables = module.init(jax.random.key(0), x)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: module.apply(variables, x)[0], (x,), (x,))


@pytest.mark.parametrize("option", OPTIONS)
def test_weights_go_there_and_back(option):
    module = Recurrent("lstm", 4, 2, **OPTIONS[option][0])
    params = module.init(jax.random.key(0), normal(1, 2, 3))["params"]
    weights = to_reference(params, table(option))
    expected = dict(reference("lstm", option=option).named_parameters())
    assert {n: w.shape for n, w in weights.items()} == {
        n: tuple(p.shape) for n, p in expected.items()
    }
    back = from_reference(weights, table(option), params)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
        assert a.tobytes() == np.asarray(b).tobytes()


def test_the_forget_gate_begins_open():
    one, other = (
        Recurrent("lstm", 4, forget_bias=bias).init(jax.random.key(0), normal(1, 2, 3))["params"]
        for bias in (0.0, 1.5)
    )
    difference = other["input_bias_0"] - one["input_bias_0"]
    np.testing.assert_allclose(difference, [0] * 4 + [1.5] * 4 + [0] * 8, atol=1e-6)
    np.testing.assert_array_equal(other["recurrent_bias_0"], one["recurrent_bias_0"])


@pytest.mark.parametrize(
    ("module", "shape", "words"),
    [
        (Recurrent("lstn", 4), (1, 2, 3), "Did you mean 'lstm'"),
        (Recurrent("gru", 4), (2, 3), r"\(2, 3\)"),
        (Recurrent("gru", 4, projection=2), (1, 2, 3), "belongs to cell='lstm', not 'gru'"),
        (Recurrent("lstm", 4, projection=4), (1, 2, 3), "must be below features=4"),
        (Recurrent("gru", 4, forget_bias=1.0), (1, 2, 3), "forget_bias=1.0 belongs"),
    ],
)
def test_what_does_not_fit_is_refused(module, shape, words):
    with pytest.raises(UserError, match=words):
        module.init(jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize(
    ("cell", "stock"),
    [("rnn", nn.SimpleCell), ("lstm", nn.OptimizedLSTMCell), ("gru", nn.GRUCell)],
)
def test_the_gradient_keeps_no_more_than_linens(cell, stock):
    x = jnp.ones((3, 50, 8))

    def kept(module):
        _, backward = jax.vjp(module.apply, module.init(jax.random.key(0), x), x)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert kept(Recurrent(cell, 8)) <= kept(nn.RNN(stock(8)))
