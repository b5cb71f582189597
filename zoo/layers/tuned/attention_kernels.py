"""Attention by the kernels of a GPU and a TPU: cuDNN's, and JAX's splash attention in Pallas.

Which of them may be taken is decided by shapes and types. Neither has a mask or dropout here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.layers.tuned.platform import are_known

Heads = Float[Array, "batch length heads head_features"]

# Both kernels compute blocks of so many queries and keys.
_TPU_BLOCK, _GPU_BLOCK = 512, 64
# A TPU's registers have so many lanes; splash attention takes no narrower heads.
_LANES = 128


def forward(causal: bool, query: Heads, key: Heads) -> dict[str, Callable[..., Any]]:
    """Returns the kernels for these shapes by platform: as ``attend`` without mask and dropout."""
    kernels: dict[str, Callable[..., Any]] = {}
    if _fits_tpu(query, key):

        def on_tpu(query: Heads, key: Heads, value: Heads, extra: Any) -> tuple[Heads, Any]:
            del extra
            attention = _splash(causal, query, key, save_residuals=True)
            means, (log_totals,) = attention(*_for_splash(query, key, value))
            return means.swapaxes(1, 2)[..., : value.shape[-1]], log_totals

        kernels["tpu"] = on_tpu
    if _fits_gpu(query, key):

        def on_gpu(query: Heads, key: Heads, value: Heads, extra: Any) -> tuple[Heads, Any]:
            del extra
            means, log_totals = jax.nn.dot_product_attention(
                query, key, value, scale=1.0, is_causal=causal, implementation="cudnn",
                return_residual=True,
            )  # fmt: skip
            return means, log_totals.swapaxes(1, 2)

        kernels["cuda"] = on_gpu
    return kernels


def backward(causal: bool, query: Heads, key: Heads) -> dict[str, Callable[..., Any]]:
    """Returns the kernels of the gradient by platform.

    They compute the forward pass a second time: its residuals are the kernels' own.
    """
    kernels: dict[str, Callable[..., Any]] = {}
    if _fits_tpu(query, key):

        def on_tpu(known: Any, cotangents: Any, extra: Any) -> tuple[Heads, Heads, Heads]:
            del extra
            attention = _splash(causal, query, key, save_residuals=False)

            def whole(query: Heads, key: Heads, value: Heads) -> Heads:
                means = attention(*_for_splash(query, key, value))
                return means.swapaxes(1, 2)[..., : value.shape[-1]]

            made: tuple[Heads, Heads, Heads] = jax.vjp(whole, *known[:3])[1](cotangents[0])
            return made

        kernels["tpu"] = on_tpu
    if _fits_gpu(query, key):

        def on_gpu(known: Any, cotangents: Any, extra: Any) -> tuple[Heads, Heads, Heads]:
            del extra

            def whole(query: Heads, key: Heads, value: Heads) -> Heads:
                means: Heads = jax.nn.dot_product_attention(
                    query, key, value, scale=1.0, is_causal=causal, implementation="cudnn"
                )
                return means

            made: tuple[Heads, Heads, Heads] = jax.vjp(whole, *known[:3])[1](cotangents[0])
            return made

        kernels["cuda"] = on_gpu
    return kernels


def _fits_tpu(query: Heads, key: Heads) -> bool:
    lengths = (query.shape[1], key.shape[1])
    return (
        are_known(*query.shape, *key.shape)
        and query.dtype in (jnp.bfloat16, jnp.float32)
        and not any(length % _TPU_BLOCK for length in lengths)
    )


def _fits_gpu(query: Heads, key: Heads) -> bool:
    # cuDNN is asked for its version when it is traced, so a program for a GPU that is compiled
    # elsewhere does without.
    return (
        jax.default_backend() == "gpu"
        and are_known(*query.shape, *key.shape)
        and query.dtype in (jnp.bfloat16, jnp.float16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 128
        and not any(length % _GPU_BLOCK for length in (query.shape[1], key.shape[1]))
    )


def _for_splash(*arrays: Heads) -> list[Array]:
    """Returns arrays [batch, heads, length, features], with zeros up to whole registers."""
    padding = -arrays[0].shape[-1] % _LANES
    padded = (jnp.pad(x, [(0, 0), (0, 0), (0, 0), (0, padding)]) for x in arrays)
    return [x.swapaxes(1, 2) for x in padded]


def _splash(causal: bool, query: Heads, key: Heads, *, save_residuals: bool) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as splash,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    shape = (query.shape[1], key.shape[1])
    one = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    block = _TPU_BLOCK
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block,
        block_kv_dkv=block, block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    attention = splash.make_splash_mha(
        masks.MultiHeadMask([one] * query.shape[2]),
        head_shards=1, q_seq_shards=1, block_sizes=sizes, save_residuals=save_residuals,
    )  # fmt: skip
    return jax.vmap(attention)
