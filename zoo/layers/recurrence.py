"""Recurrent layers: the plain recurrence, LSTM and GRU over whole sequences."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from zoo.axes import constrain_rows
from zoo.errors import UserError, did_you_mean
from zoo.layers.initializers import kernel_and_bias
from zoo.layers.tuned.recurrence import kernel_gradient, recur_backward, recur_forward

# The state of one layer, its output first: (hidden,) or, for an LSTM, (hidden, cell).
State = tuple[Float[Array, "batch features"], ...]
# One for each layer and direction.
States = tuple[State, ...]
Gates = Float[Array, "batch gates_features"]
# Kernel and bias for the input, kernel and bias for the state; a bias has as many elements as a
# kernel has columns.
Weights = tuple[
    Float[Array, "inputs gates_features"],
    Float[Array, " gates_features"],
    Float[Array, "features gates_features"],
    Float[Array, " gates_features"],
]


def rnn_cell(nonlinearity: Callable[[Array], Array], gates: Gates, state: State) -> State:
    """The plain recurrence (Elman 1990), as ``torch.nn.RNN``."""
    return (nonlinearity(gates),)


def lstm_cell(gates: Gates, state: State) -> State:
    """Long short-term memory (Hochreiter and Schmidhuber 1997; Gers et al. 2000).

    As ``torch.nn.LSTM``: input, forget, candidate and output gate, in this order.
    """
    _, cell = state
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def gru_cell(gates: Gates, h_n: Float[Array, "batch features"], state: State) -> State:
    """Gated recurrent unit (Cho et al. 2014), as ``torch.nn.GRU``.

    Reset and update gate and candidate, in this order; the reset gate comes after the product, so
    the state's share of the candidate is ``h_n``.
    """
    (hidden,) = state
    r, z, x_n = jnp.split(gates, 3, axis=-1)
    n = jnp.tanh(x_n + jax.nn.sigmoid(r) * h_n)
    return (n + jax.nn.sigmoid(z) * (hidden - n),)


@dataclasses.dataclass(frozen=True)
class Cell:
    """The equations of one step, and what weights and state they need.

    Attributes:
        equations: (gates, state) -> new state, or (gates, state's share of the last gate, state) ->
            new state.
        gates: their number.
        arrays: number of arrays of the state.
        sums: whether each of the gates is the sum of the shares of input and state; otherwise the
            last one is the input's share.
        native: name of the equations in ``zoo.layers.tuned.recurrence``; empty: not there.
    """

    equations: Callable[..., State]
    gates: int
    arrays: int
    sums: bool = True
    native: str = ""


CELLS: dict[str, Cell] = {
    "rnn": Cell(functools.partial(rnn_cell, jnp.tanh), gates=1, arrays=1, native="rnn"),
    "rnn_relu": Cell(
        functools.partial(rnn_cell, jax.nn.relu), gates=1, arrays=1, native="rnn_relu"
    ),
    "lstm": Cell(lstm_cell, gates=4, arrays=2, native="lstm"),
    "gru": Cell(gru_cell, gates=3, arrays=1, sums=False, native="gru"),
}


class Recurrent(nn.Module):
    """Stacked recurrent layers, as ``torch.nn.RNN``, ``LSTM`` and ``GRU`` with ``batch_first``.

    Parameters of layer ``k``: ``input_kernel_k [inputs, gates * features]``,
    ``recurrent_kernel_k [features, gates * features]``, and for each a bias, as PyTorch has them;
    ``projection_kernel_k [features, projection]``; the same with ``_reverse`` for the way back.

    Attributes:
        cell: ``rnn`` (tanh), ``rnn_relu``, ``lstm`` or ``gru``.
        features: width of the state.
        num_layers: number of layers, each reading the outputs of the one before.
        bidirectional: each layer also reads backwards, with weights of its own; both outputs side
            by side are the layer's (Schuster and Paliwal 1997).
        projection: width to which an LSTM's output is projected before it is used (Sak et al.
            2014), below ``features``; 0: none.
        use_bias: whether there are biases.
        forget_bias: added to the initial bias of an LSTM's forget gate (Jozefowicz et al. 2015
            take 1).
        dropout_rate: share of the outputs of all layers but the last that is zeroed in training.
        initialization: see ``zoo.layers.initializers.kernel_and_bias``. In ``pytorch`` the bound is
            1/sqrt(features) for all parameters.
    """

    cell: str
    features: int
    num_layers: int = 1
    bidirectional: bool = False
    projection: int = 0
    use_bias: bool = True
    forget_bias: float = 0.0
    dropout_rate: float = 0.0
    initialization: str = "pytorch"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time inputs"],
        states: States | None = None,
        *,
        lengths: Int[Array, " batch"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "batch time outputs"], States]:
        """Runs over sequences.

        Args:
            x: inputs.
            states: the state of each layer before the first input, both directions one after the
                other; None: zeros.
            lengths: number of inputs of each sequence that count; after them outputs are zero and
                the state stays. None: all count.
            train: whether to drop out.

        Returns:
            The outputs of the last layer, and the state of each layer after the last input.

        Raises:
            UserError: the cell is unknown or has no such option, the input is not 3-D, or the
                states have other shapes than ``initial_states`` gives them.
        """
        self._check_options()
        cell = _cell(self.cell)
        if x.ndim != 3:
            raise UserError(f"Recurrent: the input {x.shape} must be [batch, time, inputs]")
        batch, time, _ = x.shape
        expected = initial_states(
            self.cell,
            self.features,
            self.num_layers,
            batch,
            bidirectional=self.bidirectional,
            projection=self.projection,
        )
        states = expected if states is None else states
        if jax.tree.map(jnp.shape, states) != jax.tree.map(jnp.shape, expected):
            raise UserError(
                f"Recurrent: the states {jax.tree.map(jnp.shape, states)} must have the shapes "
                f"{jax.tree.map(jnp.shape, expected)}"
            )
        counts = None
        if lengths is not None:
            counts = (jnp.arange(time)[:, None] < lengths)[..., None].astype(x.dtype)
        before, finals = iter(states), []
        sequence = x.swapaxes(0, 1)
        for layer in range(self.num_layers):
            outputs = []
            for way in ("", "_reverse") if self.bidirectional else ("",):
                inputs = backwards(sequence, lengths) if way else sequence
                output, final = self._run(cell, f"{layer}{way}", inputs, next(before), counts)
                outputs.append(backwards(output, lengths) if way else output)
                finals.append(final)
            sequence = jnp.concatenate(outputs, axis=-1)
            if layer < self.num_layers - 1:
                sequence = nn.Dropout(self.dropout_rate, deterministic=not train)(sequence)
        return constrain_rows(sequence.swapaxes(0, 1)), tuple(finals)

    def _run(
        self,
        cell: Cell,
        name: str,
        inputs: Float[Array, "time batch inputs"],
        state: State,
        counts: Float[Array, "time batch 1"] | None,
    ) -> tuple[Float[Array, "time batch outputs"], State]:
        input_kernel, input_bias = self._weights("input", name, inputs.shape[-1], cell.gates)
        width = self.projection or self.features
        kernel, bias = self._weights("recurrent", name, width, cell.gates)
        inputs, *weights = nn.dtypes.promote_dtype(inputs, input_kernel, input_bias, kernel, bias)
        state = tuple(array.astype(inputs.dtype) for array in state)
        if not self.projection:
            return recur(cell, inputs, tuple(weights), state, counts)
        kernel_init, _ = kernel_and_bias(self.initialization, self.features)
        shape = (self.features, self.projection)
        projection = self.param(f"projection_kernel_{name}", kernel_init, shape)

        def projecting(gates: Gates, state: State) -> State:
            hidden, *rest = cell.equations(gates, state)
            return (hidden @ projection, *rest)

        projecting_cell = dataclasses.replace(cell, equations=projecting)
        return scan_steps(projecting_cell, inputs, tuple(weights), state, counts)

    def _weights(
        self, role: str, name: str, inputs: int, gates: int
    ) -> tuple[Float[Array, "inputs gates_features"], Float[Array, " gates_features"]]:
        kernel_init, bias_init = kernel_and_bias(self.initialization, self.features)
        width = gates * self.features
        kernel = self.param(f"{role}_kernel_{name}", kernel_init, (inputs, width))
        if not self.use_bias:
            return kernel, jnp.zeros(width, kernel.dtype)
        forgetful = self.forget_bias if (role, self.cell) == ("input", "lstm") else 0.0

        def init(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
            # Input, forget, candidate, output.
            forget = jnp.arange(width) // self.features == 1
            return bias_init(key, shape) + forgetful * forget

        return kernel, self.param(f"{role}_bias_{name}", init, (width,))

    def _check_options(self) -> None:
        if self.projection and self.cell != "lstm":
            raise UserError(
                f"Recurrent: projection={self.projection} belongs to cell='lstm', not {self.cell!r}"
            )
        if not 0 <= self.projection < self.features:
            raise UserError(
                f"Recurrent: projection={self.projection} must be below features={self.features}, "
                "0 for none"
            )
        if self.forget_bias and (self.cell != "lstm" or not self.use_bias):
            raise UserError(
                f"Recurrent: forget_bias={self.forget_bias} belongs to cell='lstm' with biases"
            )


def backwards(
    sequence: Float[Array, "time batch features"], lengths: Int[Array, " batch"] | None
) -> Float[Array, "time batch features"]:
    """Reverses the part of each sequence that counts; the rest stays where it is."""
    if lengths is None:
        return sequence[::-1]
    places = jnp.arange(len(sequence))[:, None]
    source = jnp.where(places < lengths, lengths - 1 - places, places)
    return jnp.take_along_axis(sequence, source[..., None], axis=0)


def initial_states(
    cell: str,
    features: int,
    num_layers: int,
    batch_size: int,
    *,
    bidirectional: bool = False,
    projection: int = 0,
) -> States:
    """Returns zeros for the state of each layer of ``Recurrent``.

    No two of its arrays share memory, so that it can be donated.
    """
    # The output comes first; only it is projected.
    widths = (projection or features, features)[: _cell(cell).arrays]
    return tuple(
        tuple(jnp.zeros((batch_size, width)) for width in widths)
        for _ in range(num_layers * (2 if bidirectional else 1))
    )


def scan_steps(
    cell: Cell,
    inputs: Float[Array, "time batch inputs"],
    weights: Weights,
    state: State,
    counts: Float[Array, "time batch 1"] | None,
) -> tuple[Float[Array, "time batch features"], State]:
    """Runs one layer over whole sequences.

    Args:
        cell: one step.
        inputs: the inputs of all steps.
        weights: the weights of the layer.
        state: the state before the first step.
        counts: 1 for a step that counts; after the others the state is what it was and the output
            is zero. None: all count.

    Returns:
        Outputs, and the state after the last step.
    """
    outputs, final, *_ = _forward_by_scan(cell, weights, inputs, state, counts)
    return outputs, final


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recur(
    cell: Cell, inputs: Any, weights: Weights, state: State, counts: Any
) -> tuple[Float[Array, "time batch features"], State]:
    """Does what ``scan_steps`` does, with a rule of its own for the gradient.

    The weights' gradients are formed after the steps, in one product; differentiating the scan
    would add them up in every step. Forward-mode differentiation is an error.
    """

    def scan(*arguments: Any) -> Any:
        return _forward_by_scan(cell, *arguments)[:2]

    return recur_forward(cell.native, scan, weights, inputs, state, counts)


def _shares(
    cell: Cell, weights: Weights, x: Gates, state: State
) -> tuple[Gates] | tuple[Gates, Float[Array, "batch features"]]:
    """Returns what the equations need to know of the input's product and the state."""
    _, input_bias, kernel, bias = weights
    h = state[0] @ kernel
    if cell.sums:
        return (x + h + (input_bias + bias),)
    x, h, last = x + input_bias, h + bias, -state[0].shape[-1]
    return jnp.concatenate([x[..., :last] + h[..., :last], x[..., last:]], axis=-1), h[..., last:]


