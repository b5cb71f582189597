"""A GPT of 10 million parameters: its training step, and decoding with a cache."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.families.recurrent import token_batches, token_loss, torch_token_loss
from benchmarks.families.sides import (
    Call,
    load_weights,
    our_step,
    read_batches,
    read_params,
    torch_batches,
    torch_step,
    write,
)
from benchmarks.torch_peers import make_torchvision_importable
from zoo.decoding import greedy
from zoo.models import GPT
from zoo.pretrained import gpt_table

VOCAB, LAYERS, WIDTH, HEADS, CONTEXT = 65, 6, 384, 6, 256
PROMPT, NEW_TOKENS = 16, 128


@dataclasses.dataclass(frozen=True)
class GPTStep:
    """8 rows of 256 tokens, Adam, no dropout."""

    group: ClassVar[str] = "gpt"
    title: ClassVar[str] = "decoder, 6 layers, width 384, T 256, batch 8, training step"
    goals: ClassVar[dict[str, float]] = {"linen": 0.75}
    checked: ClassVar[tuple[str, ...]] = ("float64", "float32")
    gflop: ClassVar[float] = (
        2 * 3 * 8 * CONTEXT * (LAYERS * (12 * WIDTH**2 + 2 * CONTEXT * WIDTH) + WIDTH * VOCAB) / 1e9
    )

    def prepare(self, folder: Path) -> None:
        """Writes batches and weights."""
        batches = token_batches(8, CONTEXT, VOCAB)
        write(folder, batches, _first_params(), gpt_table(LAYERS))

    def ours(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """The zoo."""
        loss_fn = token_loss(lambda params, tokens: _model().apply({"params": params}, tokens)[0])
        return our_step(loss_fn, _read(folder, dtype), read_batches(folder, dtype))

    def torch(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """Hugging Face's model with PyTorch's own attention."""
        return torch_step(
            _theirs(),
            lambda model, batch: torch_token_loss(model(batch["tokens"]).logits, batch),
            folder,
            dtype,
        )

    def linen(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """Linen's own layers with their own first weights."""
        from flax import linen as nn

        class Stock(nn.Module):
            @nn.compact
            def __call__(self, tokens: Any) -> Any:
                embed = nn.Embed(VOCAB, WIDTH)
                x = embed(tokens) + nn.Embed(CONTEXT, WIDTH)(jnp.arange(tokens.shape[1]))
                mask = nn.make_causal_mask(tokens)
                for _ in range(LAYERS):
                    x += nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(x), mask=mask)
                    y = nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x)))
                    x += nn.Dense(WIDTH)(y)
                return embed.attend(nn.LayerNorm()(x))

        batches = read_batches(folder, dtype)
        params = jax.jit(Stock().init)(jax.random.key(0), batches[0]["tokens"])["params"]
        loss_fn = token_loss(lambda params, tokens: Stock().apply({"params": params}, tokens))
        return our_step(loss_fn, params, batches)


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Greedy decoding of 128 tokens after 16, with a cache; what must agree are the tokens.

    Attributes:
        rows: texts at once.
    """

    rows: int

    group: ClassVar[str] = "decoding"
    goals: ClassVar[dict[str, float]] = {}
    checked: ClassVar[tuple[str, ...]] = ("float64",)
    gflop: ClassVar[None] = None

    @property
    def title(self) -> str:
        """What is done."""
        return f"cached decoding, 10 M parameters, {NEW_TOKENS} tokens, batch {self.rows}"

    def prepare(self, folder: Path) -> None:
        """Writes prompts and weights."""
        batches = token_batches(self.rows, PROMPT, VOCAB)[:4]
        write(folder, batches, _first_params(), gpt_table(LAYERS))

    def ours(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """The zoo: one compiled function."""
        model, batches = _model(), read_batches(folder, dtype)
        variables = {"params": _read(folder, dtype)}

        @jax.jit
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

    def torch(self, folder: Path, dtype: str, *, timed: bool) -> Call:
        """Hugging Face's ``generate``."""
        import torch

        model = _theirs()
        load_weights(model, folder)
        model = model.to(getattr(torch, dtype)).eval()
        batches = torch_batches(folder, dtype)

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


def _model() -> GPT:
    return GPT(
        vocab_size=VOCAB,
        context=CONTEXT,
        num_layers=LAYERS,
        num_heads=HEADS,
        features=WIDTH,
        dropout_rate=0.0,
    )


def _first_params() -> Any:
    return jax.jit(_model().init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


def _read(folder: Path, dtype: str) -> Any:
    return read_params(folder, gpt_table(LAYERS), jax.eval_shape(_first_params), dtype)


def _theirs() -> Any:
    make_torchvision_importable()
    from transformers import GPT2Config, GPT2LMHeadModel

    # The token that would end a text is outside the vocabulary: none ends.
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=CONTEXT,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    config._attn_implementation = "sdpa"
    return GPT2LMHeadModel(config)
