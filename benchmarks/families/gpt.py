"""A GPT, by default of 10 million parameters: its training step, and decoding with a cache."""

import dataclasses
from collections.abc import Sequence
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
# What a prompt has where reading it is timed by itself.
LONG_PROMPT = 512


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
        variables = _read(folder, DECODER, dtype)
        return _greedy(DECODER, variables, read_batches(folder, dtype), dtype, NEW_TOKENS)

    def torch(self, folder: Path, dtype: str, *, timed: bool, setting: str) -> Call:
        """Hugging Face's ``generate``."""
        model = torch_model(_theirs(DECODER), folder, dtype, setting).eval()
        return _torch_greedy(model, torch_batches(folder, dtype, setting), NEW_TOKENS)


@dataclasses.dataclass(frozen=True)
class Generation(Work):
    """Cached greedy decoding; reading the prompt and giving new tokens are timed apart.

    A call reads a long prompt and gives one token, or it reads one token and gives many. ``tokens``
    divided by its time are the tokens a second.

    Attributes:
        size: ``10m`` or ``124m``, the parameters of the model.
        rows: texts at once.
        reads: whether it is the prompt that is timed.
    """

    size: str
    rows: int
    reads: bool

    group: ClassVar[str] = "generation"
    goals: ClassVar[dict[str, float]] = {}
    checked: ClassVar[tuple[str, ...]] = ("float64",)

    @property
    def title(self) -> str:
        """What is done."""
        parameters = {"10m": "10 M", "124m": "124 M"}[self.size]
        done = f"prompt of {LONG_PROMPT} tokens read" if self.reads else f"{NEW_TOKENS} new tokens"
        return f"generation, {parameters} parameters, {done}, batch {self.rows}"

    @property
    def tokens(self) -> int:
        """The tokens of a call, of all texts."""
        return self.rows * (LONG_PROMPT if self.reads else NEW_TOKENS)

    def prepare(self, folder: Path) -> None:
        """Writes prompts and weights."""
        model = GENERATORS[self.size]
        batches = token_batches(self.rows, self._prompt, model.vocab_size)[:4]
        write(folder, batches, _init(model), gpt_table(model.num_layers))

    def ours(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """The zoo: one compiled function."""
        model, batches = GENERATORS[self.size], read_batches(folder, dtype)
        return _greedy(model, _read(folder, model, dtype), batches, dtype, self._new)

    def torch(self, folder: Path, dtype: str, *, timed: bool, setting: str) -> Call:
        """Hugging Face's ``generate``."""
        model = torch_model(_theirs(GENERATORS[self.size]), folder, dtype, setting).eval()
        return _torch_greedy(model, torch_batches(folder, dtype, setting), self._new)

    @property
    def _prompt(self) -> int:
        return LONG_PROMPT if self.reads else 1

    @property
    def _new(self) -> int:
        return 1 if self.reads else NEW_TOKENS


def _greedy(
    model: GPT, variables: Any, batches: Sequence[dict[str, Any]], dtype: str, new: int
) -> Call:
    @jit
    def decode(variables: Any, prompt: Any) -> Any:
        cache = model.initial_cache(prompt.shape[0], prompt.shape[1] + new, jnp.dtype(dtype))
        return greedy(
            lambda tokens, cache: model.apply(variables, tokens, cache),
            cache,
            prompt,
            max_new_tokens=new,
        )

    return lambda index: _fingerprint(
        np.asarray(decode(variables, batches[index % len(batches)]["tokens"]))
    )


def _torch_greedy(model: Any, batches: Sequence[dict[str, Any]], new: int) -> Call:
    import torch

    def decode(index: int) -> float:
        prompt = batches[index % len(batches)]["tokens"]
        with torch.inference_mode():
            tokens = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                use_cache=True,
            )
        return _fingerprint(tokens[:, prompt.shape[1] :].numpy())

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
# 10 million parameters without the table of tokens, and GPT-2 itself.
GENERATORS = {
    "10m": GPT(vocab_size=VOCAB, context=1024, num_layers=6, num_heads=6, features=384),
    "124m": GPT(),
}


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
