"""Llama against transformers' Llama, Mistral, Qwen2 and Qwen3 for causal language models."""

import dataclasses
import functools
import json
import re

import exact_torch
import jax
import jax.numpy as jnp
import numpy as np
import parity
import peers
import pytest

from zoo.errors import UserError
from zoo.families import by_name, create_model
from zoo.families.llama import FAMILY, llama_table
from zoo.models import Llama
from zoo.weights.tables import from_reference, to_reference

SIZES = {
    "vocab_size": 29, "hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3,
}  # fmt: skip
# By class: what a tiny config of it has besides. Together they have every scaling but the linear
# one, tied and untied outputs, all biases, and windows on all, some and no layers.
CONFIGS = {
    "LlamaForCausalLM": {
        "head_dim": 6, "attention_bias": True, "mlp_bias": True, "max_position_embeddings": 64,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 50.0, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        },
    },
    "MistralForCausalLM": {
        "head_dim": 4, "sliding_window": 3, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    },
    "Qwen2ForCausalLM": {
        "head_dim": 4, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1,
        "tie_word_embeddings": True, "max_position_embeddings": 64,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0, "beta_fast": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "Qwen3ForCausalLM": {
        "head_dim": 6, "max_position_embeddings": 5, "hidden_act": "gelu_pytorch_tanh",
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 50.0, "factor": 3.0},
    },
}  # fmt: skip
every_class = pytest.mark.parametrize("name", CONFIGS)


def tokens(rows=2, time=9, seed=0):
    return np.random.default_rng(seed).integers(0, 29, (rows, time))


@functools.cache
def reference(name):
    """A tiny reference whose biases and scales are drawn too."""
    torch, transformers = peers.torch(), peers.transformers()
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    config = kind.config_class(**SIZES, **CONFIGS[name], attn_implementation="eager")
    model = kind(config).eval()
    for weight in model.parameters():
        if weight.ndim == 1:
            torch.nn.init.normal_(weight, 1.0, 0.3)
    return model


@functools.cache
def ours(name):
    """The module that the reference's ``config.json`` describes."""
    written = json.loads(reference(name).config.to_json_string(use_diff=False))
    return Llama(**FAMILY.attributes_of(published(written)))


def published(config):
    """A config as files have it: without what this version adds to all configs."""
    return {name: value for name, value in config.items() if name not in ADDED}


ADDED = ()


def arrays(model):
    return {name: array.detach().numpy() for name, array in model.state_dict().items()}


@functools.cache
def weights(name):
    """Our parameters, from the reference's."""
    return read(ours(name), arrays(reference(name)))


def read(module, theirs, table=None):
    like = jax.eval_shape(module.init, jax.random.key(0), tokens())["params"]
    return from_reference(theirs, table or llama_table(module), like)


@every_class
def test_it_computes_what_the_reference_does(name):
    def logits(model, tokens):
        with exact_torch.exact(model):
            return model(tokens, use_cache=False).logits

    parity.check_parity(
        ours(name),
        reference(name),
        llama_table(ours(name)),
        tokens(),
        axes=None,
        ours=lambda apply, tokens: apply(tokens)[0],
        theirs=logits,
        name=f"Llama as {name.removesuffix('ForCausalLM')}",
    )
