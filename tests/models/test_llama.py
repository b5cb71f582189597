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
from zoo.families import create_model
from zoo.families.llama import FAMILY, llama_table
from zoo.models import Llama
from zoo.pretrained import save_pretrained
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
    return Llama(**FAMILY.attributes_of(json.loads(reference(name).config.to_json_string())))


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
        name=f"Llama, {name.removesuffix('ForCausalLM')}".removesuffix(", Llama"),
    )


@every_class
def test_no_gradient_from_the_future_nor_from_before_the_windows(name):
    module, text = ours(name), jnp.arange(9)[None]  # no token twice

    @jax.jit
    def of_embedding(embedding, at):
        def vector(embedding):
            changed = {**weights(name), "tokens": {"embedding": embedding}}
            made, _ = module.apply({"params": changed}, text, method="vectors")
            return made[0, at].sum()

        return jax.grad(vector)(embedding)

    reach = sum(window - 1 if window else 9 for window in layers_windows(module))
    for at in (0, 4, 8):
        gradient = of_embedding(weights(name)["tokens"]["embedding"], at)
        reached = np.abs(gradient[:9]).sum(axis=1) > 0
        assert reached.tolist() == [at - reach <= place <= at for place in range(9)]


def layers_windows(module):
    return (module.windows * module.num_layers)[: module.num_layers]


def without_growth(module):
    """Cached keys of ``dynamic`` positions keep the rates of their time, in the reference too."""
    if module.rope_scaling != "dynamic":
        return module
    return dataclasses.replace(module, rope_original_context=module.context)


@functools.cache
def compiled(module):
    return jax.jit(module.apply)


def in_pieces(module, params, text, pieces, cache):
    """The logits of a text that is read piece by piece, and the cache after it."""
    found, begin = [], 0
    for piece in pieces:
        logits, cache = compiled(module)({"params": params}, text[:, begin : begin + piece], cache)
        found.append(logits)
        begin += piece
    assert begin == text.shape[1]
    return np.concatenate(found, axis=1), cache


CLOSE = {"rtol": 1e-4, "atol": 1e-4}


# Mistral's window is 3: prompts of 5, 7 and 10 tokens are longer, and so is each text.
@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("LlamaForCausalLM", [7, 1, 1, 1]),
        ("MistralForCausalLM", [7, 1, 1, 1]),
        ("MistralForCausalLM", [1, 2, 7]),
        ("MistralForCausalLM", [10]),
        ("Qwen2ForCausalLM", [7, 1, 1, 1]),
        ("Qwen3ForCausalLM", [7, 1, 1, 1]),
    ],
)
def test_the_cache_changes_no_logits_nor_does_padding(name, pieces):
    module, text = without_growth(ours(name)), tokens(rows=3, time=10)
    whole, nothing = compiled(module)({"params": weights(name)}, text)
    assert nothing is None
    # Each row is the same text, further back by its padding, which is other tokens.
    padding = np.array([0, 2, 6])
    moved = [
        np.concatenate([tokens(1, before, seed=3)[0], row[: 10 - before]])
        for row, before in zip(text, padding, strict=True)
    ]
    cache = module.initial_cache(3, 12, padding=padding)
    found, cache = in_pieces(module, weights(name), np.stack(moved), pieces, cache)
    assert cache[0].length == 10
    for row, before in enumerate(padding):
        np.testing.assert_allclose(found[row, before:], whole[row, : 10 - before], **CLOSE)


def test_a_cache_without_padding_is_the_same():
    name = "MistralForCausalLM"
    text = tokens(rows=3, time=10)
    whole, _ = compiled(ours(name))({"params": weights(name)}, text)
    cache = ours(name).initial_cache(3, 12)
    found, _ = in_pieces(ours(name), weights(name), text, [7, 1, 1, 1], cache)
    np.testing.assert_allclose(found, whole, **CLOSE)


