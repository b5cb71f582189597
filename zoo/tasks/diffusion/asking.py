"""Draws images for a caption."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from zoo.data.scenes import SIDE, encode_caption, to_pixels
from zoo.errors import UserError
from zoo.reports.plots import image_grid, write_picture
from zoo.tasks.loaded import Loaded
from zoo.tasks.wing import Answer, Say, Verb, add_numbers, png
from zoo.training.layout import jit


def encode(loaded: Loaded, given: str) -> dict[str, np.ndarray]:
    """Returns ``tokens``, the words of a caption.

    Raises:
        UserError: some of the words did not occur in training; the message names them.
    """
    return {"tokens": encode_caption(given, loaded.vocabularies["words"])}


def draw(
    loaded: Loaded,
    prompt: str,
    *,
    num: int = 16,
    steps: int = 50,
    guidance: float = 3.0,
    seed: int = 0,
) -> UInt8[np.ndarray, "num height width channels"]:
    """Draws images for a caption.

    Args:
        loaded: a run of ``configs/diffusion.py``.
        prompt: the caption.
        num: the number of images, at least 1.
        steps: the number of sampling steps, at most the noise schedule's.
        guidance: how strongly the images follow the caption; 1 adds no guidance.
        seed: the random seed; the same seed draws the same images.

    Raises:
        UserError: the run is of another task, a number is out of range, or some words did not
            occur in training; the message names them.
    """
    loaded.need("diffusion", "draw")
    task: Any = loaded.task
    if num < 1:
        raise UserError(f"num={num} must be at least 1")
    tokens = np.repeat(encode(loaded, prompt)["tokens"][None], num, axis=0)

    def make() -> Callable:
        return jit(
            lambda params, tokens, key, guidance: task.sample(
                params,
                tokens,
                key,
                shape=(SIDE, SIDE, loaded.config.model.channels),
                guidance=guidance,
                steps=steps,
            )
        )

    compiled = loaded.compiled(f"draw {num} {steps}", make)
    images = compiled(loaded.params, tokens, jax.random.key(seed), np.float32(guidance))
    return to_pixels(np.asarray(images))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", required=True, help="the caption")
    parser.add_argument("--out", type=png("--out"), required=True, help="the PNG file to write")
    add_numbers(
        parser,
        {
            "num": (16, "number of images"),
            "steps": (50, "number of sampling steps"),
            "guidance": (3.0, "how closely to follow the caption; 1 adds no guidance"),
            "seed": (0, "the same seed draws the same images"),
        },
    )


def _answer(loaded: Loaded, options: argparse.Namespace, say: Say) -> Iterator[Answer]:
    images = draw(
        loaded,
        options.prompt,
        num=options.num,
        steps=options.steps,
        guidance=options.guidance,
        seed=options.seed,
    )
    write_picture(options.out, image_grid(images))
    output = {"file": str(options.out), "images": len(images)}
    yield Answer(options.prompt, output, (f"{len(images)} images in {options.out}",))


VERBS = {"sample": Verb("draw images for a caption", _add_arguments, _answer)}
