"""All that is measured, by name."""

from pathlib import Path
from typing import Protocol

from benchmarks.families.cnn import CNNStep
from benchmarks.families.gpt import Decoding, GPTStep
from benchmarks.families.recurrent import RecurrentStep
from benchmarks.families.sequences import SequenceStep
from benchmarks.families.sides import Call
from benchmarks.families.unet import Sampling, UNetStep


class Work(Protocol):
    """A piece of work on our side, on PyTorch's and, where it has a method ``linen``, on linen's.

    Each side returns a call that does the work once with the prepared files in a folder. Its result
    is a number that both sides must agree on, such as the loss: not linen's, which begins with
    weights of its own.
    """

    @property
    def group(self) -> str:
        """What ``--only`` names."""

    @property
    def title(self) -> str:
        """What is done, for the table."""

    @property
    def goals(self) -> dict[str, float]:
        """Ratio to reach, by side."""

    @property
    def checked(self) -> tuple[str, ...]:
        """Types of numbers in which the sides must agree before anything is timed."""

    @property
    def gflop(self) -> float | None:
        """Arithmetic in 10^9 operations; None: not counted."""

    def prepare(self, folder: Path) -> None:
        """Writes what both sides start from."""

    def ours(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """Our side."""

    def torch(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """PyTorch's side."""


WORKS: dict[str, Work] = {
    "cnn": CNNStep(),
    **{
        f"{cell}-{width}": RecurrentStep(cell, width)
        for cell in ("lstm", "gru", "rnn")
        for width in (256, 512)
    },
    **{
        name: SequenceStep(name, f"{title}, configs/{name}.py, training step")
        for name, title in (
            ("word_lm", "LSTM over German words"),
            ("speech", "bidirectional LSTM with CTC"),
            ("forecast", "GRU over weeks"),
            ("classify_text", "bidirectional LSTM over messages"),
        )
    },
    "gpt": GPTStep(),
    "decoding-1": Decoding(1),
    "decoding-16": Decoding(16),
    "unet": UNetStep(),
    "sampling": Sampling(),
}