def _step(
    cell: Cell, counts: Float[Array, "batch 1"] | None, shares: Any, state: State
) -> tuple[Float[Array, "batch features"], State]:
    new = cell.equations(*shares, state)
    if counts is None:
        return new[0], new
    new = tuple(jnp.where(counts > 0, n, old) for n, old in zip(new, state, strict=True))
    return new[0] * counts, new


def _forward_by_scan(cell: Cell, weights: Weights, inputs: Any, state: State, counts: Any) -> Any:
    """Returns outputs, the last state, and for every step the shares and the state before it."""

    def step(state: State, given: Any) -> Any:
        x, counts = given
        shares = _shares(cell, weights, x, state)
        output, new = _step(cell, counts, shares, state)
        return new, (output, shares, state)

    final, (outputs, shares, states) = jax.lax.scan(step, state, (inputs @ weights[0], counts))
    return outputs, final, shares, states


def _backward_by_scan(
    cell: Cell,
    kernels: Any,
    shares: Any,
    states: State,
    d_outputs: Any,
    d_final: State,
    counts: Any,
) -> Any:
    """Returns the gradients of the inputs, of both products, and of the first state.

    The inputs' gradient is None without their kernel. The gradient of the state's product is None
    where it is that of the inputs' product.
    """
    input_kernel, kernel = kernels
    transposed = kernel.T

    def step(d_state: State, given: Any) -> Any:
        shares, state, d_output, counts = given
        _, backward = jax.vjp(functools.partial(_step, cell, counts), shares, state)
        (d_gates, *d_last), (d_hidden, *rest) = backward((d_output, d_state))
        # The state's share of the last gate has a gradient of its own.
        d_h = d_gates
        if d_last:
            d_h = jnp.concatenate([d_gates[..., : -d_hidden.shape[-1]], *d_last], axis=-1)
        made = (d_gates, None if cell.sums else d_h)
        return (d_hidden + d_h @ transposed, *rest), made

    given = (shares, states, d_outputs, counts)
    d_state, (d_x, d_h) = jax.lax.scan(step, d_final, given, reverse=True)
    return None if input_kernel is None else d_x @ input_kernel.T, d_x, d_h, d_state


