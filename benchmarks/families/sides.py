"""What the families have in common: prepared files, and steps on either side."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import optax

from zoo.training.layout import Layout, compile_step, make_mesh
from zoo.training.state import create_state
from zoo.training.step import make_train_step
from zoo.weights.tables import Table, variables_from_reference, variables_to_reference

# Makes the update or the call with this number; returns the loss, or what else must agree.
Call = Callable[[int], float]
BATCHES = 20
# Steps in which the sides are compared. In float64, where both are slow, a few show that they are
# the same program.
COMPARED = {"float32": BATCHES, "float64": 4}
# Calls before those that are timed.
WARM_UP = 3
# How PyTorch may run the same model, for the table; the fastest that a work names is its peer.
SETTINGS = {
    "eager": "eager",
    "channels_last": "channels last",
    "compile": "torch.compile",  # with the channels last in memory
}
# torch.compile runs nn.LSTM and nn.GRU as they are, so recurrent works have one setting.
EAGER = ("eager",)


class Work(Protocol):
    """A piece of work on our side and on those of others.

    The others are those of its methods: ``torch``; ``linen``, linen's own layers; ``step``, our own
    step. Each side returns a call that does the work once with the prepared files in a folder. Its
    result is a number that ours and PyTorch's must agree on, such as the loss; linen begins with
    weights of its own.
    """

    @property
    def group(self) -> str:
        """What ``--only`` names."""

    @property
    def title(self) -> str:
        """What is done, for the table."""

    @property
    def goals(self) -> dict[str, float]:
        """Ratio to reach, by side."""

    @property
    def checked(self) -> tuple[str, ...]:
        """Types of numbers in which the sides must agree before anything is timed."""

    @property
    def settings(self) -> tuple[str, ...]:
        """Ways in which PyTorch may do it; ``torch`` takes one as ``setting``."""
        return EAGER

    @property
    def optimizer(self) -> str:
        """PyTorch's, for the table; empty: nothing is trained."""
        return ""

    @property
    def calls(self) -> int | None:
        """How many calls a turn times; None: as many as fit, at least three."""
        return None

    @property
    def waits(self) -> bool:
        """Whether a call waits for what is made ahead: not each as long, so their mean counts."""
        return False

    @property
    def gflop(self) -> float | None:
        """Arithmetic in 10^9 operations; None: not counted."""
        return None

    def prepare(self, folder: Path) -> None:
        """Writes what both sides start from."""

    def ours(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """Our side."""
        raise NotImplementedError


def write(
    folder: Path,
    batches: Sequence[dict[str, np.ndarray]],
    variables: dict[str, Any],
    table: Table,
) -> None:
    """Writes ``batches.npz``, [batch, row, …] by name, and ``weights.npz`` by the peer's names."""
    stacked: dict[str, Any] = {name: np.stack([b[name] for b in batches]) for name in batches[0]}
    np.savez(folder / "batches.npz", **stacked)
    weights: dict[str, Any] = variables_to_reference(variables, table)
    np.savez(folder / "weights.npz", **weights)


def read_batches(folder: Path, dtype: str) -> list[dict[str, np.ndarray]]:
    """Returns what ``write`` wrote, numbers that are not whole in ``dtype``."""
    with np.load(folder / "batches.npz") as arrays:
        stacked = {name: cast(arrays[name], dtype) for name in arrays.files}
    count = len(next(iter(stacked.values())))
    return [{name: rows[index] for name, rows in stacked.items()} for index in range(count)]


def read_variables(folder: Path, table: Table, like: Any, dtype: str) -> dict[str, Any]:
    """Returns the weights as our variables, by collection."""
    with np.load(folder / "weights.npz") as arrays:
        variables = variables_from_reference(arrays, table, like)
    return jax.tree.map(lambda x: cast(x, dtype), variables)


def cast(array: Any, dtype: str) -> Any:
    """Returns an array in ``dtype``, one of whole numbers as it is."""
    return array.astype(dtype) if np.issubdtype(array.dtype, np.floating) else array


def our_step(
    loss_fn: Callable,
    variables: dict[str, Any],
    batches: Sequence[dict[str, np.ndarray]],
    optimizer: optax.GradientTransformation | None = None,
    *,
    stock: bool = False,
) -> Call:
    """Returns the zoo's own train step, with Adam if no optimizer is given, one update a call."""
    optimizer = optimizer or optax.adam(1e-3)
    return compiled(
        make_train_step(loss_fn, optimizer),
        create_state(variables, optimizer, jax.random.key(0)),
        batches,
        stock=stock,
    )


def compiled(
    train_step: Callable,
    state: Any,
    host_batches: Sequence[dict[str, np.ndarray]],
    *,
    stock: bool = False,
) -> Call:
    """Compiles a step; returns the call that makes one update on the batches in turn.

    ``stock``: by ``jax.jit`` alone, without what the zoo tells the compiler.
    """
    layout = Layout(make_mesh(1))
    batches = [layout.put_batch(batch) for batch in host_batches]
    held = [layout.put(state)]
    step: Callable = jax.jit(train_step, donate_argnums=0)
    if not stock:
        step, _ = compile_step(train_step, held[0], batches[0], layout, returns_state=True)

    def update(index: int) -> float:
        held[0], sums = step(held[0], batches[index % len(batches)])
        loss_sum, weight = jax.device_get(sums["loss"])
        return float(loss_sum / weight)

    return update


def torch_step(
    model: Any,
    loss_fn: Callable[[Any, dict[str, Any]], Any],
    folder: Path,
    dtype: str,
    setting: str,
    make_optimizer: Callable[[Any], Any] | None = None,
) -> Call:
    """Returns a step of PyTorch on the prepared weights and batches.

    Args:
        model: its model.
        loss_fn: mean loss by model and batch.
        folder: of the prepared files.
        dtype: of the numbers that are not whole.
        setting: one of ``SETTINGS``.
        make_optimizer: by parameters; None: Adam in one fused kernel.
    """
    import torch

    model = torch_model(model, folder, dtype, setting).train()
    batches = torch_batches(folder, dtype, setting)
    optimizer = (
        make_optimizer(model.parameters())
        if make_optimizer
        else torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    )

    def update(index: int) -> float:
        loss = loss_fn(model, batches[index % len(batches)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return update


def torch_model(model: Any, folder: Path, dtype: str, setting: str) -> Any:
    """Returns a PyTorch model with the prepared weights, in a type and one of ``SETTINGS``.

    What it has twice, or counts itself, need not be among the weights.
    """
    import torch

    with np.load(folder / "weights.npz") as arrays:
        weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    assert set(missing) <= {"lm_head.weight"}, missing
    model = model.to(getattr(torch, dtype))
    if setting != "eager":
        model = model.to(memory_format=torch.channels_last)
    return torch.compile(model) if setting == "compile" else model


def torch_batches(folder: Path, dtype: str, setting: str) -> list[dict[str, Any]]:
    """Returns the prepared batches as ``torch_batch`` does."""
    return [torch_batch(batch, setting) for batch in read_batches(folder, dtype)]


def torch_batch(batch: dict[str, np.ndarray], setting: str) -> dict[str, Any]:
    """Returns a batch as PyTorch's tensors: whole numbers, and images, as it wants them.

    Images are [batch, channels, height, width] to PyTorch; ours in memory are its channels last,
    so that only ``eager`` copies them.
    """
    import torch

    def tensor(array: np.ndarray) -> Any:
        whole = np.issubdtype(array.dtype, np.integer)
        made = torch.from_numpy(array.astype(np.int64) if whole else array)
        if made.ndim == 4:
            made = made.permute(0, 3, 1, 2)
            made = made.contiguous() if setting == "eager" else made
        return made

    return {name: tensor(array) for name, array in batch.items()}
