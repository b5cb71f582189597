"""Recurrent layers: the plain recurrence, LSTM and GRU over whole sequences."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from zoo.errors import UserError, did_you_mean
from zoo.layers.initializers import kernel_and_bias

# The state of one layer, its output first: (hidden,) or, of an LSTM, (hidden, cell).
LayerCarry = tuple[Float[Array, "batch features"], ...]
Carry = tuple[LayerCarry, ...]
# Inside a sequence features come before the batch: products with the weights on the left are the
# faster ones on a CPU, and elsewhere it is the same.
State = tuple[Float[Array, "features batch"], ...]
Gates = Float[Array, "gates_features batch"]
# (input's share of the gates, state's share, state) -> new state
Cell = Callable[[Gates, Gates, State], State]


def rnn_cell(nonlinearity: Callable[[Array], Array], x: Gates, h: Gates, state: State) -> State:
    """The plain recurrence (Elman 1990), as ``torch.nn.RNN``."""
    return (nonlinearity(x + h),)


def lstm_cell(x: Gates, h: Gates, state: State) -> State:
    """Long short-term memory (Hochreiter and Schmidhuber 1997; Gers et al. 2000).

    As ``torch.nn.LSTM``: input, forget, candidate and output gate, in this order.
    """
    _, cell = state
    i, f, g, o = jnp.split(x + h, 4)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def gru_cell(x: Gates, h: Gates, state: State) -> State:
    """Gated recurrent unit (Cho et al. 2014), as ``torch.nn.GRU``.

    Reset and update gate and candidate, in this order; the reset gate comes after the product.
    """
    (hidden,) = state
    x_r, x_z, x_n = jnp.split(x, 3)
    h_r, h_z, h_n = jnp.split(h, 3)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * h_n)
    return ((1 - z) * n + z * hidden,)


# Name -> cell, gates in its weights, arrays in its state.
CELLS: dict[str, tuple[Cell, int, int]] = {
    "rnn": (functools.partial(rnn_cell, jnp.tanh), 1, 1),
    "rnn_relu": (functools.partial(rnn_cell, jax.nn.relu), 1, 1),
    "lstm": (lstm_cell, 4, 2),
    "gru": (gru_cell, 3, 1),
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
        carry: Carry | None = None,
        *,
        lengths: Int[Array, " batch"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "batch time outputs"], Carry]:
        """Runs over sequences.

        Args:
            x: inputs.
            carry: the state of each layer before the first input, of both directions one after
                the other; None: zeros.
            lengths: number of inputs of each sequence that count; after them outputs are zero and
                the state stays. None: all count.
            train: whether to drop out.

        Returns:
            The outputs of the last layer, and the state of each layer after the last input.

        Raises:
            UserError: the cell is unknown, it has no such option, or the input or the carry has
                another shape.
        """
        self._check_options()
        cell, gates, _ = _cell(self.cell)
        if x.ndim != 3:
            raise UserError(f"Recurrent: the input {x.shape} must be [batch, time, inputs]")
        batch, time, _ = x.shape
        expected = initial_carry(
            self.cell,
            self.features,
            self.num_layers,
            batch,
            bidirectional=self.bidirectional,
            projection=self.projection,
        )
        carry = expected if carry is None else carry
        if jax.tree.map(jnp.shape, carry) != jax.tree.map(jnp.shape, expected):
            raise UserError(
                f"Recurrent: the carry {jax.tree.map(jnp.shape, carry)} must be "
                f"{jax.tree.map(jnp.shape, expected)}"
            )
        counts = None
        if lengths is not None:
            counts = (jnp.arange(time)[:, None] < lengths).astype(x.dtype)
        states, finals = iter(carry), []
        sequence = x.transpose(1, 2, 0)
        for layer in range(self.num_layers):
            outputs = []
            for way in ("", "_reverse") if self.bidirectional else ("",):
                inputs = backwards(sequence, lengths) if way else sequence
                state = tuple(array.T for array in next(states))
                output, final = self._run(cell, gates, f"{layer}{way}", inputs, state, counts)
                outputs.append(backwards(output, lengths) if way else output)
                finals.append(tuple(array.T for array in final))
            sequence = jnp.concatenate(outputs, axis=1)
            if layer < self.num_layers - 1:
                sequence = nn.Dropout(self.dropout_rate, deterministic=not train)(sequence)
        return sequence.transpose(2, 0, 1), tuple(finals)

    def _run(
        self,
        cell: Cell,
        gates: int,
        name: str,
        inputs: Float[Array, "time inputs batch"],
        state: State,
        counts: Float[Array, "time batch"] | None,
    ) -> tuple[Float[Array, "time outputs batch"], State]:
        input_kernel, input_bias = self._weights("input", name, inputs.shape[1], gates)
        kernel, bias = self._weights("recurrent", name, self.projection or self.features, gates)
        projected = jnp.einsum("tib,ig->tgb", inputs, input_kernel) + input_bias[:, None]
        state = tuple(array.astype(projected.dtype) for array in state)
        if not self.projection:
            return recur(cell, projected, kernel, bias, state, counts)
        kernel_init, _ = kernel_and_bias(self.initialization, self.features)
        shape = (self.features, self.projection)
        projection = self.param(f"projection_kernel_{name}", kernel_init, shape)

        def projecting(x: Gates, h: Gates, state: State) -> State:
            hidden, *rest = cell(x, h, state)
            return (projection.T @ hidden, *rest)

        outputs, final, _ = _scan(projecting, projected, kernel, bias, state, counts)
        return outputs, final

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
    sequence: Float[Array, "time features batch"], lengths: Int[Array, " batch"] | None
) -> Float[Array, "time features batch"]:
    """Reverses what counts of each sequence; what is after it stays where it is."""
    if lengths is None:
        return sequence[::-1]
    places = jnp.arange(len(sequence))[:, None]
    source = jnp.where(places < lengths, lengths - 1 - places, places)
    return jnp.take_along_axis(sequence, source[:, None, :], axis=0)


def initial_carry(
    cell: str,
    features: int,
    num_layers: int,
    batch_size: int,
    *,
    bidirectional: bool = False,
    projection: int = 0,
) -> Carry:
    """Returns zeros for the state of each layer of ``Recurrent``.

    No two of its arrays share memory, so that it can be donated.
    """
    _, _, arrays = _cell(cell)
    # The output comes first; only it is projected.
    widths = (projection or features, features)[:arrays]
    return tuple(
        tuple(jnp.zeros((batch_size, width)) for width in widths)
        for _ in range(num_layers * (2 if bidirectional else 1))
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recur(
    cell: Cell,
    projected: Float[Array, "time gates_features batch"],
    kernel: Float[Array, "features gates_features"],
    bias: Float[Array, " gates_features"],
    state: State,
    counts: Float[Array, "time batch"] | None,
) -> tuple[Float[Array, "time features batch"], State]:
    """Runs one layer over whole sequences.

    The gradient's rule keeps what each step computed and forms the gradient of the weights after
    the steps, in one product; differentiating the scan would add it up in every step. Forward-mode
    differentiation is an error.

    Args:
        cell: new state from the shares of the gates.
        projected: the inputs' share of the gates.
        kernel: for the state's share.
        bias: of the state's share.
        state: before the first step.
        counts: 1 for a step that counts; after the others the state is what it was and the output
            is zero. None: all count.

    Returns:
        Outputs, and the state after the last step.
    """
    outputs, final, _ = _scan(cell, projected, kernel, bias, state, counts)
    return outputs, final


def _step(
    cell: Cell, x: Gates, h: Gates, state: State, counts: Float[Array, " batch"] | None
) -> tuple[Float[Array, "features batch"], State]:
    new = cell(x, h, state)
    if counts is None:
        return new[0], new
    new = tuple(jnp.where(counts > 0, n, old) for n, old in zip(new, state, strict=True))
    return new[0] * counts, new


def _scan(cell: Cell, projected: Any, kernel: Any, bias: Any, state: State, counts: Any) -> Any:
    weights = kernel.T

    def step(state: State, inputs: Any) -> Any:
        x, counts = inputs
        h = weights @ state[0] + bias[:, None]
        output, new = _step(cell, x, h, state, counts)
        return new, (output, h, state)

    final, (outputs, hs, states) = jax.lax.scan(step, state, (projected, counts))
    return outputs, final, (hs, states)


def _recur_forward(
    cell: Cell, projected: Any, kernel: Any, bias: Any, state: State, counts: Any
) -> Any:
    outputs, final, kept = _scan(cell, projected, kernel, bias, state, counts)
    return (outputs, final), (projected, kernel, counts, *kept)


def _recur_backward(cell: Cell, residuals: Any, gradients: Any) -> Any:
    projected, kernel, counts, hs, states = residuals
    d_outputs, d_final = gradients

    def step(d_state: State, inputs: Any) -> Any:
        x, h, state, counts, d_output = inputs
        _, backward = jax.vjp(lambda x, h, state: _step(cell, x, h, state, counts), x, h, state)
        dx, dh, (d_hidden, *rest) = backward((d_output, d_state))
        return (d_hidden + kernel @ dh, *rest), (dx, dh)

    d_state, (d_projected, dhs) = jax.lax.scan(
        step, d_final, (projected, hs, states, counts, d_outputs), reverse=True
    )
    d_kernel = jnp.einsum("tfb,tgb->fg", states[0], dhs)
    d_counts = None if counts is None else jnp.zeros_like(counts)
    return d_projected, d_kernel, dhs.sum(axis=(0, 2)), d_state, d_counts


recur.defvjp(_recur_forward, _recur_backward)


def _cell(name: str) -> tuple[Cell, int, int]:
    if name not in CELLS:
        raise UserError(f"cell={name!r} is unknown.{did_you_mean(name, CELLS)}")
    return CELLS[name]