def test_no_gradient_from_padding():
    # Windows on one of its layers: a cache of each kind.
    name = "Qwen2ForCausalLM"
    module, text = ours(name), jnp.arange(9)[None]

    @jax.jit
    @jax.grad
    def gradient(embedding):
        changed = {"params": {**weights(name), "tokens": {"embedding": embedding}}}
        cache, total = module.initial_cache(1, 9, padding=jnp.array([3])), 0.0
        for part in (text[:, :8], text[:, 8:]):
            made, cache = module.apply(changed, part, cache, method="vectors")
            total += jnp.sin(made[:, 3:] if part.shape[1] > 3 else made).sum()
        return total

    reached = np.abs(gradient(weights(name)["tokens"]["embedding"])[:9]).sum(axis=1) > 0
    assert reached.tolist() == [False] * 3 + [True] * 6


def test_a_cache_has_each_group_once_and_no_more_tokens_than_a_window():
    def shapes(name):
        cache = jax.eval_shape(lambda: ours(name).initial_cache(5, 40, jnp.bfloat16))
        assert {layer.key.dtype.name for layer in cache} == {"bfloat16"}
        return [layer.key.shape for layer in cache]

    assert shapes("LlamaForCausalLM") == [(5, 40, 2, 6)] * 2
    assert shapes("MistralForCausalLM") == [(5, 3, 2, 4)] * 2
    assert shapes("Qwen2ForCausalLM") == [(5, 40, 2, 4), (5, 4, 2, 4)]
    # A text within the window needs no more than the text.
    assert ours("MistralForCausalLM").initial_cache(1, 2)[0].key.shape == (1, 2, 2, 4)


def test_the_cache_works_in_bfloat16_and_can_be_donated():
    module, text = ours("MistralForCausalLM"), tokens(time=7)
    exact, _ = compiled(module)({"params": weights("MistralForCausalLM")}, text)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights("MistralForCausalLM"))
    step = jax.jit(module.apply, donate_argnums=2)
    cache, found = module.initial_cache(2, 12, jnp.bfloat16), []
    for part in (text[:, :5], text[:, 5:6], text[:, 6:]):
        logits, cache = step({"params": half}, part, cache)
        found.append(logits.astype(jnp.float32))
    assert (logits.dtype, cache[0].key.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert np.abs(np.concatenate(found, axis=1) - exact).max() < 0.1 * np.abs(exact).max()


def scanned(module):
    return dataclasses.replace(module, scan_layers=True)


def stacked(params):
    """The parameters of two blocks as a module with ``scan_layers`` has them."""
    rest = dict(params)
    blocks = [rest.pop(f"block_{layer}") for layer in range(2)]
    return {**rest, "blocks": jax.tree.map(lambda *each: jnp.stack(each), *blocks)}


def test_scanned_and_rematerialised_blocks_compute_the_same_with_every_gradient():
    module, text = ours("LlamaForCausalLM"), tokens()

    def found(model, params):
        logits, backward = jax.vjp(lambda p: model.apply({"params": p}, text)[0], params)
        return logits, *backward(jnp.cos(logits))

    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: x.astype(jnp.float64), weights("LlamaForCausalLM"))
        logits, gradient = jax.jit(found, static_argnums=0)(module, params)
        expected = stacked(gradient)
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
        for remat in ("none", "dots"):
            other = dataclasses.replace(scanned(module), remat=remat)
            same_logits, of_stacked = jax.jit(found, static_argnums=0)(other, stacked(params))
            np.testing.assert_allclose(same_logits, logits, rtol=1e-11, atol=1e-11)
            assert jax.tree.structure(of_stacked) == jax.tree.structure(expected)
            for a, b in zip(jax.tree.leaves(of_stacked), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12 * largest)


