"""Batches: a function of seed and number, whoever makes them."""

import multiprocessing
import pickle
import threading

import numpy as np
import pytest

from zoo import data
from zoo.data.sources import ArraySource


class Numbered:
    """Example i is the number i."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return self.examples

    def __getitem__(self, index):
        return {"image": np.full((2, 2, 1), index, np.uint8), "label": index}


def noisy(example, generator):
    """Shows which example it is, and a number drawn for it."""
    return {"label": np.int32(example["label"]), "noise": np.float32(generator.random())}


def batches(examples=10, start=0, stop=9, **options):
    options = {"batch_size": 4, "seed": 5} | options
    iterator = data.train_batches(Numbered(examples), noisy, start=start, stop=stop, **options)
    made = list(iterator)
    iterator.close()
    return made


def assert_equal(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name])


def test_a_batch_does_not_depend_on_where_the_stream_began():
    whole = batches()
    for start in (1, 3, 7):
        assert_equal(batches(start=start), whole[start:])


def test_processes_make_the_rows_of_the_same_global_batch():
    parts = [batches(process_index=index, process_count=2) for index in (0, 1)]
    for one, *halves in zip(batches(), *parts, strict=True):
        for name in one:
            joined = np.concatenate([half[name] for half in halves])
            np.testing.assert_array_equal(joined, one[name])


def test_every_epoch_has_every_example_once_in_its_own_order_and_with_its_own_numbers():
    made = batches()
    epochs = [made[0:3], made[3:6], made[6:9]]
    orders, noises = [], []
    for epoch in epochs:
        assert [batch["mask"].sum() for batch in epoch] == [4, 4, 2]
        real = [batch["mask"] > 0 for batch in epoch]
        labels = np.concatenate([b["label"][r] for b, r in zip(epoch, real, strict=True)])
        orders.append(labels.tolist())
        noises.append(np.concatenate([b["noise"][r] for b, r in zip(epoch, real, strict=True)]))
        np.testing.assert_array_equal(epoch[-1]["noise"][2:], 0)
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert len(np.unique(np.concatenate(noises))) == 30


def test_another_seed_gives_another_stream():
    assert batches()[0]["label"].tolist() != batches(seed=6)[0]["label"].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_make_the_same_batches_and_end_when_closed(workers):
    before = {*threading.enumerate(), *multiprocessing.active_children()}
    # Far more than are made ahead, so that the closing comes in the middle of work.
    endless = data.train_batches(
        Numbered(10), noisy, batch_size=4, seed=5, stop=10**6, workers=workers
    )
    assert_equal([next(endless) for _ in range(4)], batches(stop=4))
    children = {*multiprocessing.active_children()} - before
    assert len(children) == workers
    assert all(type(child).__name__ == "SpawnProcess" for child in children)
    threads = {thread for thread in threading.enumerate() if thread.name.startswith("grain")}
    started = (threads - before) | children
    assert started
    endless.close()
    for thread_or_process in started:
        thread_or_process.join(30)
        assert not thread_or_process.is_alive()


def test_evaluation_goes_through_once_in_order():
    made = list(data.eval_batches(Numbered(10), noisy, batch_size=4))
    assert np.concatenate([b["label"] for b in made])[:10].tolist() == list(range(10))
    assert [b["mask"].tolist() for b in made] == [[1] * 4, [1] * 4, [1, 1, 0, 0]]


def test_a_process_whose_rows_are_all_padding_has_their_shapes():
    made = list(
        data.eval_batches(Numbered(9), noisy, batch_size=4, process_index=1, process_count=2)
    )
    assert made[-1]["mask"].tolist() == [0, 0]
    assert made[-1]["label"].shape == (2,)


def test_steps_per_epoch_counts_the_partial_batch():
    assert [data.steps_per_epoch(n, 4) for n in (1, 4, 5, 8)] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"process_count": 3}, "multiple of the 3"),
        ({"process_index": 1}, "process_index=1"),
        ({"seed": -1}, "seed=-1"),
        ({"examples": 0}, "no examples"),
    ],
)
def test_bad_sizes_are_named(options, words):
    with pytest.raises(data.DataError, match=words):
        batches(**options)


def test_sources_can_be_sent_to_workers():
    source = data.open_source("mnist_subset", "validation")
    again = pickle.loads(pickle.dumps(source))
    assert isinstance(again, ArraySource)
    np.testing.assert_array_equal(again[7]["image"], source[7]["image"])
