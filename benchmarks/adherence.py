"""Judges whether what a diffusion run draws is what its captions say.

    python -m benchmarks.adherence --workdir runs/diffusion

For each scene of the splits ``test`` (pairs of colour and digit seen in training) and ``held_out``
(pairs never seen) an image is drawn from the scene's caption. The digit is read by the zoo's own
CNN, colour and place by pixels. The ceiling is what the same judges find on the real scenes. The
first command trains the judge, the second packs its weights into ``benchmarks/judge.npz``:

    python train.py --config configs/cnn.py:scenes --config.data.data_dir=DIR --workdir=runs/judge
    python -m benchmarks.adherence --pack runs/judge
"""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float32, Int, Int32, UInt8

import zoo
from benchmarks import machine
from zoo import inference
from zoo.data.scenes import (
    COLORS,
    PLACES,
    SIDE,
    Scenes,
    read_color,
    read_place,
    to_network,
    to_pixels,
)
from zoo.errors import UserError
from zoo.families.cnn import cnn_table
from zoo.models import CNN
from zoo.weights.tables import from_reference, to_reference

JUDGE = machine.ROOT / "benchmarks" / "judge.npz"
SPLITS = ("test", "held_out")
BATCH = 128


def pack(workdir: str, path: Path) -> None:
    """Writes the weights of a run of ``configs/cnn.py:scenes`` by PyTorch's names."""
    params = inference.load(workdir).variables["params"]
    arrays: dict[str, Any] = to_reference(params, cnn_table(SIDE))
    np.savez_compressed(path, **arrays)


def load_judge(path: Path = JUDGE) -> tuple[CNN, dict[str, Any]]:
    """Returns the network that reads digits, and its variables; the widths are the weights' own."""
    with np.load(path) as arrays:
        weights = dict(arrays)
    widths = [len(weights[f"conv{layer}.bias"]) for layer in (1, 2, 3)]
    module = CNN(
        num_classes=len(weights["fc2.bias"]),
        features=(widths[0], widths[1], widths[2]),
        hidden_features=len(weights["fc1.bias"]),
    )
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), np.float32)
    like = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    return module, {"params": from_reference(weights, cnn_table(SIDE), like)}


@functools.cache
def digit_reader() -> Callable[[Float32[np.ndarray, "n height width 3"]], Int[Array, " n"]]:
    """Returns the judge, compiled once: the digits that it sees in images between -1 and 1."""
    module, variables = load_judge()

    @jax.jit
    def read(images: Float32[Array, "n height width 3"]) -> Int[Array, " n"]:
        logits: Any = module.apply(variables, images)
        return logits.argmax(axis=-1)

    return read


def judge(
    images: UInt8[np.ndarray, "images height width 3"], scenes: dict[str, Int32[np.ndarray, " n"]]
) -> dict[str, float]:
    """Returns the shares of images with the right digit, colour and place, and with all three.

    Args:
        images: what was drawn, or real scenes.
        scenes: the numbers of ``digit``, ``color`` and ``place`` that each should show.
    """
    # Both kinds of images come as pixels, so that rounding to them favours neither.
    right = {
        "digit": np.asarray(digit_reader()(to_network(images))) == scenes["digit"],
        "color": np.array([read_color(i) for i in images]) == np.array([*COLORS])[scenes["color"]],
        "place": np.array([read_place(i) for i in images]) == np.array([*PLACES])[scenes["place"]],
    }
    right["all"] = np.logical_and.reduce(list(right.values()))
    return {name: float(found.mean()) for name, found in right.items()}


def measure(
    workdir: str | Path,
    *,
    scenes: int = 256,
    steps: int = 25,
    guidance: float = 3.0,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Draws and judges; returns the shares by split, and ``adherence``: all right, of the ceiling.

    Args:
        workdir: a run of ``configs/diffusion.py``.
        scenes: how many of each split.
        steps: number of sampling steps.
        guidance: see ``zoo.diffusion.guided``.
        seed: of the samples.

    Raises:
        UserError: the run is of another task.
    """
    loaded = zoo.load(workdir)
    if loaded.config.task.name != "diffusion":
        raise UserError(f"{workdir} is no run of configs/diffusion.py")
    task: Any = loaded.task
    draw = jax.jit(
        lambda params, tokens, key: task.sample(
            params, tokens, key, shape=(SIDE, SIDE, 3), guidance=guidance, steps=steps
        )
    )
    found = {}
    for split in SPLITS:
        source = Scenes(split)
        rows = [source[index] for index in range(min(scenes, len(source)))]
        wanted = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        drawn = [
            draw(
                loaded.variables["params"],
                wanted["tokens"][start : start + BATCH],
                jax.random.fold_in(jax.random.key(seed), start),
            )
            for start in range(0, len(rows), BATCH)
        ]
        shares = judge(to_pixels(np.concatenate(drawn)), wanted)
        ceiling = judge(to_pixels(wanted["image"]), wanted)
        found[split] = {
            **shares,
            **{f"{name} of real scenes": share for name, share in ceiling.items()},
            "adherence": shares["all"] / ceiling["all"],
        }
    return found


def main() -> None:
    """Judges a run, or packs the judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adherence", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workdir", help="a run of configs/diffusion.py")
    parser.add_argument("--scenes", type=int, default=256, help="of each split")
    parser.add_argument("--steps", type=int, default=25, help="number of sampling steps")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--pack", metavar="WORKDIR", help="write the judge's weights; no more")
    options = parser.parse_args()
    if options.pack:
        pack(options.pack, JUDGE)
        print(f"{JUDGE.stat().st_size / 2**20:.2f} MB in {JUDGE}")
    elif options.workdir:
        found = measure(
            options.workdir,
            scenes=options.scenes,
            steps=options.steps,
            guidance=options.guidance,
            seed=options.seed,
        )
        print(json.dumps(found))
    else:
        parser.error("give --workdir or --pack")


if __name__ == "__main__":
    main()
