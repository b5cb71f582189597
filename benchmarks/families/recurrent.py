"""The training step of a recurrent language model of characters, with Adam and without dropout."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.families.sides import (
    BATCHES,
    Call,
    Work,
    our_step,
    read_batches,
    read_variables,
    torch_step,
    write,
)
from zoo.families.rnn import rnn_table
from zoo.losses import cross_entropy
from zoo.models import RNN

VOCAB = 65


def token_batches(
    rows: int, time: int, vocab: int, batches: int = BATCHES
) -> list[dict[str, np.ndarray]]:
    """Returns batches of tokens drawn evenly, and the token after each."""
    text = np.random.default_rng(0).integers(0, vocab, (batches, rows, time + 1), dtype=np.int32)
    return [{"tokens": part[:, :-1], "targets": part[:, 1:]} for part in text]


def token_loss(logits_of: Any) -> Any:
    """Returns a loss function for the train step from ``(params, tokens) -> logits``."""

    def loss_fn(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
        losses = cross_entropy(logits_of(params, batch["tokens"]), batch["targets"])
        return losses.sum(), (jnp.asarray(losses.size, losses.dtype), model_state, {})

    return loss_fn


def torch_token_loss(logits: Any, batch: Any) -> Any:
    """Returns PyTorch's mean cross-entropy of ``logits``."""
    import torch.nn.functional as F

    return F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())


@dataclasses.dataclass(frozen=True)
class RecurrentStep(Work):
    """32 rows of characters.

    Attributes:
        cell: ``rnn``, ``lstm`` or ``gru``.
        width: of the layers and the characters' vectors.
        layers: their number.
        time: characters of a row.
        batches: how many are prepared.
    """

    cell: str
    width: int
    layers: int = 2
    time: int = 128
    batches: int = BATCHES

    rows: ClassVar[int] = 32
    goals: ClassVar[dict[str, float]] = {"torch": 0.85, "linen": 0.75}
    checked: ClassVar[tuple[str, ...]] = ("float64", "float32")
    optimizer: ClassVar[str] = "fused Adam"

    @property
    def group(self) -> str:
        """What ``--only`` names."""
        return "recurrent"

    @property
    def title(self) -> str:
        """What is done."""
        cell = {"rnn": "plain RNN"}.get(self.cell, self.cell.upper())
        sizes = f"{self.layers} layers, T {self.time}, batch {self.rows}, width {self.width}"
        return f"{cell}, {sizes}, training step"

    @property
    def gflop(self) -> float:
        """Arithmetic of a step in 10^9 operations: three products for each of the weights."""
        gates = {"rnn": 1, "lstm": 4, "gru": 3}[self.cell]
        weights = self.layers * 2 * self.width * gates * self.width + self.width * VOCAB
        return 2 * 3 * self.rows * self.time * weights / 1e9

    def prepare(self, folder: Path) -> None:
        """Writes batches and weights."""
        batches = token_batches(self.rows, self.time, VOCAB, self.batches)
        variables = jax.jit(self._model.init)(jax.random.key(0), batches[0]["tokens"])
        write(folder, batches, variables, rnn_table(self.layers))

    def ours(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """The zoo."""
        batches = read_batches(folder, dtype)
        like = jax.eval_shape(self._model.init, jax.random.key(0), batches[0]["tokens"])
        variables = read_variables(folder, rnn_table(self.layers), like, dtype)
        loss_fn = token_loss(
            lambda params, tokens: self._model.apply({"params": params}, tokens)[0]
        )
        return our_step(loss_fn, variables, batches)

    def torch(self, folder: Path, dtype: str, *, timed: bool, setting: str) -> Call:
        """PyTorch's own layers."""
        from benchmarks.torch_peers.sequences import LanguageModel

        return torch_step(
            LanguageModel(self.cell, VOCAB, self.width, self.width, self.layers),
            lambda model, batch: torch_token_loss(model(batch["tokens"]), batch),
            folder,
            dtype,
            setting,
        )

    def linen(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """Linen's own cells with their own first weights."""
        from flax import linen as nn

        cells: dict[str, Any] = {
            "rnn": nn.SimpleCell,
            "lstm": nn.OptimizedLSTMCell,
            "gru": nn.GRUCell,
        }
        width, layers, cell = self.width, self.layers, cells[self.cell]

        class Stock(nn.Module):
            @nn.compact
            def __call__(self, tokens: Any) -> Any:
                x = nn.Embed(VOCAB, width)(tokens)
                for _ in range(layers):
                    x = nn.RNN(cell(width))(x)
                return nn.Dense(VOCAB)(x)

        batches = read_batches(folder, dtype)
        variables = Stock().init(jax.random.key(0), batches[0]["tokens"])
        loss_fn = token_loss(lambda params, tokens: Stock().apply({"params": params}, tokens))
        return our_step(loss_fn, dict(variables), batches, stock=True)

    @property
    def _model(self) -> RNN:
        return RNN(
            vocab_size=VOCAB,
            cell=self.cell,
            embed_features=self.width,
            features=self.width,
            num_layers=self.layers,
        )
