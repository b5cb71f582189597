"""What the families have in common: prepared files, and steps on either side."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from zoo.pretrained import from_reference, to_reference
from zoo.pretrained.tables import Table
from zoo.training.partitioning import compile_step, make_mesh, put_batch, put_replicated
from zoo.training.state import create_state
from zoo.training.step import make_train_step

# Makes the update or the call with this number; returns the loss, or what else must agree.
Call = Callable[[int], float]
BATCHES = 20


def write(
    folder: Path, batches: Sequence[dict[str, np.ndarray]], params: Any, table: Table
) -> None:
    """Writes ``batches.npz``, [batch, row, …] by name, and ``weights.npz`` by the peer's names."""
    stacked: dict[str, Any] = {name: np.stack([b[name] for b in batches]) for name in batches[0]}
    np.savez(folder / "batches.npz", **stacked)
    weights: dict[str, Any] = to_reference(params, table)
    np.savez(folder / "weights.npz", **weights)


def read_batches(folder: Path, dtype: str) -> list[dict[str, np.ndarray]]:
    """Returns what ``write`` wrote, numbers that are not whole in ``dtype``."""
    with np.load(folder / "batches.npz") as arrays:
        stacked = {name: cast(arrays[name], dtype) for name in arrays.files}
    count = len(next(iter(stacked.values())))
    return [{name: rows[index] for name, rows in stacked.items()} for index in range(count)]


def read_params(folder: Path, table: Table, like: Any, dtype: str) -> Any:
    """Returns the weights as our parameters."""
    with np.load(folder / "weights.npz") as arrays:
        params = from_reference(arrays, table, like)
    return jax.tree.map(lambda x: cast(x, dtype), params)


def cast(array: Any, dtype: str) -> Any:
    """Returns an array in ``dtype``, one of whole numbers as it is."""
    return array.astype(dtype) if np.issubdtype(array.dtype, np.floating) else array


def our_step(loss_fn: Callable, params: Any, batches: Sequence[dict[str, np.ndarray]]) -> Call:
    """Returns the zoo's own train step with Adam, one update a call."""
    optimizer = optax.adam(1e-3)
    return compiled(
        make_train_step(loss_fn, optimizer),
        create_state({"params": params}, optimizer, jax.random.key(0)),
        batches,
    )


def compiled(
    train_step: Callable, state: Any, host_batches: Sequence[dict[str, np.ndarray]]
) -> Call:
    """Compiles a step; returns the call that makes one update on the batches in turn."""
    mesh = make_mesh(1)
    batches = [put_batch(batch, mesh) for batch in host_batches]
    held = [put_replicated(state, mesh)]
    step, _ = compile_step(train_step, held[0], batches[0], mesh, donate=True)

    def update(index: int) -> float:
        held[0], sums = step(held[0], batches[index % len(batches)])
        loss_sum, weight = jax.device_get(sums["loss"])
        return float(loss_sum / weight)

    return update


def torch_step(
    model: Any, loss_fn: Callable[[Any, dict[str, Any]], Any], folder: Path, dtype: str
) -> Call:
    """Returns a step of PyTorch with Adam on the prepared weights and batches."""
    import torch

    load_weights(model, folder)
    model = model.to(getattr(torch, dtype)).train()
    batches = torch_batches(folder, dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def update(index: int) -> float:
        loss = loss_fn(model, batches[index % len(batches)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return update


def load_weights(model: Any, folder: Path) -> None:
    """Gives a PyTorch model the prepared weights; what it has twice need not be among them."""
    import torch

    with np.load(folder / "weights.npz") as arrays:
        weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing


def torch_batches(folder: Path, dtype: str) -> list[dict[str, Any]]:
    """Returns the prepared batches as PyTorch's tensors; whole numbers as it wants them."""
    import torch

    def tensor(array: np.ndarray) -> Any:
        whole = np.issubdtype(array.dtype, np.integer)
        return torch.from_numpy(array.astype(np.int64) if whole else array)

    return [
        {name: tensor(array) for name, array in batch.items()}
        for batch in read_batches(folder, dtype)
    ]
