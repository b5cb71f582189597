"""The training steps of the recurrent configs on their own data, with Adam and without dropout."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax

from benchmarks.families.sides import (
    BATCHES,
    Call,
    our_step,
    read_batches,
    read_params,
    torch_step,
    write,
)
from configs import classify_text, forecast, speech, word_lm
from zoo import building
from zoo import config as configs
from zoo.layers.audio import mel_filters
from zoo.pretrained.published import tables_of

CONFIGS = {
    "classify_text": classify_text.get_config,
    "forecast": forecast.get_config,
    "speech": speech.get_config,
    "word_lm": word_lm.get_config,
}


@dataclasses.dataclass(frozen=True)
class SequenceStep:
    """The first batches of a config, as ``train.py`` makes them.

    Attributes:
        config: its name.
        title: what is done, for the table.
    """

    config: str
    title: str

    group: ClassVar[str] = "sequences"
    goals: ClassVar[dict[str, float]] = {"torch": 1.0}
    checked: ClassVar[tuple[str, ...]] = ("float64", "float32")
    gflop: ClassVar[None] = None

    def prepare(self, folder: Path) -> None:
        """Writes batches and weights."""
        parts = self._parts()
        with building.train_batches(parts) as batches:
            chosen = [next(batches) for _ in range(BATCHES)]
        params = jax.jit(lambda: building.init_state(parts))().params
        write(folder, chosen, params, self._table(parts))

    def ours(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """The zoo."""
        parts = self._parts()
        like = jax.eval_shape(lambda: building.init_state(parts)).params
        params = read_params(folder, self._table(parts), like, dtype)
        return our_step(parts.task.loss, params, read_batches(folder, dtype))

    def torch(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """PyTorch's own layers and losses."""
        fields = self._parts().config.model
        make: dict[str, Callable[[Any], tuple[Any, Any]]] = {
            "classify_text": _torch_classifier,
            "forecast": _torch_forecaster,
            "speech": _torch_recognizer,
            "word_lm": _torch_language_model,
        }
        model, loss_fn = make[self.config](fields)
        return torch_step(model, loss_fn, folder, dtype)

    def _parts(self) -> building.Parts:
        config = CONFIGS[self.config]()
        config.model.dropout_rate = 0.0
        return building.build(*building.with_data(configs.check(config)))

    def _table(self, parts: building.Parts) -> Any:
        (table,) = tables_of(parts.config.model.name, parts.task.model).values()
        return table


def _torch_classifier(fields: Any) -> tuple[Any, Any]:
    import torch.nn.functional as F

    from benchmarks.torch_peers import sequences

    model = sequences.TextClassifier(
        fields.num_classes, fields.vocab_size, fields.embed_features, fields.features,
        fields.num_layers,
    )  # fmt: skip
    return model, lambda model, batch: F.cross_entropy(
        model(batch["tokens"], batch["length"]), batch["label"]
    )


def _torch_forecaster(fields: Any) -> tuple[Any, Any]:
    import torch

    from benchmarks.torch_peers import sequences

    model = sequences.Forecaster(
        fields.horizon, fields.period, fields.cell, fields.features, fields.num_layers
    )
    shares = torch.tensor(fields.quantiles, dtype=torch.float64)

    def loss_fn(model: Any, batch: Any) -> Any:
        error = batch["target"][..., None] - model(batch["series"], batch["phase"])
        given = shares.to(error.dtype)
        return torch.maximum(given * error, (given - 1) * error).mean()

    return model, loss_fn


def _torch_recognizer(fields: Any) -> tuple[Any, Any]:
    import torch.nn.functional as F

    from benchmarks.torch_peers import sequences

    filters = mel_filters(fields.num_mels, fields.window, fields.sample_rate)
    model = sequences.SpeechRecognizer(
        filters, fields.num_symbols, fields.features, fields.num_layers, hop=fields.hop,
        stack=fields.stack,
    )  # fmt: skip

    def loss_fn(model: Any, batch: Any) -> Any:
        logits, frames = model(batch["samples"], batch["length"])
        lengths = (batch["target"] > 0).sum(dim=1)
        losses = F.ctc_loss(
            logits.transpose(0, 1).log_softmax(-1), batch["target"], frames, lengths,
            reduction="none",
        )  # fmt: skip
        return losses.mean()

    return model, loss_fn


def _torch_language_model(fields: Any) -> tuple[Any, Any]:
    import torch.nn.functional as F

    from benchmarks.torch_peers import sequences

    model = sequences.LanguageModel(
        fields.cell, fields.vocab_size, fields.embed_features, fields.features, fields.num_layers
    )

    def loss_fn(model: Any, batch: Any) -> Any:
        logits, mask = model(batch["tokens"]), batch["token_mask"].flatten()
        losses = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="none")
        return (losses * mask).sum() / mask.sum()

    return model, loss_fn
