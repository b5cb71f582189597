"""Images with one class for each."""

import functools
from typing import Any

from zoo.data.datasets import Dataset
from zoo.data.scenes import load_scene_digits
from zoo.data.sources import DataError, describe, open_source
from zoo.data.transforms import Transform, make_transform, transform_options
from zoo.data.vocabulary import Vocabulary


def load_images(
    name: str,
    *,
    data_dir: str = "",
    path: str = "",
    validation_fraction: float = 0.0,
    skip_broken: int = 0,
    transform: str = "seed",
    **options: Any,
) -> Dataset:
    """Describes a set of images with the examples ``{"image", "label"}``.

    Args:
        name: see ``zoo.data.sources.describe``; or ``digit_scenes``, whose images need no
            transform: see ``zoo.data.scenes.load_scene_digits``.
        data_dir: the TFDS folder; empty for TFDS's own default.
        path: where your own data are, for ``image_folder`` and ``npz``; empty for other names.
        validation_fraction: share of the train split of a TFDS data set, or of a folder, that
            becomes ``validation``.
        skip_broken: number of broken images that an ``image_folder`` may have; they are left out.
        transform: see ``zoo.data.transforms.make_transform``.
        **options: the options of the transform.

    Raises:
        DataError: the data are absent, or a field has no meaning for them.
    """
    if name == "digit_scenes":
        if path or validation_fraction or skip_broken:
            raise DataError(
                f"data.path={path!r}, data.validation_fraction={validation_fraction}, "
                f"data.skip_broken={skip_broken} have no meaning for data.name='digit_scenes': "
                "leave them empty and 0"
            )
        return load_scene_digits(data_dir=data_dir)
    where: dict[str, Any] = {
        "data_dir": data_dir or None,
        "path": path or None,
        "validation_fraction": validation_fraction,
        "skip_broken": skip_broken,
    }
    info = describe(name, **where)
    return Dataset(
        name=name,
        sizes=info.sizes,
        vocabularies={"classes": Vocabulary(info.class_names, "class name")},
        model_fields={"num_classes": info.num_classes},
        open_split=functools.partial(open_source, name, **where),
        transform=lambda train: image_transform(transform, train=train, **options),
        notes=info.notes,
        without_validation=" (data.validation_fraction makes one)",
    )


def image_transform(name: str, *, train: bool, **options: Any) -> Transform:
    """Returns a transform, made with those of the options that it has.

    The other options are at their defaults, which the check of the config has made sure of.
    """
    own = {option: options[option] for option in transform_options(name) if option in options}
    return make_transform(name, train=train, **own)
