"""Makes ``zoo/data/embedded/mnist_subset.npz`` from the full MNIST.

    python scripts/make_mnist_subset.py --data_dir=DIR --out=zoo/data/embedded/mnist_subset.npz

5,000 training and 1,000 validation images come from MNIST's train split and have none in common;
1,000 test images come from its test split. Each split has the classes in the shares of the split it
comes from. The same seed gives the same bytes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

SEED = 0


def stratified(
    labels: Int[np.ndarray, " examples"], sizes: Sequence[int], seed: int
) -> list[Int[np.ndarray, " chosen"]]:
    """Draws disjoint sets of indices, each with the classes in the shares of the whole.

    What is left of a class's share after rounding down goes to those that lost most.

    Args:
        labels: the class of every example.
        sizes: how many to draw for each set.
        seed: of the order in which a class's examples are taken.
    """
    generator = np.random.default_rng(seed)
    classes, totals = np.unique(labels, return_counts=True)
    order = {c: generator.permutation(np.flatnonzero(labels == c)) for c in classes}
    taken = dict.fromkeys(classes, 0)
    drawn = []
    for size in sizes:
        shares = size * totals / totals.sum()
        counts = np.floor(shares).astype(int)
        counts[np.argsort(counts - shares, kind="stable")[: size - counts.sum()]] += 1
        chosen = []
        for c, count in zip(classes, counts, strict=True):
            chosen.append(order[c][taken[c] : taken[c] + count])
            taken[c] += count
        drawn.append(np.sort(np.concatenate(chosen)))
    return drawn


def make_subset(data_dir: str) -> dict[str, Any]:
    """Returns images, labels and original indices of the three splits.

    Args:
        data_dir: a TFDS folder with MNIST.
    """
    train, test = (_read(data_dir, split) for split in ("train", "test"))
    for_training, for_validation = stratified(train[1], (5000, 1000), SEED)
    (for_test,) = stratified(test[1], (1000,), SEED)
    chosen = {
        "train": (train, for_training),
        "validation": (train, for_validation),
        "test": (test, for_test),
    }
    arrays: dict[str, Any] = {}
    for split, ((images, labels), index) in chosen.items():
        arrays[f"{split}_image"] = images[index]
        arrays[f"{split}_label"] = labels[index]
        arrays[f"{split}_index"] = index.astype(np.uint16)
    return arrays


def _read(
    data_dir: str, split: str
) -> tuple[UInt8[np.ndarray, "examples 28 28 1"], UInt8[np.ndarray, " examples"]]:
    import tensorflow_datasets as tfds

    source = tfds.data_source("mnist", split=split, data_dir=data_dir)
    examples = source.__getitems__(range(len(source)))  # one read: faster than one by one
    images = np.stack([example["image"] for example in examples])
    return images, np.array([example["label"] for example in examples], np.uint8)


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data_dir", required=True, help="a TFDS folder with MNIST")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    options = parser.parse_args()
    np.savez_compressed(options.out, **make_subset(options.data_dir))
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
