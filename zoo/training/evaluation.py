"""Evaluation of a state over a whole split."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from zoo.training.layout import Layout, compile_step
from zoo.training.precision import with_precision
from zoo.training.stopping import StopSignal

HostBatch = dict[str, np.ndarray]
Shapes = dict[str, jax.ShapeDtypeStruct]
# The number of examples whose outputs are shown during a run.
SAMPLES = 16


class Evaluated(Protocol):
    """The part of a task that an evaluation needs; see ``zoo.tasks.Task``."""

    @property
    def references(self) -> Sequence[str]:
        """The names of the batch's arrays that ``score`` needs."""

    def evaluate(self, params: Any, model_state: Any, batch: Any, key: PRNGKeyArray) -> Any:
        """Returns metrics as (sum, weight)."""

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """Returns the means over a split and values derived from them."""

    def predict(self, params: Any, model_state: Any, batch: Any, key: PRNGKeyArray) -> Any:
        """Returns the outputs by name; their first axis is the batch."""

    def score(self, outputs: Any, references: Any) -> dict[str, Any]:
        """Returns the scores of a whole split."""


# Opens a split: (name, rows of the global batch) -> this process's rows of its batches.
OpenBatches = Callable[[str, int], contextlib.AbstractContextManager[Iterator[HostBatch]]]


class Evaluator:
    """Evaluates parameters on the splits of a data set; compiles each function once."""

    def __init__(
        self,
        task: Evaluated,
        batches: OpenBatches,
        layout: Layout,
        *,
        batch_size: int,
        shapes: Callable[[str, int], Shapes],
        precision: str = "float32",
        seed: int = 0,
        fuse: Callable[[Callable], Callable] = lambda function: function,
        stop: StopSignal | None = None,
    ) -> None:
        """Prepares the evaluation. ``compile_seconds`` counts the time of compilations so far.

        Args:
            task: the model joined with its metrics.
            batches: opens a split.
            layout: where arrays lie.
            batch_size: the number of rows of the global batch.
            shapes: the shapes of such a batch.
            precision: the precision, as in training.
            seed: the random seed. Every evaluation uses the same key, so that random values such
                as noise do not differ.
            fuse: speeds up a function that only predicts; see ``zoo.layers.fuse``.
            stop: checked between two batches.
        """
        self._task, self._batches, self._shapes = task, batches, shapes
        self._layout, self._batch_size = layout, batch_size
        self._precision, self._fuse, self._stop = precision, fuse, stop
        self._key = jax.random.key(seed)
        self._compiled: dict[str, Any] = {}
        self.compile_seconds = 0.0

    def means(self, params: Any, model_state: Any, split: str) -> dict[str, float]:
        """Returns the means over a split."""
        self.compile("evaluate", params, model_state, split)
        return self._task.summary(self._run("evaluate", params, model_state, split)[0])

    def scores(self, params: Any, model_state: Any, split: str) -> dict[str, Any]:
        """Returns the task's scores of a whole split, computed from the outputs of all examples."""
        self.compile("predict", params, model_state, split)
        _, outputs, references = self._run("predict", params, model_state, split)
        return self._task.score(outputs, references)

    def samples(self, params: Any, model_state: Any, split: str) -> dict[str, np.ndarray]:
        """Returns the task's outputs for the first examples of a split, to look at.

        There are 16 of them, or the next number that can be divided over the devices.
        """
        self.compile("samples", params, model_state, split)
        return self._run("samples", params, model_state, split, batches=1)[1]

    def metrics(self) -> list[str]:
        """Returns the names of the means, once ``evaluate`` is compiled."""
        compiled = self._compiled["evaluate"]
        sums, *_ = jax.tree.unflatten(compiled.out_tree, [1.0] * compiled.out_tree.num_leaves)
        return list(self._task.summary(dict.fromkeys(sums, 1.0)))

    def compile(self, what: str, params: Any, model_state: Any, split: str) -> None:
        """Compiles the task's ``evaluate`` or ``predict``, or its ``samples``, only once."""
        if what in self._compiled:
            return
        self._compiled[what], seconds = compile_evaluation(
            self._fuse(self._task.evaluate) if what == "evaluate" else None,
            None if what == "evaluate" else self._fuse(self._task.predict),
            self._arguments(params, model_state),
            self._shapes(split, self._rows(what)),
            self._layout,
            references=self._task.references if what == "predict" else (),
            precision=self._precision,
        )
        self.compile_seconds += seconds

    def _rows(self, what: str) -> int:
        if what != "samples":
            return self._batch_size
        return math.ceil(SAMPLES / self._layout.row_parts) * self._layout.row_parts

    def _run(
        self, what: str, params: Any, model_state: Any, split: str, batches: int | None = None
    ) -> tuple[Any, Any, Any]:
        with self._batches(split, self._rows(what)) as all_batches:
            return evaluate_split(
                self._compiled[what],
                self._arguments(params, model_state),
                itertools.islice(all_batches, batches),
                self._layout,
                stop=self._stop,
            )

    def _arguments(self, params: Any, model_state: Any) -> dict[str, Any]:
        return {"params": params, "model_state": model_state, "key": self._key}


