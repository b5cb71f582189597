"""A GPT, by default of 10 million parameters: its training step, and decoding with a cache."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.families.recurrent import token_batches, token_loss, torch_token_loss
from benchmarks.families.sides import (
    BATCHES,
    Call,
    Work,
    our_step,
    read_batches,
    read_variables,
    torch_batches,
    torch_model,
    torch_step,
    write,
)
from benchmarks.torch_peers import make_torchvision_importable
from zoo.decoding import greedy
from zoo.families.gpt import gpt_table
from zoo.models import GPT
from zoo.training import jit

VOCAB, HEAD_WIDTH = 65, 64
PROMPT, NEW_TOKENS = 16, 128


@dataclasses.dataclass(frozen=True)
class GPTStep(Work):
    """8 rows of tokens, heads of width 64, Adam, no dropout.

    Attributes:
        layers: number of blocks.
        width: of the residual stream.
        time: tokens of a row.
        batches: how many are prepared.
    """

    layers: int = 6
    width: int = 384
    time: int = 256
    batches: int = BATCHES

    rows: ClassVar[int] = 8
    group: ClassVar[str] = "gpt"
    goals: ClassVar[dict[str, float]] = {"linen": 0.75}
    checked: ClassVar[tuple[str, ...]] = ("float64", "float32")
    settings: ClassVar[tuple[str, ...]] = ("eager", "compile")
    optimizer: ClassVar[str] = "fused Adam"

    @property
    def title(self) -> str:
        """What is done."""
        sizes = f"{self.layers} layers, width {self.width}, T {self.time}, batch {self.rows}"
        return f"decoder, {sizes}, training step"

    @property
    def gflop(self) -> float:
        """Arithmetic of a step in 10^9 operations: three products for each forward one."""
        block = 12 * self.width**2 + 2 * self.time * self.width
        return 2 * 3 * self.rows * self.time * (self.layers * block + self.width * VOCAB) / 1e9

    def prepare(self, folder: Path) -> None:
        """Writes batches and weights."""
        batches = token_batches(self.rows, self.time, VOCAB, self.batches)
        write(folder, batches, _init(self._model), gpt_table(self.layers))

    def ours(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """The zoo."""
        model = self._model
        loss_fn = token_loss(lambda params, tokens: model.apply({"params": params}, tokens)[0])
        return our_step(loss_fn, _read(folder, model, dtype), read_batches(folder, dtype))

    def torch(self, folder: Path, dtype: str, *, timed: bool, setting: str) -> Call:
        """Hugging Face's model with PyTorch's own attention."""
        return torch_step(
            _theirs(self._model),
            lambda model, batch: torch_token_loss(model(batch["tokens"]).logits, batch),
            folder,
            dtype,
            setting,
        )

    def linen(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """Linen's own layers with their own first weights."""
        from flax import linen as nn

        layers, width, heads = self.layers, self.width, self.width // HEAD_WIDTH

        class Stock(nn.Module):
            @nn.compact
            def __call__(self, tokens: Any) -> Any:
                embed = nn.Embed(VOCAB, width)
                time = tokens.shape[1]
                x = embed(tokens) + nn.Embed(time, width)(jnp.arange(time))
                mask = nn.make_causal_mask(tokens)
                for _ in range(layers):
                    x += nn.MultiHeadDotProductAttention(heads)(nn.LayerNorm()(x), mask=mask)
                    y = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x)))
                    x += nn.Dense(width)(y)
                return embed.attend(nn.LayerNorm()(x))

        batches = read_batches(folder, dtype)
        variables = jax.jit(Stock().init)(jax.random.key(0), batches[0]["tokens"])
        loss_fn = token_loss(lambda params, tokens: Stock().apply({"params": params}, tokens))
        return our_step(loss_fn, variables, batches, stock=True)

    @property
    def _model(self) -> GPT:
        return _gpt(self.layers, self.width, self.time)


@dataclasses.dataclass(frozen=True)
class Decoding(Work):
    """Greedy decoding of 128 tokens after 16, with a cache; what must agree are the tokens.

    Attributes:
        rows: texts at once.
    """

    rows: int

    group: ClassVar[str] = "decoding"
    goals: ClassVar[dict[str, float]] = {}
    checked: ClassVar[tuple[str, ...]] = ("float64",)

    @property
    def title(self) -> str:
        """What is done."""
        return f"cached decoding, 10 M parameters, {NEW_TOKENS} tokens, batch {self.rows}"

    def prepare(self, folder: Path) -> None:
        """Writes prompts and weights."""
        batches = token_batches(self.rows, PROMPT, VOCAB)[:4]
        write(folder, batches, _init(DECODER), gpt_table(DECODER.num_layers))

    def ours(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """The zoo: one compiled function."""
        model, batches = DECODER, read_batches(folder, dtype)
        variables = _read(folder, model, dtype)

        @jit
        def decode(variables: Any, prompt: Any) -> Any:
            cache = model.initial_cache(self.rows, PROMPT + NEW_TOKENS, jnp.dtype(dtype))
            return greedy(
                lambda tokens, cache: model.apply(variables, tokens, cache),
                cache,
                prompt,
                max_new_tokens=NEW_TOKENS,
            )

        return lambda index: _fingerprint(
            np.asarray(decode(variables, batches[index % len(batches)]["tokens"]))
        )

    def torch(self, folder: Path, dtype: str, *, timed: bool, setting: str) -> Call:
        """Hugging Face's ``generate``."""
        import torch

        model = torch_model(_theirs(DECODER), folder, dtype, setting).eval()
        batches = torch_batches(folder, dtype, setting)

        def decode(index: int) -> float:
            prompt = batches[index % len(batches)]["tokens"]
            with torch.inference_mode():
                tokens = model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=NEW_TOKENS,
                    min_new_tokens=NEW_TOKENS,
                    do_sample=False,
                    pad_token_id=0,
                    use_cache=True,
                )
            return _fingerprint(tokens[:, PROMPT:].numpy())

        return decode


def _fingerprint(tokens: np.ndarray) -> float:
    """A number that hardly any other tokens have."""
    weights = np.random.default_rng(0).random(tokens.shape)
    return float((tokens * weights).sum())


def _gpt(layers: int, width: int, context: int) -> GPT:
    return GPT(
        vocab_size=VOCAB,
        context=context,
        num_layers=layers,
        num_heads=width // HEAD_WIDTH,
        features=width,
        dropout_rate=0.0,
    )


DECODER = _gpt(layers=6, width=384, context=256)


def _init(model: GPT) -> dict[str, Any]:
    return dict(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))


def _read(folder: Path, model: GPT, dtype: str) -> dict[str, Any]:
    like = jax.eval_shape(lambda: _init(model))
    return read_variables(folder, gpt_table(model.num_layers), like, dtype)


def _theirs(model: GPT) -> Any:
    make_torchvision_importable()
    from transformers import GPT2Config, GPT2LMHeadModel

    # The token that would end a text is outside the vocabulary: none ends.
    config = GPT2Config(
        vocab_size=model.vocab_size,
        n_positions=model.context,
        n_embd=model.features,
        n_layer=model.num_layers,
        n_head=model.num_heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    config._attn_implementation = "sdpa"
    return GPT2LMHeadModel(config)
