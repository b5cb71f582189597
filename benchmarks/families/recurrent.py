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
    our_step,
    read_batches,
    read_params,
    torch_step,
    write,
)
from zoo.losses import cross_entropy
from zoo.models import RNN
from zoo.pretrained import rnn_table

VOCAB, LAYERS, ROWS, TIME = 65, 2, 32, 128


def token_batches(rows: int, time: int, vocab: int) -> list[dict[str, np.ndarray]]:
    """Returns batches of tokens drawn evenly, and the token after each."""
    text = np.random.default_rng(0).integers(0, vocab, (BATCHES, rows, time + 1), dtype=np.int32)
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
class RecurrentStep:
    """2 layers, 32 rows of 128 characters.

    Attributes:
        cell: ``rnn``, ``lstm`` or ``gru``.
        width: of the layers and the characters' vectors.
    """

    cell: str
    width: int

    goals: ClassVar[dict[str, float]] = {"torch": 0.85, "linen": 0.75}
    checked: ClassVar[tuple[str, ...]] = ("float64", "float32")

    @property
    def group(self) -> str:
        """What ``--only`` names."""
        return "recurrent"

    @property
    def title(self) -> str:
        """What is done."""
        cell = {"rnn": "plain RNN"}.get(self.cell, self.cell.upper())
        return f"{cell}, {LAYERS} layers, T {TIME}, batch {ROWS}, width {self.width}, training step"

    @property
    def gflop(self) -> float:
        """Arithmetic of a step in 10^9 operations: three products for each of the weights."""
        gates = {"rnn": 1, "lstm": 4, "gru": 3}[self.cell]
        weights = LAYERS * 2 * self.width * gates * self.width + self.width * VOCAB
        return 2 * 3 * ROWS * TIME * weights / 1e9

    def prepare(self, folder: Path) -> None:
        """Writes batches and weights."""
        batches = token_batches(ROWS, TIME, VOCAB)
        params = jax.jit(self._model.init)(jax.random.key(0), batches[0]["tokens"])["params"]
        write(folder, batches, params, rnn_table(LAYERS))

    def ours(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """The zoo."""
        batches = read_batches(folder, dtype)
        like = jax.eval_shape(self._model.init, jax.random.key(0), batches[0]["tokens"])["params"]
        params = read_params(folder, rnn_table(LAYERS), like, dtype)
        loss_fn = token_loss(
            lambda params, tokens: self._model.apply({"params": params}, tokens)[0]
        )
        return our_step(loss_fn, params, batches)

    def torch(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """PyTorch's own layers."""
        from benchmarks.torch_peers.sequences import LanguageModel

        return torch_step(
            LanguageModel(self.cell, VOCAB, self.width, self.width, LAYERS),
            lambda model, batch: torch_token_loss(model(batch["tokens"]), batch),
            folder,
            dtype,
        )

    def linen(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """Linen's own cells with their own first weights."""
        from flax import linen as nn

        cells: dict[str, Any] = {
            "rnn": nn.SimpleCell,
            "lstm": nn.OptimizedLSTMCell,
            "gru": nn.GRUCell,
        }
        width, cell = self.width, cells[self.cell]

        class Stock(nn.Module):
            @nn.compact
            def __call__(self, tokens: Any) -> Any:
                x = nn.Embed(VOCAB, width)(tokens)
                for _ in range(LAYERS):
                    x = nn.RNN(cell(width))(x)
                return nn.Dense(VOCAB)(x)

        batches = read_batches(folder, dtype)
        params = Stock().init(jax.random.key(0), batches[0]["tokens"])["params"]
        loss_fn = token_loss(lambda params, tokens: Stock().apply({"params": params}, tokens))
        return our_step(loss_fn, params, batches)

    @property
    def _model(self) -> RNN:
        return RNN(
            vocab_size=VOCAB,
            cell=self.cell,
            embed_features=self.width,
            features=self.width,
            num_layers=LAYERS,
        )
