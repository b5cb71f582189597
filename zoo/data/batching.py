"""Batches. The global batch k is a function of (seed, k) alone."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from absl import flags

from zoo.data.sources import DataError, Source
from zoo.data.transforms import Transform

Batch = dict[str, np.ndarray]


class Batches(Protocol):
    """An iterator whose threads and processes end at ``close()`` or at garbage collection."""

    def __iter__(self) -> "Batches":
        """Returns the iterator itself."""

    def __next__(self) -> Batch:
        """Returns the next batch, and waits for it if it is not ready."""

    def close(self) -> None:
        """Ends threads and processes."""


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Returns the number of batches that cover all examples; the last one may be partial."""
    return math.ceil(examples / batch_size)


def examples_per_epoch(examples: int, batch_size: int, order: str = "shuffled") -> int:
    """Returns the number of examples in an epoch.

    Lanes have equal lengths, so with ``lanes`` a remainder is left out.

    Raises:
        DataError: there are fewer examples than lanes.
    """
    if order == "shuffled":
        return examples
    if examples < batch_size:
        raise DataError(
            f"data.order='lanes' needs at least one example for each lane, but the data have "
            f"{examples} windows: lower train.batch_size={batch_size} or data.context"
        )
    return examples - examples % batch_size


def train_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    stop: int,
    start: int = 0,
    order: str = "shuffled",
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 4,
) -> Batches:
    """Returns the batches ``start`` to ``stop - 1`` of an endless stream of epochs.

    Every epoch contains every example once and has its own order. The last batch of an epoch is
    padded with zeros; ``mask`` is 1 for the rows that count. Each example is transformed with its
    own generator, which is seeded by ``seed`` and the example's number in the stream.

    With ``lanes``, every row of the batch reads its own stretch of the examples in order: row ``r``
    of the next batch holds the next example. ``start`` is 1 where a lane begins.

    Args:
        source: the examples.
        transform: transforms one example.
        batch_size: number of rows of the *global* batch.
        seed: seeds the order and the transforms; between 0 and 2**32 - 1.
        stop: number of the batch after the last one.
        start: number of the first batch.
        order: ``shuffled`` or ``lanes``.
        process_index: which part of the rows to make; only these rows are decoded.
        process_count: number of parts; it must divide the batch size.
        workers: number of processes that make batches; 0 uses a thread of this process. Workers
            are spawned, never forked: forking a process with JAX's threads may deadlock.
        prefetch: number of batches made ahead, at least 1.

    Raises:
        DataError: a size is out of range.
    """
    import grain

    rows = _rows(batch_size, process_index, process_count)
    _check(source, seed)
    # Index i is example i % N of epoch i // N. Each epoch has a new order and new generators.
    stream = grain.MapDataset.source(source).seed(seed)
    if order == "shuffled":
        stream = stream.shuffle()
    stream = stream.random_map(transform)
    examples = examples_per_epoch(len(source), batch_size, order)

    def batch_at(k: int) -> Batch:
        epoch, number = divmod(k, steps_per_epoch(examples, batch_size))
        if order == "shuffled":
            return _batch(stream, epoch * len(source), _in_turn(number, batch_size, rows, examples))
        lane = examples // batch_size
        begins = np.full(len(rows), number == 0, np.float32)
        return _batch(stream, 0, [row * lane + number for row in rows]) | {"start": begins}

    batches = grain.MapDataset.range(start, stop).map(batch_at)
    dataset = _made_ahead(batches, prefetch)
    if workers:
        # grain's workers read absl flags, which the caller of a library may not have parsed.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
        )
    return iter(dataset)


def eval_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 4,
) -> Batches:
    """Returns the batches of one pass in order; the last one is padded as in training.

    Args:
        source: the examples.
        transform: transforms one example; the generator that it gets should not be needed.
        batch_size: number of rows of the *global* batch.
        process_index: which part of the rows to make.
        process_count: number of parts; it must divide the batch size.
        prefetch: number of batches made ahead, at least 1.

    Raises:
        DataError: a size is out of range.
    """
    import grain

    rows = _rows(batch_size, process_index, process_count)
    _check(source, 0)
    stream = grain.MapDataset.source(source).seed(0).random_map(transform)
    count = steps_per_epoch(len(source), batch_size)
    batches = grain.MapDataset.range(count).map(
        lambda k: _batch(stream, 0, _in_turn(k, batch_size, rows, len(source)))
    )
    return iter(_made_ahead(batches, prefetch))


def _made_ahead(batches: Any, prefetch: int) -> Any:
    """Makes ``prefetch`` batches ahead in a thread."""
    import grain

    # Two threads would wait for each other, because Python code holds the interpreter's lock. A
    # batch of configs/cnn.py takes 15 ms with one thread and took 25 ms with two.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
    return batches.to_iter_dataset(options)


def _in_turn(number: int, batch_size: int, rows: range, examples: int) -> list[int | None]:
    """Returns the indices of this process's rows of a batch; None after the last example."""
    indices = (number * batch_size + row for row in rows)
    return [index if index < examples else None for index in indices]


def _batch(stream: Sequence[Any], first: int, indices: Sequence[int | None]) -> Batch:
    """Stacks the examples ``first + index``; a row without an index is masked zeros."""
    made = [stream[first + index] for index in indices if index is not None]
    # A process whose rows are all padding still needs the shapes of an example.
    like = made[0] if made else stream[first]
    padded = {
        name: np.zeros((len(indices), *np.shape(value)), np.asarray(value).dtype)
        for name, value in like.items()
    }
    for row, example in enumerate(made):
        for name, value in example.items():
            padded[name][row] = value
    return padded | {"mask": (np.arange(len(indices)) < len(made)).astype(np.float32)}


def _rows(batch_size: int, process_index: int, process_count: int) -> range:
    if batch_size < 1:
        raise DataError(f"batch_size={batch_size} must be at least 1")
    if not 0 <= process_index < process_count:
        raise DataError(
            f"process_index={process_index} must be at least 0 and below "
            f"process_count={process_count}"
        )
    if batch_size % process_count:
        raise DataError(
            f"batch_size={batch_size} must be a multiple of the {process_count} processes"
        )
    share = batch_size // process_count
    return range(process_index * share, (process_index + 1) * share)


def _check(source: Source, seed: int) -> None:
    if not len(source):
        raise DataError("the source has no examples")
    if not 0 <= seed < 2**32:
        raise DataError(f"seed={seed} must be between 0 and 2**32 - 1")
