"""Noisy straight lines; imports no jax."""

import dataclasses

import numpy as np

from zoo.data import DataError, Dataset, Vocabulary

SIZES = {"train": 64, "validation": 16, "test": 16}


@dataclasses.dataclass(frozen=True)
class Lines:
    """Examples ``{"x": Float32[points], "y": Float32[points]}``: slope 2, and noise."""

    split: str
    points: int
    noise: float

    def __len__(self) -> int:
        return SIZES[self.split]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        generator = np.random.default_rng((list(SIZES).index(self.split), int(index)))
        x = generator.uniform(-1, 1, self.points)
        y = 2 * x + self.noise * generator.normal(size=self.points)
        return {"x": x.astype(np.float32), "y": y.astype(np.float32)}


def load_lines(name: str, *, points: int = 8, noise: float = 0.1) -> Dataset:
    """Describes the lines."""
    if name != "lines":
        raise DataError(f"data.name={name!r} is unknown")
    return Dataset(
        name=name,
        sizes=SIZES,
        vocabularies={"units": Vocabulary(("metre",), "unit")},
        model_fields={"points": points},
        open_split=lambda split: Lines(split, points, noise),
        transform=lambda train: lambda example, generator: example,
    )