def _recur_forward(cell: Cell, *primals: Any) -> Any:
    # The gradient of the inputs only where it is needed: XLA drops no unused result of a native
    # function.
    wanted = primals[0].perturbed
    inputs, weights, state, counts = jax.tree.map(lambda primal: primal.value, primals)
    outputs, final, shares, states = recur_forward(
        cell.native, functools.partial(_forward_by_scan, cell), weights, inputs, state, counts
    )
    kernels = (weights[0] if wanted else None, weights[2])
    return (outputs, final), (inputs, kernels, counts, shares, states)


def _recur_backward(cell: Cell, residuals: Any, gradients: Any) -> Any:
    inputs, kernels, counts, shares, states = residuals
    d_inputs, d_x, d_h, d_state = recur_backward(
        cell.native,
        functools.partial(_backward_by_scan, cell),
        kernels,
        shares,
        states,
        *jax.tree.map(_instantiated, gradients),
        counts,
    )
    d_h = d_x if cell.sums else d_h
    d_bias = d_h.sum(axis=(0, 1))
    d_weights = (
        kernel_gradient(inputs, d_x),
        d_bias if cell.sums else d_x.sum(axis=(0, 1)),
        kernel_gradient(states[0], d_h),
        d_bias,
    )
    d_counts = None if counts is None else jnp.zeros_like(counts)
    return d_inputs, d_weights, d_state, d_counts


def _instantiated(gradient: Any) -> Array:
    if isinstance(gradient, jax.custom_derivatives.SymbolicZero):
        return jnp.zeros(gradient.shape, gradient.dtype)
    return gradient


recur.defvjp(_recur_forward, _recur_backward, symbolic_zeros=True)


def _cell(name: str) -> Cell:
    if name not in CELLS:
        raise UserError(f"cell={name!r} is unknown.{did_you_mean(name, CELLS)}")
    return CELLS[name]