def test_scanned_blocks_keep_a_cache_for_each_layer():
    module, params = scanned(ours("MistralForCausalLM")), stacked(weights("MistralForCausalLM"))
    text = tokens(time=8)
    whole, _ = compiled(module)({"params": params}, text)
    cache = module.initial_cache(2, 8)
    found, after = in_pieces(module, params, text, [6, 1, 1], cache)
    assert jax.tree.structure(after) == jax.tree.structure(cache)
    np.testing.assert_allclose(found, whole, **CLOSE)


def test_it_begins_as_llama_does():
    torch, transformers = peers.torch(), peers.transformers()
    torch.manual_seed(0)
    sizes = {**SIZES, "vocab_size": 200, "hidden_size": 64, "intermediate_size": 96}
    del sizes["initializer_range"]
    config = transformers.LlamaConfig(**sizes)
    theirs = dict(transformers.LlamaForCausalLM(config).named_parameters())
    module = Llama(**FAMILY.attributes_of(config.to_dict()))
    params = jax.jit(module.init)(jax.random.key(0, impl="rbg"), tokens())["params"]
    for name, array in to_reference(params, llama_table(module)).items():
        expected = theirs[name].detach().numpy()
        assert array.shape == expected.shape
        np.testing.assert_allclose(array.std(), expected.std(), rtol=0.1, err_msg=name)
        np.testing.assert_allclose(array.mean(), expected.mean(), atol=3e-3, err_msg=name)


def test_dropout_is_where_llama_has_it():
    module = dataclasses.replace(ours("LlamaForCausalLM"), attention_dropout_rate=0.5)

    def dropped():
        return module.init(
            {"params": jax.random.key(0), "dropout": jax.random.key(1)},
            tokens(),
            train=True,
            capture_intermediates=lambda module, _: type(module).__name__ == "Dropout",
        )["intermediates"]

    # Attention's weights: of two groups, with the two queries of each one after another.
    assert [x.shape for x in jax.tree.leaves(jax.eval_shape(dropped))] == [(2, 2, 18, 9)] * 2


@every_class
def test_weights_there_and_back_are_the_same_bits(name):
    theirs = arrays(reference(name))
    table = llama_table(ours(name))
    back = to_reference(weights(name), table)
    if ours(name).tie_embeddings:
        del theirs["lm_head.weight"]  # export leaves it out
    assert back.keys() == theirs.keys()
    for key, array in theirs.items():
        assert (back[key].dtype, back[key].tobytes()) == (array.dtype, array.tobytes()), key


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_names_of_other_files_are_read():
    name = "Qwen2ForCausalLM"
    module, theirs = ours(name), arrays(reference(name))
    # Tied: the output a second time, or not.
    assert "lm_head.weight" in theirs
    without = {key: array for key, array in theirs.items() if key != "lm_head.weight"}
    same(read(module, without), weights(name))
    # Older files have the rates of each layer.
    rates = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(2) for i in range(2)}
    same(read(module, {**without, **rates}), weights(name))
    # The model without its output.
    inner = {re.sub(r"^model\.", "", key): array for key, array in without.items()}
    table = FAMILY.weights["transformers, without the output"](module, {})
    same(read(module, inner, table), weights(name))
    loop = scanned(ours("LlamaForCausalLM"))
    same(read(loop, arrays(reference("LlamaForCausalLM"))), stacked(weights("LlamaForCausalLM")))
    with pytest.raises(UserError, match=r"lm_head\.weight is not equal"):
        read(module, {**theirs, "lm_head.weight": theirs["lm_head.weight"] + 1})
    with pytest.raises(UserError, match=r"lm_head\.weight is missing"):
        read(dataclasses.replace(module, tie_embeddings=False), without)


@every_class
def test_transformers_opens_what_we_write(name, tmp_path):
    transformers = peers.transformers()
    save_pretrained(tmp_path, FAMILY, ours(name), {"params": weights(name)}, {})
    theirs = getattr(transformers, name).from_pretrained(tmp_path, attn_implementation="eager")
    assert type(transformers.AutoModelForCausalLM.from_pretrained(tmp_path)).__name__ == name
    expected = theirs(peers.torch().tensor(tokens())).logits.detach()
    found, _ = compiled(ours(name))({"params": weights(name)}, tokens())
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


