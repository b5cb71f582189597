"""The configs as they are trained: their whole loop with its data, and their data alone.

Every config has a loop here but ``configs/diffusion.py``: each side draws steps and noise of its
own, and its network has no counterpart in PyTorch's libraries; see ``unet.py`` for a UNet.
"""

import dataclasses
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks.families.sides import (
    BATCHES,
    EAGER,
    SETTINGS,
    WARM_UP,
    Call,
    Work,
    cast,
    compiled,
    read_batches,
    read_variables,
    torch_batch,
    torch_batches,
    torch_model,
    write,
)
from benchmarks.torch_peers import make_torchvision_importable
from zoo import building
from zoo import config as configs
from zoo.layers.audio import mel_filters
from zoo.pretrained import tables_of
from zoo.tasks.language_modelling.task import ROW_STATES
from zoo.training.layout import Layout, compile_step, make_mesh
from zoo.training.state import TrainState, create_state
from zoo.training.step import ema_decay
from zoo.weights.tables import Table

# Of a turn: 200 in the five turns of a comparison.
STEPS = 40


@dataclasses.dataclass(frozen=True)
class Loop(Work):
    """A config in turns of 40 steps: its batches made meanwhile, its optimizer, its dropout.

    PyTorch's side has the batches of our pipeline, which is generous: a ``DataLoader`` that does
    the same is slower, or has processes of its own that take the cores from the step. The losses
    are compared without dropout.

    Attributes:
        config: its name, with a variant ``lstm:gru``.
    """

    config: str

    group: ClassVar[str] = "configs"
    goals: ClassVar[dict[str, float]] = {"torch": 1.0}
    checked: ClassVar[tuple[str, ...]] = ("float64", "float32")
    waits: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """What is done."""
        return f"{command(self.config)}, training loop with its data"

    @property
    def settings(self) -> tuple[str, ...]:
        """What PyTorch tries."""
        by_family = {
            "cnn": tuple(SETTINGS),
            "resnet": tuple(SETTINGS),
            "vit": tuple(SETTINGS),
            "gpt": ("eager", "compile"),
            "transformer": ("eager", "compile"),
            "translate": ("eager", "compile"),
        }
        return by_family.get(self.config, EAGER)

    @property
    def optimizer(self) -> str:
        """PyTorch's, for the table."""
        return f"fused {_named(self.config).optimizer.name}"

    @property
    def calls(self) -> int:
        """Steps of a turn: full batches only, which PyTorch's packed sequences need."""
        _, parts = _parts(self.config, dropout=True)
        full = parts.lengths.examples // parts.settings.batch_size
        return min(STEPS, full - WARM_UP)

    def prepare(self, folder: Path) -> None:
        """Writes batches and weights."""
        config, parts = _parts(self.config, dropout=False)
        batches = made_batches(parts)
        chosen = [next(batches) for _ in range(BATCHES)]
        state = jax.jit(lambda: building.init_state(parts))()
        write(folder, chosen, _variables(state), _table(config, parts))

    def ours(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """The zoo, as its runner trains."""
        config, parts = _parts(self.config, dropout=timed)
        state = _read_state(config, parts, folder, dtype)
        if not timed:
            return compiled(parts.train_step, state, read_batches(folder, dtype))
        batches, layout = made_batches(parts), Layout(make_mesh(1))
        held: list[Any] = [layout.put(state), None]
        shapes = building.train_shapes(parts)
        step, _ = compile_step(parts.train_step, held[0], shapes, layout, returns_state=True)

        def update(index: int) -> float:
            held[0], sums = step(held[0], layout.put_batch(next(batches)))
            # One step computes while the next batch is made, as in ``zoo.training.loop.train``.
            jax.block_until_ready(held[1])
            held[1] = sums
            return 0.0  # to fetch the loss would be to wait for the step

        return update

    def torch(self, folder: Path, dtype: str, *, timed: bool, setting: str) -> Call:
        """PyTorch's own layers, losses and optimizers."""
        config, parts = _parts(self.config, dropout=timed)
        model, loss_fn = TORCH[_family(self.config)](config)
        model = torch_model(model, folder, dtype, setting).train()
        update = torch_update(config, parts, model, loss_fn)
        if timed:
            batches = made_batches(parts)
            return lambda index: update(index, torch_batch(next(batches), setting))
        prepared = torch_batches(folder, dtype, setting)
        return lambda index: update(index, prepared[index])


@dataclasses.dataclass(frozen=True)
class Data(Work):
    """How long a batch takes that only the pipeline works for, beside the step that needs it.

    Attributes:
        config: its name.
    """

    config: str

    group: ClassVar[str] = "data"
    goals: ClassVar[dict[str, float]] = {"step": 0.2}
    checked: ClassVar[tuple[str, ...]] = ()
    waits: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """What is done."""
        return f"data pipeline, {command(self.config)}"

    def prepare(self, folder: Path) -> None:
        """Writes nothing: each side makes its own batches."""

    def ours(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """The pipeline alone."""
        _, parts = _parts(self.config, dropout=True)
        # A pipeline may be done with a whole run within a turn.
        endless = dataclasses.replace(parts.lengths, steps=sys.maxsize)
        batches = made_batches(dataclasses.replace(parts, lengths=endless))

        def wait(index: int) -> float:
            next(batches)
            return 0.0

        return wait

    def step(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """Our step on batches that are there."""
        _, parts = _parts(self.config, dropout=True)
        batches = made_batches(parts)
        state = jax.jit(lambda: building.init_state(parts))()
        return compiled(parts.train_step, state, [next(batches) for _ in range(4)])


def command(config: str) -> str:
    """What ``--config`` takes."""
    name, colon, variant = config.partition(":")
    return f"configs/{name}.py{colon}{variant}"


def made_batches(parts: building.Parts) -> Iterator[dict[str, np.ndarray]]:
    """The batches of training, made ahead as ``train.py`` does."""
    with building.train_batches(parts) as batches:
        yield from batches


def torch_update(
    config: ConfigDict,
    parts: building.Parts,
    model: Any,
    loss_fn: Callable[[Any, dict[str, Any]], Any],
) -> Callable[[int, dict[str, Any]], float]:
    """Returns PyTorch's update of a config: loss by the number of the step and the batch.

    Clipping, decay, schedule and average are the config's.
    """
    import torch
    from torch.nn.utils import clip_grads_with_norm_, get_total_norm

    given, learning_rate = config.optimizer, parts.learning_rate
    assert learning_rate is not None
    parameters = list(model.parameters())
    optimizer = _torch_optimizer(config, parts, model)
    # As numbers, made before: PyTorch's own schedulers would compute no more than these.
    # Of the state's own type, on which the exactness of a rate depends.
    steps = jnp.arange(parts.lengths.steps, dtype=jnp.int32)
    rates = jax.jit(jax.vmap(learning_rate))(steps).tolist()
    decay = parts.settings.ema_decay
    decays = jax.jit(jax.vmap(lambda step: ema_decay(step, decay)))(steps).tolist()
    average = [parameter.detach().clone() for parameter in parameters] if decay else []

    def update(index: int, batch: dict[str, Any]) -> float:
        loss = loss_fn(model, batch)
        optimizer.zero_grad()
        loss.backward()
        if given.clip_norm:
            norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
            # PyTorch adds 1e-6 to the norm, ours does not.
            clip_grads_with_norm_(parameters, given.clip_norm, norm - 1e-6)
        for group in optimizer.param_groups:
            group["lr"] = rates[index]
        optimizer.step()
        if average:
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, 1 - decays[index])
        return float(loss.item())

    return update


def _torch_optimizer(config: ConfigDict, parts: building.Parts, model: Any) -> Any:
    """The config's optimizer, in one fused kernel."""
    import torch

    given = config.optimizer
    ours = {entry.reference: entry.ours for entry in _table(config, parts)}
    decayed: list[Any] = []
    free: list[Any] = []
    for name, parameter in model.named_parameters():
        # torch.compile puts a name of its own in front.
        path = ours[name.removeprefix("_orig_mod.")]
        excluded = given.decay_exclude and re.search(given.decay_exclude, path)
        (free if excluded else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": given.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if given.name == "sgd":
        return torch.optim.SGD(groups, lr=1.0, momentum=given.momentum, fused=True)
    make: Any = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[given.name]
    return make(groups, lr=1.0, betas=(given.b1, given.b2), eps=given.eps, fused=True)


def _family(config: str) -> str:
    return config.partition(":")[0]


def _named(config: str) -> Any:
    name, _, variant = config.partition(":")
    return importlib.import_module(f"configs.{name}").get_config(variant)


def _parts(config: str, *, dropout: bool) -> tuple[ConfigDict, building.Parts]:
    """The config with what its data say, and the parts that it names."""
    made = _named(config)
    if not dropout and "dropout_rate" in made.model:
        made.model.dropout_rate = 0.0
    filled, dataset = building.with_data(configs.check(made))
    return filled, building.build(filled, dataset)


def _table(config: ConfigDict, parts: building.Parts) -> Table:
    params = jax.eval_shape(lambda: building.init_state(parts)).params
    tables = tables_of(building.family_of(config), parts.task.model, params)
    # A published layout has zeros for what the model lacks; the peer here lacks it too.
    return [entry for entry in next(iter(tables.values())) if entry.role != "zeros"]


def _variables(state: TrainState) -> dict[str, Any]:
    """The model's own: what a task keeps beside them is not among the weights."""
    collections = {name: v for name, v in state.model_state.items() if name != ROW_STATES}
    return {"params": state.params, **collections}


def _read_state(config: ConfigDict, parts: building.Parts, folder: Path, dtype: str) -> TrainState:
    like = jax.eval_shape(lambda: building.init_state(parts))
    variables = read_variables(folder, _table(config, parts), _variables(like), dtype)
    if ROW_STATES in like.model_state:
        state = jax.jit(lambda: building.init_state(parts))()
        row_states = state.model_state[ROW_STATES]
        variables[ROW_STATES] = jax.tree.map(lambda x: cast(x, dtype), row_states)
    ema = parts.settings.ema_decay > 0
    return create_state(variables, parts.optimizer, jax.random.key(0), ema=ema)


def _torch_cnn(config: Any) -> tuple[Any, Any]:
    from benchmarks.torch_peers.cnn_seed import SeedNet

    return SeedNet(config.model.num_classes, config.model.dropout_rate), _class_loss


def _torch_resnet(config: Any) -> tuple[Any, Any]:
    from benchmarks.families.resnet import small_resnet18

    return small_resnet18(), _class_loss


def _torch_vit(config: Any) -> tuple[Any, Any]:
    make_torchvision_importable()
    from torchvision.models import VisionTransformer

    fields = config.model
    model = VisionTransformer(
        fields.image_size, fields.patch_size, fields.num_layers, fields.num_heads, fields.features,
        fields.feedforward_features, dropout=fields.dropout_rate, num_classes=fields.num_classes,
    )  # fmt: skip
    return model, _class_loss


def _class_loss(model: Any, batch: Any) -> Any:
    import torch.nn.functional as F

    return F.cross_entropy(model(batch["image"]), batch["label"])


def _torch_classifier(config: Any) -> tuple[Any, Any]:
    import torch.nn.functional as F

    from benchmarks.torch_peers import sequences

    fields = config.model
    model = sequences.TextClassifier(
        fields.num_classes, fields.vocab_size, fields.embed_features, fields.features,
        fields.num_layers, fields.dropout_rate,
    )  # fmt: skip
    return model, lambda model, batch: F.cross_entropy(
        model(batch["tokens"], batch["length"]), batch["label"]
    )


def _torch_forecaster(config: Any) -> tuple[Any, Any]:
    import torch

    from benchmarks.torch_peers import sequences

    fields = config.model
    model = sequences.Forecaster(
        fields.horizon, fields.period, fields.cell, fields.features, fields.num_layers,
        fields.dropout_rate,
    )  # fmt: skip
    shares = torch.tensor(fields.quantiles, dtype=torch.float64)

    def loss_fn(model: Any, batch: Any) -> Any:
        error = batch["target"][..., None] - model(batch["series"], batch["phase"])
        given = shares.to(error.dtype)
        return torch.maximum(given * error, (given - 1) * error).mean()

    return model, loss_fn


def _torch_recognizer(config: Any) -> tuple[Any, Any]:
    import torch.nn.functional as F

    from benchmarks.torch_peers import sequences

    fields = config.model
    filters = mel_filters(fields.num_mels, fields.window, fields.sample_rate)
    model = sequences.SpeechRecognizer(
        filters, fields.num_symbols, fields.features, fields.num_layers, fields.dropout_rate,
        hop=fields.hop, stack=fields.stack,
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


def _torch_language_model(config: Any) -> tuple[Any, Any]:
    from benchmarks.torch_peers import sequences

    fields = config.model
    model = sequences.LanguageModel(
        fields.cell, fields.vocab_size, fields.embed_features, fields.features, fields.num_layers,
        fields.dropout_rate,
    )  # fmt: skip
    carries = config.data.get("order") == "lanes"
    held: list[Any] = [None]

    def loss_fn(model: Any, batch: Any) -> Any:
        if carries and held[0] is not None:
            held[0] = sequences.carried(held[0], 1 - batch["start"])
        logits, state = model.read(batch["tokens"], held[0])
        held[0] = state if carries else None
        return _token_loss(logits, batch)

    return model, loss_fn


def _torch_gpt(config: Any) -> tuple[Any, Any]:
    from benchmarks.torch_peers import sequences

    fields = config.model
    model = sequences.GPT(
        fields.vocab_size, fields.context, fields.num_layers, fields.num_heads, fields.features
    )
    return model, lambda model, batch: _token_loss(model(batch["tokens"]), batch)


def _token_loss(logits: Any, batch: Any) -> Any:
    import torch.nn.functional as F

    mask = batch["token_mask"].flatten()
    losses = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="none")
    return (losses * mask).sum() / mask.sum()


def _torch_transformer(config: Any) -> tuple[Any, Any]:
    import torch.nn.functional as F

    from benchmarks.torch_peers import sequences

    fields = config.model
    model = sequences.Transformer(
        fields.source_vocab_size, fields.target_vocab_size, fields.features, fields.num_heads,
        fields.num_encoder_layers, fields.num_decoder_layers, fields.feedforward_features,
        fields.dropout_rate, tie_weights=fields.tie_weights,
    )  # fmt: skip

    def loss_fn(model: Any, batch: Any) -> Any:
        given, wanted = batch["target"][:, :-1], batch["target"][:, 1:]
        logits = model(batch["source"], given, batch["source"] != 0, given != 0)
        return F.cross_entropy(
            logits.flatten(0, 1), wanted.flatten(), ignore_index=0,
            label_smoothing=config.task.label_smoothing,
        )  # fmt: skip

    return model, loss_fn


# Model and mean loss in PyTorch, by the config's file.
TORCH: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "classify_text": _torch_classifier,
    "cnn": _torch_cnn,
    "forecast": _torch_forecaster,
    "gpt": _torch_gpt,
    "lstm": _torch_language_model,
    "resnet": _torch_resnet,
    "speech": _torch_recognizer,
    "transformer": _torch_transformer,
    "translate": _torch_transformer,
    "vit": _torch_vit,
    "word_lm": _torch_language_model,
}
