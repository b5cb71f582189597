"""Decoding against ``transformers.generate`` in float32: 50 prompts for each model.

A model joins with one line in ``MODELS``.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from zoo.decoding import beam_search, generate, greedy, pad_left
from zoo.families import FAMILIES, create_model
from zoo.pretrained import load_variables

VOCAB, CONTEXT, NEW = 37, 64, 12
# All prompts are filled up to so many tokens, so that they share a program.
WIDTH = 16
# Tokens that end a text; what fills up texts, which the prompts do not have.
ENDS, PAD = (2, 7, 12, 17, 22), 3
TINY = {
    "vocab_size": VOCAB,
    "eos_token_id": list(ENDS),
    "bos_token_id": 1,
    "pad_token_id": PAD,
}
# What the config of transformers says besides, by the name of its class. Weights are so large that
# prompts are continued differently.
MODELS = {
    "GPT2LMHeadModel": {
        "n_positions": CONTEXT,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "initializer_range": 0.6,
    },
    **{
        name: {
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
            "max_position_embeddings": CONTEXT, "initializer_range": 0.6,
        }
        for name in ("LlamaForCausalLM", "Qwen3ForCausalLM")
    },
    "T5ForConditionalGeneration": {
        "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
        "initializer_factor": 3.0, "decoder_start_token_id": 0,
    },
}  # fmt: skip


class Both(NamedTuple):
    """The same model here and in transformers.

    Attributes:
        module: ours.
        begin: makes our prompt, its padding and the cache, of prompts and the room after them.
        step: our model as a step.
        theirs: the model of transformers.
        inputs: makes what their ``generate`` takes of prompts.
    """

    module: Any
    begin: Any
    step: Any
    theirs: Any
    inputs: Any


@functools.cache
def both(name):
    torch, transformers = peers.torch(), peers.transformers()
    torch.manual_seed(1)
    made = getattr(transformers, name)
    theirs = made(made.config_class(**TINY, **MODELS[name])).eval()
    (family,) = (family for family in FAMILIES if name in family.published)
    attributes = family.attributes_of(theirs.config.to_diff_dict())
    module = create_model(family.published[name], **attributes)
    weights = {key: value.detach().numpy() for key, value in theirs.named_parameters()}
    variables = jax.tree.map(
        jnp.asarray, load_variables(family, module, weights, family.example(module))
    )
    if family.kind == "encoder_decoder":
        return _encoder_decoder(module, variables, theirs)
    return _decoder(module, variables, theirs)


def _decoder(module, variables, theirs):
    def begin(prompts, new):
        tokens, padding = pad_left(prompts, max(WIDTH, *map(len, prompts)), token=PAD)
        cache = module.initial_cache(len(tokens), tokens.shape[1] + new, padding=padding)
        return jnp.asarray(tokens), jnp.asarray(padding), cache

    def inputs(prompts):
        tokens, padding = pad_left(prompts, max(WIDTH, *map(len, prompts)), token=PAD)
        mask = np.arange(tokens.shape[1]) >= padding[:, None]
        return {"input_ids": tokens, "attention_mask": mask.astype(np.int64)}

    step = jax.tree_util.Partial(module.apply, variables)
    return Both(module, begin, step, theirs, inputs)


def _encoder_decoder(module, variables, theirs):
    start = theirs.config.decoder_start_token_id

    def padded(sources):
        tokens = np.full((len(sources), max(WIDTH, *map(len, sources))), PAD)
        for row, source in zip(tokens, sources, strict=True):
            row[: len(source)] = source
        return tokens, tokens != PAD

    def begin(sources, new):
        tokens, mask = padded(sources)
        cache = module.apply(
            variables, jnp.asarray(tokens), jnp.asarray(mask), new + 1, method="begin"
        )
        return jnp.full((len(tokens), 1), start), None, cache

    def inputs(sources):
        tokens, mask = padded(sources)
        return {"input_ids": tokens, "attention_mask": mask.astype(np.int64)}

    step = jax.tree_util.Partial(functools.partial(module.apply, method="step"), variables)
    return Both(module, begin, step, theirs, inputs)


def batches():
    """Five batches of ten prompts of different lengths."""
    generator = np.random.default_rng(7)
    return [
        [generator.integers(4, VOCAB, n).tolist() for n in generator.choice([1, 6, 11, WIDTH], 10)]
        for _ in range(5)
    ]


def theirs_of(model, prompts, **options):
    """What transformers adds to prompts, filled up with padding; ours must be the same."""
    torch = peers.torch()
    inputs = {name: torch.tensor(x) for name, x in model.inputs(prompts).items()}
    with torch.inference_mode():
        found = model.theirs.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, pad_token_id=PAD, **options
        ).numpy()
    given = 1 if model.theirs.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    made = np.full((len(prompts), NEW), PAD)
    made[:, : found.shape[1] - given] = found[:, given:]
    return made


def check(name, decode, **options):
    model, different = both(name), set()
    for prompts in batches():
        # transformers penalises the padding of prompts too, so there each length goes by itself.
        alone = "repetition_penalty" in options and not model.theirs.config.is_encoder_decoder
        made = np.asarray(decode(model, prompts))
        groups = {len(p): [q for q in prompts if len(q) == len(p)] for p in prompts}
        for group in groups.values() if alone else [prompts]:
            rows = [prompts.index(prompt) for prompt in group]
            np.testing.assert_array_equal(made[rows], theirs_of(model, group, **options))
        different |= {tuple(row) for row in made.tolist()}
    assert len(different) > 20, "prompts are continued alike: little is compared"
    ended_by = {next((t for t in text if t in ENDS), None) for text in different}
    assert len(ended_by - {None}) > 1, "at most one token ends texts: little is compared"


@functools.partial(jax.jit, static_argnames=("options",))
def _greedy(step, cache, prompt, padding, options):
    return greedy(
        step, cache, prompt, max_new_tokens=NEW, end=ENDS, padding=PAD, prompt_padding=padding,
        **dict(options),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("options",))
def _beams(step, cache, prompt, padding, options):
    return beam_search(
        step, cache, prompt, max_new_tokens=NEW, end=ENDS, padding=PAD, prompt_padding=padding,
        num_beams=4, **dict(options),
    )[0]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.4}])
def test_greedy_is_that_of_transformers(name, options):
    def decode(model, prompts):
        prompt, padding, cache = model.begin(prompts, NEW)
        return _greedy(model.step, cache, prompt, padding, tuple(options.items()))

    check(name, decode, num_beams=1, **options)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "options", [{}, {"length_penalty": 0.5, "repetition_penalty": 1.4}, {"length_penalty": 2.0}]
)
def test_beam_search_is_that_of_transformers(name, options):
    def decode(model, prompts):
        prompt, padding, cache = model.begin(prompts, NEW)
        return _beams(model.step, cache, prompt, padding, tuple(options.items()))

    check(name, decode, num_beams=4, **options)


@pytest.mark.parametrize("name", MODELS)
def test_cached_logits_are_those_of_the_whole_text(name):
    model = both(name)
    for prompts in batches()[:1]:
        prompt, _, cache = model.begin(prompts, NEW)
        added = jnp.asarray(np.random.default_rng(0).integers(6, VOCAB, (len(prompts), 4)))
        apply = jax.jit(model.step)
        first, cache = apply(prompt, cache)
        each = [first[:, -1]]
        for place in range(4):
            logits, cache = apply(added[:, place : place + 1], cache)
            each.append(logits[:, -1])
        _, _, cache = model.begin(prompts, NEW)
        whole, _ = apply(jnp.concatenate([prompt, added], axis=1), cache)
        np.testing.assert_allclose(jnp.stack(each, 1), whole[:, -5:], rtol=1e-4, atol=1e-4)
        torch = peers.torch()
        if model.theirs.config.is_encoder_decoder:
            return
        # Without a cache and without padding: each text by itself.
        for row, tokens in enumerate(prompts):
            text = torch.tensor([[*tokens, *added[row].tolist()]])
            with torch.inference_mode():
                alone = model.theirs(text).logits[0, -5:].numpy()
            np.testing.assert_allclose(whole[row, -5:], alone, rtol=1e-4, atol=1e-4)


def test_tokens_of_generate_do_not_depend_on_the_batch_or_the_padding():
    model = both("GPT2LMHeadModel")
    options = {"max_new_tokens": NEW, "context": CONTEXT, "temperature": 0}
    key = jax.random.key(0)
    # The longest leave no room for a width that is a power of two.
    lengths = [1, 9, 40, CONTEXT - NEW]
    generator = np.random.default_rng(3)
    prompts = [generator.integers(6, VOCAB, n).tolist() for n in lengths]
    together = np.stack(
        list(generate(model.step, model.module.initial_cache, prompts, key, **options))
    )
    for row, prompt in enumerate(prompts):
        expected = theirs_of(model, [prompt], num_beams=1, eos_token_id=None)[0]
        np.testing.assert_array_equal(together[:, row], expected)
        if len(prompt) in (9, 40):
            alone = list(generate(model.step, model.module.initial_cache, [prompt], key, **options))
            np.testing.assert_array_equal(np.concatenate(alone), expected)
