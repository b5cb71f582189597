"""Batches: the global batch k is a function of (seed, k), whoever asks for it and whenever."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from absl import flags

from zoo.data.sources import DataError, Source
from zoo.data.transforms import Transform

Batch = dict[str, np.ndarray]


class Batches(Protocol):
    """An iterator whose threads and processes end with ``close()``, or when it is forgotten."""

    def __iter__(self) -> "Batches":
        """Itself."""

    def __next__(self) -> Batch:
        """The next batch, waited for where it is not ready."""

    def close(self) -> None:
        """Ends threads and processes."""


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Number of batches that cover all examples, the last one perhaps partial."""
    return math.ceil(examples / batch_size)


def examples_per_epoch(examples: int, batch_size: int, order: str = "shuffled") -> int:
    """Number of examples that an epoch has: in lanes of equal length a remainder is left out.

    Raises:
        DataError: there are fewer examples than lanes.
    """
    if order == "shuffled":
        return examples
    if examples < batch_size:
        raise DataError(
            f"data.order='lanes' needs as many examples as lanes: lower train.batch_size="
            f"{batch_size} or data.context, the data have {examples} windows"
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

    Every epoch has every example once, in an order of its own. Its last batch is filled up with
    zeros; ``mask`` is 1 for a row that counts. Each example is transformed with a generator of its
    own, seeded by ``seed`` and its number in the stream.

    In ``lanes`` every row runs through a stretch of the examples of its own, in their order:
    row ``r`` of the batch after has the example after. ``start`` is 1 where a lane begins.

    Args:
        source: the examples.
        transform: of one example.
        batch_size: rows of the *global* batch.
        seed: of order and transforms, between 0 and 2**32 - 1.
        stop: number of the batch after the last.
        start: number of the first batch.
        order: ``shuffled`` or ``lanes``.
        process_index: which part of the rows to make; only these are decoded.
        process_count: number of parts; divides the batch size.
        workers: processes that make batches; 0: a thread of this one. They are spawned, never
            forked: a fork of a process with JAX's threads may deadlock.
        prefetch: batches made ahead, at least 1.

    Raises:
        DataError: a size is out of range.
    """
    import grain

    rows = _rows(batch_size, process_index, process_count)
    _check(source, seed)
    # Index i is example i % N of epoch i // N: shuffled anew, with another generator.
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
        # grain's workers read its own absl flags, which a library's caller has not parsed.
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
    """Returns the batches of one pass in order, the last one filled up as in training.

    Args:
        source: the examples.
        transform: of one example; gets a generator that it should not need.
        batch_size: rows of the *global* batch.
        process_index: which part of the rows to make.
        process_count: number of parts; divides the batch size.
        prefetch: batches made ahead, at least 1.

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
    """Has a thread make ``prefetch`` batches ahead."""
    import grain

    # Two would wait for each other: what is written in Python holds the interpreter's lock. A batch
    # of configs/cnn.py took them 25 ms where one takes 15.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
    return batches.to_iter_dataset(options)


def _in_turn(number: int, batch_size: int, rows: range, examples: int) -> list[int | None]:
    """Indices of this process's rows of a batch; None for a row after the last example."""
    indices = (number * batch_size + row for row in rows)
    return [index if index < examples else None for index in indices]


def _batch(stream: Sequence[Any], first: int, indices: Sequence[int | None]) -> Batch:
    """Stacks the examples ``first + index``; a row without index is zeros that do not count."""
    made = [stream[first + index] for index in indices if index is not None]
    # A process whose rows are all padding still needs their shapes.
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