BARE = {
    "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 3, "num_attention_heads": 4,
    "vocab_size": 7, "max_position_embeddings": 100,
}  # fmt: skip


def read_config(**config):
    return FAMILY.attributes_of({**BARE, **config})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # The first Llama's has no groups, no base, and the length of its day.
        ({}, {"num_key_value_heads": 4, "rope_base": 1e4, "rope_scaling": "default",
              "epsilon": 1e-6, "tie_embeddings": False, "windows": (0,), "context": 100}),
        ({"rope_theta": 5e5, "rope_scaling": None}, {"rope_base": 5e5}),
        ({"rope_scaling": {"type": "linear", "factor": 4}},
         {"rope_scaling": "linear", "rope_factor": 4.0, "context": 400,
          "rope_original_context": 100}),
        ({"rope_scaling": {"type": "dynamic", "rope_type": "dynamic", "factor": 2.0}},
         {"rope_scaling": "dynamic", "context": 200}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 3e4}}, {"rope_base": 3e4}),
        ({"rope_theta": 2e4, "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}},
         {"rope_base": 2e4, "context": 400, "rope_rotations": (1.0, 32.0),
          "rope_attention_factor": 0.0}),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                           "original_max_position_embeddings": 10}},
         {"rope_attention_factor": 1.0}),
        ({"model_type": "mistral", "num_key_value_heads": 2}, {"windows": (4096,)}),
        ({"model_type": "mistral", "sliding_window": None}, {"windows": (0,)}),
        ({"model_type": "qwen2", "sliding_window": 9},
         {"windows": (0,), "use_bias": True, "use_out_bias": False, "use_query_key_norm": False}),
        ({"model_type": "qwen2", "num_key_value_heads": None}, {"num_key_value_heads": 4}),
        ({"model_type": "qwen2", "sliding_window": 9, "use_sliding_window": True,
          "max_window_layers": 2}, {"windows": (0, 0, 9)}),
        ({"model_type": "qwen3", "sliding_window": 9, "use_sliding_window": True,
          "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
         {"windows": (9, 0, 9), "use_query_key_norm": True, "head_features": 128}),
        ({"model_type": "qwen3", "sliding_window": 9, "use_sliding_window": True,
          "max_window_layers": 0}, {"windows": (9,)}),
        ({"torch_dtype": "bfloat16", "dtype": "float32", "pretraining_tp": 2, "mlp_bias": True},
         {"use_feedforward_bias": True}),
        ({"model_type": "qwen2", "use_mrope": False, "partial_rotary_factor": 1.0}, {}),
    ],
)  # fmt: skip
def test_configs_of_every_age_are_read(config, expected):
    found = read_config(**config)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "lama"}, "model_type='lama'.*Did you mean 'llama'"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "'longrope'.*'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "lacks factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks low_freq_factor, high"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "b": 1}}, r"unknown keys \['b'\]"),
        ({"rope_scaling": {"type": "linear", "factor": "2x"}}, "factor='2x' must be a number"),
        ({"rope_scaling": "linear"}, "rope_scaling='linear' must be an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor must be 1"),
        ({"quantization_config": {}, "logit_scale": 2}, "quantization_config.*logit_scale=2"),
        ({"sliding_window": 8}, "sliding_window=8 is not supported for model_type='llama'"),
        ({"model_type": "qwen2", "mlp_bias": True}, "mlp_bias=True is not supported"),
        ({"model_type": "mistral", "layer_types": ["sliding_attention"] * 3}, "layer_types"),
        ({"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 4,
          "layer_types": ["chunked_attention"] * 3}, "layer_types"),
        ({"model_type": "qwen3", "layer_types": ["sliding_attention"] * 3}, "needs sliding_window"),
        ({"hidden_act": "gelu_fast"}, "hidden_act='gelu_fast'"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers='3' must be a whole number"),
    ],
)  # fmt: skip
def test_a_config_that_would_compute_something_else_is_refused(config, words):
    with pytest.raises(UserError, match=words):
        read_config(**config)


