"""The classes of images in files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from zoo.data.image_files import read_image
from zoo.data.images import image_transform
from zoo.errors import UserError
from zoo.layers import fuse
from zoo.tasks.loaded import Loaded
from zoo.tasks.wing import (
    Answer,
    Likeliest,
    Say,
    Verb,
    add_inputs,
    likeliest,
    read_each,
    show_likeliest,
)
from zoo.training.layout import jit


def encode(
    loaded: Loaded, given: str | Path | UInt8[np.ndarray, "height width channels"]
) -> dict[str, np.ndarray]:
    """Prepares an image or an image file as the run's evaluation does.

    Raises:
        UserError: the file cannot be read, or the run's images do not come from files.
    """
    options = loaded.config.data.to_dict()
    if options.pop("name") == "digit_scenes":
        raise UserError("images cannot be prepared for data.name='digit_scenes': it draws its own")
    image = read_image(given) if isinstance(given, str | Path) else given
    transform = image_transform(options.pop("transform"), train=False, **options)
    return {"image": transform({"image": image, "label": 0}, np.random.default_rng(0))["image"]}


def predict(
    loaded: Loaded,
    images: Sequence[str | Path | UInt8[np.ndarray, "height width channels"]],
    *,
    most: int = 5,
) -> list[Likeliest]:
    """Returns the likeliest classes of images, each with its probability.

    Args:
        loaded: a run of an image classifier, such as ``configs/cnn.py``.
        images: files of images, or images.
        most: the number of classes to return for each image.

    Raises:
        UserError: the run is of another task, or files cannot be read; the message names them all.
    """
    loaded.need("classification", "predict")
    examples = read_each(images, lambda image: encode(loaded, image)["image"])

    def make() -> Callable:
        def probability(variables: Any, image: Any) -> Any:
            params, state = variables["params"], {**variables}
            del state["params"]
            batch, key = {"image": image}, jax.random.key(0)
            return loaded.task.predict(params, state, batch, key)["probability"]

        return jit(fuse(probability))

    compiled = loaded.compiled("predict", make)
    # Images are predicted one by one, so that any number of files needs only one compilation.
    probabilities = [np.asarray(compiled(loaded.variables, image[None]))[0] for image in examples]
    return likeliest(loaded.labels, probabilities, most)


def _answer(loaded: Loaded, options: argparse.Namespace, say: Say) -> Iterator[Answer]:
    return show_likeliest(options.inputs, predict(loaded, options.inputs))


VERBS = {"predict": Verb("the classes of images", add_inputs("image files"), _answer)}