def compile_evaluation(
    evaluate: Callable | None,
    predict: Callable | None,
    arguments: dict[str, Any],
    batch: Any,
    layout: Layout,
    *,
    references: Sequence[str] = (),
    precision: str,
) -> tuple[Callable, float]:
    """Compiles a task's evaluation or prediction, or both, as one function.

    Args:
        evaluate: ``(params, model_state, batch, key) -> {name: (sum, weight)}``; None: no sums.
        predict: takes the same arguments and returns outputs whose first axis is the batch; None:
            no outputs.
        arguments: ``params``, ``model_state`` and ``key``, or their shapes.
        batch: the shapes of a global batch.
        layout: where arrays lie.
        references: the names of the batch's arrays to return beside the outputs.
        precision: the precision, as in training.

    Returns:
        The compiled function, and the seconds that the compilation took. The function returns the
        sums, the outputs, the references and ``mask``. The last three have *all* rows of the global
        batch, and so are the same in every process.
    """

    def both(params: Any, model_state: Any, batch: Any, key: PRNGKeyArray) -> tuple[Any, Any]:
        sums = evaluate(params, model_state, batch, key) if evaluate else {}
        return sums, predict(params, model_state, batch, key) if predict else {}

    computed = with_precision(both, precision)

    def evaluation(arguments: dict[str, Any], batch: Any) -> tuple[Any, Any, Any, Any]:
        sums, outputs = computed(
            arguments["params"], arguments["model_state"], batch, arguments["key"]
        )
        return sums, outputs, {name: batch[name] for name in references}, batch["mask"]

    return compile_step(evaluation, arguments, batch, layout, returns_state=False)


def evaluate_split(
    compiled: Callable,
    arguments: dict[str, Any],
    batches: Iterable[HostBatch],
    layout: Layout,
    *,
    stop: StopSignal | None = None,
) -> tuple[dict[str, float], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Runs over the batches of a split.

    Args:
        compiled: the function that ``compile_evaluation`` returned.
        arguments: ``params``, ``model_state`` and ``key``.
        batches: this process's rows of padded batches with ``mask``.
        layout: where arrays lie.
        stop: checked between two batches.

    Returns:
        The means by name, the outputs, and the references. The latter two have no padded rows.

    Raises:
        Stopped: a signal arrived.
    """
    arguments = layout.put(arguments)
    totals: dict[str, tuple[float, float]] = {}
    outputs: list[dict[str, np.ndarray]] = []
    kept: list[dict[str, np.ndarray]] = []
    for batch in batches:
        if stop is not None:
            stop.check()
        sums, output, references, mask = jax.device_get(
            compiled(arguments, layout.put_batch(batch))
        )
        real = mask > 0
        for name, (total, weight) in sums.items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = (before[0] + float(total), before[1] + float(weight))
        outputs.append({name: rows[real] for name, rows in output.items()})
        kept.append({name: rows[real] for name, rows in references.items()})
    means = {name: total / weight for name, (total, weight) in totals.items() if weight}
    return means, _stack(outputs), _stack(kept)


def _stack(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