@pytest.mark.parametrize("name", sorted(FAMILY.sizes))
def test_every_size_has_a_config_that_is_read_back(name):
    module = create_model(name)
    written = json.loads(json.dumps(FAMILY.config_of(module)))
    expected = {"llama": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3": "qwen3"}
    assert written["model_type"] == expected[re.sub(r"(?<=llama)2?_.*|_.*", "", name)]
    found = FAMILY.attributes_of(written)
    for attribute, value in found.items():
        if attribute != "head_features":
            assert value == getattr(module, attribute), attribute
    usual = module.features // module.num_heads
    assert (found["head_features"] or usual) == (module.head_features or usual)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"use_bias": True, "use_feedforward_bias": True}, "no class of transformers"),
        ({"windows": (0, 4)}, "no class of transformers"),
        ({"use_bias": True, "windows": (3, 4)}, "no class of transformers"),
        ({"activation": "tanh"}, "activation='tanh'"),
    ],
)
def test_what_no_class_of_transformers_computes_has_no_config(attributes, words):
    with pytest.raises(UserError, match=words):
        FAMILY.config_of(Llama(**attributes))


# Of the models' pages and papers.
PUBLISHED = {
    "llama_1b": 1_235_814_400,
    "llama_3b": 3_212_749_824,
    "llama_8b": 8_030_261_248,
    "llama_70b": 70_553_706_496,
    "llama2_7b": 6_738_415_616,
    "llama2_70b": 68_976_648_192,
    "mistral_7b": 7_241_732_096,
    "qwen2_0_5b": 494_032_768,
    "qwen2_7b": 7_615_616_512,
    "qwen3_0_6b": 596_049_920,
    "qwen3_8b": 8_190_735_360,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_size_has_the_published_number_of_parameters(name):
    module = create_model(name, scan_layers=True)
    shapes = jax.eval_shape(module.init, jax.random.key(0), tokens())["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PUBLISHED[name]


def test_every_axis_of_a_product_has_a_name():
    for module in (ours("LlamaForCausalLM"), scanned(ours("LlamaForCausalLM"))):
        shapes = jax.eval_shape(module.init, jax.random.key(0), tokens())["params"]
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
            place = "/".join(key.key for key in path)
            names = [names for pattern, names in FAMILY.axes if re.search(pattern, place)]
            if place.endswith(("kernel", "embedding")):
                assert names, place
                assert None not in names[0], place
                assert len(names[0]) == 2 <= leaf.ndim, place


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"num_heads": 5}, "num_heads=5"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"head_features": 3}, "3 features of a head"),
        ({"rope_scaling": "ntk"}, "'ntk'"),
        ({"windows": (0, 4), "scan_layers": True}, "scan_layers"),
        ({"context": 8}, "context=8"),
    ],
)
def test_what_does_not_fit_is_refused(attributes, words):
    module = Llama(**{**SMALL, **attributes})
    with pytest.raises(UserError, match=words):
        jax.eval_shape(module.init, jax.random.key(0), tokens())


SMALL = {
    "vocab_size": 29, "num_layers": 2, "num_heads": 4, "num_key_value_heads": 2, "features": 8,
    "feedforward_features": 6,
}  # fmt: skip


def test_tokens_and_caches_that_do_not_fit_are_refused():
    module = Llama(**SMALL, context=8)
    with pytest.raises(UserError, match=r"\(4,\)"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(4, jnp.int32))
    with pytest.raises(UserError, match="context=8"):
        module.initial_cache(1, 9)
