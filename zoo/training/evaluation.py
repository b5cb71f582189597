"""Evaluation of a state over a whole split."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from zoo.training.partitioning import compile_step, put_batch, put_replicated
from zoo.training.precision import with_precision
from zoo.training.stopping import StopSignal

HostBatch = dict[str, np.ndarray]


def compile_evaluation(
    evaluate: Callable | None,
    predict: Callable | None,
    carry: dict[str, Any],
    batch: Any,
    mesh: Mesh,
    *,
    precision: str,
) -> tuple[Callable, float]:
    """Compiles a task's evaluation and prediction, one of them or both, as one function.

    Args:
        evaluate: ``(params, model_state, batch, key) -> {name: (sum, weight)}``; None: no sums.
        predict: the same arguments -> outputs whose first axis is the batch; None: no outputs.
        carry: ``params``, ``model_state`` and ``key``, or their shapes.
        batch: the shapes of a global batch.
        mesh: the devices.
        precision: as in training.

    Returns:
        The compiled function, and the seconds that it took.
    """

    def both(params: Any, model_state: Any, batch: Any, key: PRNGKeyArray) -> tuple[Any, Any]:
        sums = evaluate(params, model_state, batch, key) if evaluate else {}
        return sums, predict(params, model_state, batch, key) if predict else {}

    computed = with_precision(both, precision)

    def evaluation(carry: dict[str, Any], batch: Any) -> tuple[Any, Any]:
        return computed(carry["params"], carry["model_state"], batch, carry["key"])

    return compile_step(evaluation, carry, batch, mesh, donate=False)


def evaluate_split(
    compiled: Callable,
    carry: dict[str, Any],
    batches: Iterable[HostBatch],
    mesh: Mesh,
    *,
    references: Sequence[str] = (),
    stop: StopSignal | None = None,
) -> tuple[dict[str, float], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Runs over the batches of a split.

    Args:
        compiled: what ``compile_evaluation`` returned.
        carry: ``params``, ``model_state`` and ``key``.
        batches: padded batches with ``mask``.
        mesh: the devices.
        references: names of the batch's arrays to keep, for scores on the host.
        stop: asked between two batches.

    Returns:
        Means by name; outputs; references. Padded rows are left out of the latter two.

    Raises:
        Stopped: a signal arrived.
    """
    carry = put_replicated(carry, mesh)
    totals: dict[str, tuple[float, float]] = {}
    outputs: list[dict[str, np.ndarray]] = []
    kept: list[dict[str, np.ndarray]] = []
    for batch in batches:
        if stop is not None:
            stop.check()
        sums, output = jax.device_get(compiled(carry, put_batch(batch, mesh)))
        real = batch["mask"] > 0
        for name, (total, weight) in sums.items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = (before[0] + float(total), before[1] + float(weight))
        outputs.append({name: rows[real] for name, rows in output.items()})
        kept.append({name: batch[name][real] for name in references})
    means = {name: total / weight for name, (total, weight) in totals.items() if weight}
    return means, _stack(outputs), _stack(kept)


def _stack(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
