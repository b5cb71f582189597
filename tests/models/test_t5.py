"""T5 against Hugging Face's ``T5ForConditionalGeneration`` and ``T5EncoderModel``."""

import copy
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import parity
import peers
import pytest

from zoo import fields, pretrained
from zoo.decoding import beam_search, greedy
from zoo.errors import UserError
from zoo.families import create_model, find
from zoo.families.t5 import t5_encoder_table, t5_table
from zoo.models import T5, T5Encoder
from zoo.models.t5 import buckets
from zoo.weights.tables import from_reference, to_reference

# The heads have fewer features than the stream. Buckets of all kinds are met: of one distance, of
# several, and the last.
SIZES = {
    "vocab_size": 29, "features": 8, "num_heads": 2, "head_features": 3,
    "feedforward_features": 12, "num_buckets": 8, "max_distance": 5,
}  # fmt: skip
DEPTHS = {"num_encoder_layers": 2, "num_decoder_layers": 2}
VERSION_1_1 = {"activation": "gelu_tanh", "gated": True}
OUTPUT_1_1 = {"tie_weights": False, "scale_logits": False}
MODELS = {
    "1.0": T5(**SIZES, **DEPTHS),
    "1.1": T5(**SIZES, **DEPTHS, **VERSION_1_1, **OUTPUT_1_1),
}
ENCODERS = {
    "1.0": T5Encoder(**SIZES, num_layers=2),
    "1.1": T5Encoder(**SIZES, num_layers=2, **VERSION_1_1),
}
SCANNED = dataclasses.replace(MODELS["1.1"], scan_layers=True, remat="block")
TABLES = {"1.0": t5_table(2, 2), "1.1": t5_table(2, 2, gated=True, tie_weights=False)}
THEIR_SIZES = {
    "vocab_size": 29, "d_model": 8, "num_heads": 2, "d_kv": 3, "d_ff": 12, "num_layers": 2,
    "num_decoder_layers": 2, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 5, "decoder_start_token_id": 0,
}  # fmt: skip
THEIR_VERSIONS = {
    "1.0": {"feed_forward_proj": "relu"},
    "1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}

each_version = pytest.mark.parametrize("version", list(MODELS))


@pytest.fixture(scope="module", autouse=True)
def normalisation_in_its_own_type():
    """The reference's mean square is float32 whatever the input is; float64 must be float64."""
    peers.transformers()
    from transformers.models.t5 import modeling_t5

    def forward(self, x):
        mean_square = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * peers.torch().rsqrt(mean_square + self.variance_epsilon))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_t5.T5LayerNorm, "forward", forward)
        yield


def their_config(version, **options):
    return peers.transformers().T5Config(
        **{**THEIR_SIZES, **THEIR_VERSIONS[version], **options}, attn_implementation="eager"
    )


@functools.cache
def reference(version):
    torch, transformers = peers.torch(), peers.transformers()
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(their_config(version)).eval()
    if version == "1.1":
        # It is tied in a new model. That of a published file is not.
        model.lm_head.weight = torch.nn.Parameter(torch.randn(29, 8))
    for name, parameter in model.named_parameters():
        if "layer_norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    return model


@functools.cache
def reference_encoder(version):
    torch, transformers = peers.torch(), peers.transformers()
    torch.manual_seed(1)
    return transformers.T5EncoderModel(their_config(version)).eval()


def arrays_of(model):
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


@functools.cache
def params_of(version):
    """Our parameters, those of the reference."""
    return from_reference(arrays_of(reference(version)), TABLES[version], shapes(MODELS[version]))


def shapes(model):
    tokens = [jnp.zeros((1, 2), jnp.int32)] * (2 if isinstance(model, T5) else 1)
    return jax.eval_shape(model.init, jax.random.key(0), *tokens)["params"]


def drawn(model):
    """Our own first parameters; of the kinds of keys this one is compiled fastest."""
    tokens = [jnp.zeros((1, 2), jnp.int32)] * (2 if isinstance(model, T5) else 1)
    return jax.jit(model.init)(jax.random.key(0, impl="rbg"), *tokens)["params"]


def batch():
    generator = np.random.default_rng(0)
    source, target = generator.integers(0, 29, (3, 9)), generator.integers(0, 29, (3, 8))
    # At the end, at the beginning, and both.
    counts = np.ones((3, 9), bool)
    counts[0, 6:] = counts[1, :3] = counts[2, 7:] = counts[2, :1] = False
    return source, target, counts, np.arange(8) < np.array([[8], [5], [7]])


def logits(model, params, source, target, source_mask=None, target_mask=None):
    """Our logits; without masks they are those of masks that are true everywhere."""
    source_mask = np.ones(source.shape, bool) if source_mask is None else source_mask
    target_mask = np.ones(target.shape, bool) if target_mask is None else target_mask
    return _logits(model, params, source, target, source_mask, target_mask)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, source, target, source_mask, target_mask):
    return model.apply(
        {"params": params}, source, target, source_mask=source_mask, target_mask=target_mask
    )


def their_logits(model, source, target, source_mask, target_mask):
    return model(
        input_ids=source, decoder_input_ids=target, attention_mask=source_mask,
        decoder_attention_mask=target_mask,
    ).logits  # fmt: skip


class _FourInputs:
    """``init`` with the masks as further arrays."""

    def __init__(self, module):
        self.module = module

    def init(self, key, source, target, *masks):
        return self.module.init(key, source, target)

    def apply(self, variables, source, target, source_mask, target_mask):
        return self.module.apply(
            variables, source, target, source_mask=source_mask, target_mask=target_mask
        )


@pytest.mark.parametrize("form", ["1.0", "1.1, scanned"])
def test_it_computes_what_t5_does(form):
    version, table = form[:3], TABLES["1.0"]
    if version == "1.1":
        table = t5_table(2, 2, gated=True, tie_weights=False, scan_layers=True)
    parity.check_parity(
        _FourInputs(MODELS["1.0"] if version == "1.0" else SCANNED), reference(version), table,
        *batch(), axes=None, theirs=their_logits,
    )  # fmt: skip


def test_its_encoder_computes_what_the_reference_does():
    source, _, counts, _ = batch()
    parity.check_parity(
        ENCODERS["1.1"],
        reference_encoder("1.1"),
        t5_encoder_table(2, gated=True),
        source,
        counts,
        axes=None,
        ours=lambda apply, tokens, mask: apply(tokens, mask)[0],
        theirs=lambda model, tokens, mask: model(tokens, attention_mask=mask).last_hidden_state,
    )


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 5), (5, 20), (4, 3)])
def test_distances_have_the_buckets_of_the_reference(num_buckets, max_distance):
    torch = peers.torch()
    from transformers.models.t5.modeling_t5 import T5Attention

    ahead = np.arange(-2 * max_distance, 2 * max_distance)
    for bidirectional in (True, False):
        expected = T5Attention._relative_position_bucket(
            torch.tensor(ahead), bidirectional, num_buckets, max_distance
        ).numpy()
        one_way = num_buckets // 2 if bidirectional else num_buckets
        found = buckets(one_way, max_distance)
        assert found.shape == (max_distance + 1,)
        distances = np.abs(ahead) if bidirectional else np.maximum(-ahead, 0)
        found = found[np.minimum(distances, max_distance)]
        np.testing.assert_array_equal(found + one_way * bidirectional * (ahead > 0), expected)


def test_it_begins_as_t5_does():
    torch, transformers = peers.torch(), peers.transformers()
    torch.manual_seed(0)
    theirs = transformers.T5ForConditionalGeneration(
        their_config(
            "1.1", vocab_size=300, d_model=64, d_kv=24, num_heads=3, d_ff=96, num_layers=1,
            num_decoder_layers=1, relative_attention_num_buckets=1000,
            relative_attention_max_distance=1200,
        )
    ).state_dict()  # fmt: skip
    ours = dataclasses.replace(
        MODELS["1.1"], vocab_size=300, features=64, head_features=24, num_heads=3,
        feedforward_features=96, num_encoder_layers=1, num_decoder_layers=1, num_buckets=1000,
        max_distance=1200,
    )  # fmt: skip
    table = t5_table(1, 1, gated=ours.gated, tie_weights=ours.tie_weights)
    for name, array in to_reference(drawn(ours), table).items():
        expected = theirs[name].numpy()
        assert array.shape == expected.shape
        np.testing.assert_allclose(array.std(), expected.std(), rtol=0.1, err_msg=name)
        # Five deviations of a difference of two means.
        far = 5 * expected.std() * (2 / expected.size) ** 0.5
        np.testing.assert_allclose(array.mean(), expected.mean(), atol=far, err_msg=name)


def begin_and_step(model):
    """Both compiled, each as a function of the parameters too."""

    def begin(params, source, source_mask, max_length):
        return model.apply({"params": params}, source, source_mask, max_length, method="begin")

    def step(params, target, cache):
        return model.apply({"params": params}, target, cache, method="step")

    return jax.jit(begin, static_argnums=3), jax.jit(step)


def decoded(model, params):
    """The logits of the batch's targets, read in two pieces, and the cache after them."""
    source, target, counts, _ = batch()
    begin, step = begin_and_step(model)
    cache, found = begin(params, source, counts, 8), []
    for first in (0, 4):
        piece, cache = step(params, target[:, first : first + 4], cache)
        found.append(piece)
    return np.concatenate(found, axis=1), cache


def test_the_cache_changes_no_logits():
    source, target, counts, _ = batch()
    model, params = MODELS["1.0"], params_of("1.0")
    whole = logits(model, params, source, target, counts)
    found, cache = decoded(model, params)
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-4)
    assert all(leaf.ndim == 0 or leaf.shape[0] == 3 for leaf in jax.tree.leaves(cache))


def test_what_reads_the_source_is_not_needed_again():
    source, target, counts, _ = batch()
    model, params = MODELS["1.0"], jax.tree.map(lambda x: x, params_of("1.0"))
    begin, step = begin_and_step(model)
    cache = jax.eval_shape(functools.partial(begin, max_length=4), params, source, counts)
    del params["encoder"]
    for number in range(2):
        attention = params["decoder"][f"layer_{number}"]["cross_attention"]
        del attention["key"], attention["value"]
    made, _ = jax.eval_shape(step, params, target[:, :1], cache)
    assert made.shape == (3, 1, 29)


def test_no_gradient_from_later_targets_and_padding():
    # Each token stands at one place, so that its vector's gradient says whether that is reached.
    source, target, counts = np.arange(9)[None], np.arange(10, 18)[None], batch()[2]
    model, params = MODELS["1.1"], params_of("1.1")

    @jax.jit
    @jax.grad
    def gradient(vectors, source_mask, at):
        of = {**params, "tokens": {"embedding": vectors}}
        return jnp.sin(logits(model, of, source, target, source_mask)[0, at]).sum()

    for row, at in ((0, 0), (1, 7), (2, 3)):
        found = gradient(params["tokens"]["embedding"], counts[row][None], at)
        reached = np.abs(found).sum(axis=1) > 0
        assert reached[:9].tolist() == counts[row].tolist()
        assert reached[10:18].tolist() == [position <= at for position in range(8)]


def test_padding_changes_nothing_in_the_rest():
    source, target, counts, _ = batch()
    model, params = MODELS["1.0"], params_of("1.0")
    found = logits(model, params, source, target, counts)
    assert (counts.sum(axis=1) == 6).all()
    alone = logits(model, params, source[counts].reshape(3, 6), target)
    np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_it_stays_bfloat16_and_near():
    source, target, counts, _ = batch()
    model, params = MODELS["1.1"], params_of("1.1")
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    found = logits(model, half, source, target, counts)
    exact = logits(model, params, source, target, counts)
    assert found.dtype == jnp.bfloat16
    assert np.abs(found.astype(jnp.float32) - exact).max() < 0.05 * np.abs(exact).max()
    begin, step = begin_and_step(model)
    cache = jax.eval_shape(functools.partial(begin, max_length=4), half, source, counts)
    made, after = jax.eval_shape(step, half, target[:, :1], cache)
    assert made.dtype == jnp.bfloat16
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, cache)


def test_dropout_is_where_t5_has_it():
    model = MODELS["1.0"]
    source, target, *_ = batch()

    def dropped(params):
        return model.apply(
            {"params": params}, source, target, train=True,
            rngs={"dropout": jax.random.key(0)}, mutable="intermediates",
            capture_intermediates=lambda module, _: type(module).__name__ == "Dropout",
        )[1]["intermediates"]  # fmt: skip

    seen = jax.eval_shape(dropped, shapes(model))
    found = sorted(leaf.shape for leaf in jax.tree.leaves(seen))
    # The embeddings and the result; in each layer attention's weights, each part's contribution
    # and hidden values.
    encoder = [(3, 2, 9, 9), (3, 9, 8), (3, 9, 12), (3, 9, 8)]
    decoder = [(3, 2, 8, 8), (3, 8, 8), (3, 2, 8, 9), (3, 8, 8), (3, 8, 12), (3, 8, 8)]
    ends = [*2 * [(3, 9, 8)], *2 * [(3, 8, 8)]]
    assert found == sorted([*ends, *2 * encoder, *2 * decoder])


def stacked(params):
    """The parameters of a model as one with ``scan_layers`` has them."""
    made = dict(params)
    for stack in ("encoder", "decoder"):
        rest = dict(params[stack])
        layers = [rest.pop(name) for name in sorted(rest) if name.startswith("layer_")]
        made[stack] = {**rest, "layers": jax.tree.map(lambda *each: np.stack(each), *layers)}
    return made


def test_scanned_layers_keep_a_cache_each():
    source, target, counts, _ = batch()
    whole = logits(MODELS["1.1"], params_of("1.1"), source, target, counts)
    found, cache = decoded(SCANNED, stacked(params_of("1.1")))
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-4)
    begin, _ = begin_and_step(MODELS["1.1"])
    other = jax.eval_shape(functools.partial(begin, max_length=8), params_of("1.1"), source, counts)
    assert jax.tree.structure(cache) == jax.tree.structure(other)


def test_scanned_layers_begin_and_drop_out_each_for_itself():
    encoder = dataclasses.replace(ENCODERS["1.1"], scan_layers=True)
    params = drawn(encoder)
    first, second = params["encoder"]["layers"]["self_attention"]["key"]["kernel"]
    assert not np.array_equal(first, second)

    @jax.jit
    def drop(key):
        _, seen = encoder.apply(
            {"params": params}, batch()[0], train=True, rngs={"dropout": key},
            mutable="intermediates",
            capture_intermediates=lambda module, _: type(module).__name__ == "Dropout",
        )  # fmt: skip
        return [x for x in jax.tree.leaves(seen) if x.shape == (2, 3, 2, 9, 9)]

    (weights,) = drop(jax.random.key(1, impl="rbg"))
    assert not np.array_equal(weights[0] == 0, weights[1] == 0)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@each_version
def test_weights_go_there_and_back_bit_for_bit(version):
    arrays, params = arrays_of(reference(version)), params_of(version)
    back = to_reference(params, TABLES[version])
    assert back.keys() == arrays.keys()
    for name, array in back.items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
    gated, tied = version == "1.1", version == "1.0"
    table = t5_table(2, 2, gated=gated, tie_weights=tied, scan_layers=True)
    like = shapes(dataclasses.replace(MODELS[version], scan_layers=True))
    same(from_reference(arrays, table, like), stacked(params))
    same(to_reference(stacked(params), table), back)


COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
UNREAD = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def test_files_may_have_tied_weights_under_any_of_their_names():
    arrays, params, like = arrays_of(reference("1.0")), params_of("1.0"), shapes(MODELS["1.0"])
    shared = arrays["shared.weight"]
    old = {**arrays, **dict.fromkeys(COPIES, shared), UNREAD: np.ones((8, 2), np.float32)}
    same(from_reference(old, TABLES["1.0"], like), params)
    rest = {name: array for name, array in arrays.items() if name != "shared.weight"}
    for name in COPIES:
        same(from_reference({**rest, name: shared}, TABLES["1.0"], like), params)
    with pytest.raises(UserError, match=r"shared\.weight is missing"):
        from_reference(rest, TABLES["1.0"], like)
    for given in (arrays, {**rest, COPIES[0]: shared}):
        with pytest.raises(UserError, match=r"lm_head\.weight is not equal to"):
            from_reference({**given, "lm_head.weight": 2 * shared}, TABLES["1.0"], like)


@each_version
def test_an_encoder_is_read_from_its_own_file_and_from_the_whole_models(version):
    whole, table = arrays_of(reference(version)), t5_encoder_table(2, gated=version == "1.1")
    encoder, params = ENCODERS[version], params_of(version)
    expected = {name: params[name] for name in ("tokens", "encoder")}
    own = {name: a for name, a in whole.items() if name.startswith(("shared", "encoder"))}
    old = {**whole, UNREAD: np.ones((8, 2), np.float32), COPIES[1]: whole["shared.weight"]}
    for arrays in (own, whole, old):
        same(from_reference(arrays, table, shapes(encoder)), expected)
    assert to_reference(expected, table).keys() == own.keys()
    del own["encoder.block.1.layer.0.SelfAttention.q.weight"]
    with pytest.raises(UserError, match=r"encoder\.block\.1\.layer\.0\.SelfAttention\.q\.weight"):
        from_reference(own, table, shapes(encoder))


def attributes_of(config, name="t5_small"):
    return find(name).attributes_of(config)


# As they were published, but for what the zoo does not look at.
PUBLISHED_SMALL = {
    "architectures": ["T5WithLMHeadModel"], "model_type": "t5", "d_ff": 2048, "d_kv": 64,
    "d_model": 512, "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1,
    "initializer_factor": 1.0, "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06,
    "n_positions": 512, "num_heads": 8, "num_layers": 6, "output_past": True, "pad_token_id": 0,
    "relative_attention_num_buckets": 32, "task_specific_params": {"a": {"num_beams": 4}},
    "vocab_size": 32128,
}  # fmt: skip
PUBLISHED_FLAN = {
    "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_ff": 1024, "d_kv": 64,
    "d_model": 512, "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0, "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06, "n_positions": 512, "num_decoder_layers": 8, "num_heads": 6,
    "num_layers": 8, "output_past": True, "pad_token_id": 0, "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32, "tie_word_embeddings": False, "torch_dtype": "float32",
    "transformers_version": "4.23.1", "use_cache": True, "vocab_size": 32128,
}  # fmt: skip


def test_published_configs_give_the_sizes_of_their_names():
    usual = fields.defaults(T5)
    for name, config in (("t5_small", PUBLISHED_SMALL), ("t5_v1_1_small", PUBLISHED_FLAN)):
        made = create_model(name)
        expected = {key: getattr(made, key) for key in usual.keys() - {"scan_layers", "remat"}}
        assert attributes_of(config, name) == expected
        encoder = create_model(f"{name}_encoder")
        found = attributes_of(config, f"{name}_encoder")
        assert T5Encoder(**found) == encoder
    # The reference's defaults are ours, whichever size the name says.
    assert T5(**attributes_of({}, "t5_v1_1_base")) == T5()
    theirs = peers.transformers().T5Config().to_dict()
    written = {key: value for key, value in theirs.items() if value is not None}
    assert T5(**attributes_of(written)) == T5()


@pytest.mark.parametrize(
    ("config", "tied", "scaled"),
    [
        ({}, True, True),
        ({"tie_word_embeddings": True}, True, True),
        ({"tie_word_embeddings": False}, False, False),
        # As transformers 5 writes both versions.
        ({"tie_word_embeddings": True, "scale_decoder_outputs": True}, True, True),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False, False),
        ({"tie_word_embeddings": False, "scale_decoder_outputs": True}, False, True),
    ],
)
def test_a_config_says_whether_logits_are_scaled(config, tied, scaled):
    found = attributes_of(config)
    assert (found["tie_weights"], found["scale_logits"]) == (tied, scaled)
    assert peers.transformers().T5Config(**config).scale_decoder_outputs == scaled


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "mt5"}, "model_type='mt5'"),
        ({"feed_forward_proj": "gated-tanh"}, "feed_forward_proj='gated-tanh'"),
        ({"feed_forward_proj": ["relu"]}, "feed_forward_proj"),
        ({"dense_act_fn": "gelu"}, "dense_act_fn='gelu'"),
        ({"is_gated_act": True}, "is_gated_act=True"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"is_encoder_decoder": False}, "'t5_small_encoder'"),
        ({"num_layer": 3}, r"num_layer=3 is unknown .* Did you mean 'num_layers'"),
        ({"quantization_config": {"bits": 8}}, "quantization_config"),
        ({"pruned_heads": {"1": [0]}}, "pruned_heads"),
    ],
)
def test_a_config_of_another_model_is_refused(config, words):
    with pytest.raises(UserError, match=words):
        attributes_of(config)


FORMS = {
    "1.0": MODELS["1.0"],
    "1.1": MODELS["1.1"],
    "untied and scaled": dataclasses.replace(
        MODELS["1.0"], tie_weights=False, num_decoder_layers=1
    ),
    "tied and not scaled": dataclasses.replace(
        MODELS["1.1"], tie_weights=True, num_encoder_layers=1
    ),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_transformers_opens_what_is_exported(form, tmp_path):
    torch, transformers = peers.torch(), peers.transformers()
    model = FORMS[form]
    source, target, *masks = batch()
    generator = np.random.default_rng(2)
    params = jax.tree.map(
        lambda x: jnp.asarray(generator.normal(size=x.shape, scale=0.5), x.dtype), shapes(model)
    )
    pretrained.save_pretrained(tmp_path, find("t5_small"), model, {"params": params}, {})
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = their_logits(theirs.eval(), *map(torch.tensor, (source, target, *masks)))
    found = logits(model, params, source, target, *masks)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)
    assert theirs.generation_config.decoder_start_token_id == 0
    assert (theirs.generation_config.eos_token_id, theirs.config.pad_token_id) == (1, 0)
    assert theirs.config.dropout_rate == model.dropout_rate


@each_version
def test_what_transformers_saves_is_read(version, tmp_path):
    reference(version).save_pretrained(tmp_path)
    json_file = tmp_path / "config.json"
    for config in (
        json.loads(json_file.read_text()),
        {**their_config(version).to_diff_dict(), **THEIR_SIZES, **THEIR_VERSIONS[version]},
    ):
        json_file.write_text(json.dumps(config))
        read = pretrained.from_pretrained("t5_base", tmp_path)
        assert read.module == MODELS[version]
        same(read.variables["params"], params_of(version))
        encoder = pretrained.from_pretrained("t5_base_encoder", tmp_path)
        assert encoder.module == ENCODERS[version]
        expected = {name: params_of(version)[name] for name in ("tokens", "encoder")}
        same(encoder.variables["params"], expected)


def test_encoders_go_to_transformers_and_back(tmp_path):
    torch, transformers = peers.torch(), peers.transformers()
    source, _, counts, _ = batch()
    encoder = ENCODERS["1.1"]
    theirs = reference_encoder("1.1")
    with torch.no_grad():
        expected = theirs(torch.tensor(source), torch.tensor(counts)).last_hidden_state
    theirs.save_pretrained(tmp_path / "theirs")
    read = pretrained.from_pretrained("t5_small_encoder", tmp_path / "theirs")
    assert read.module == encoder
    found, _ = jax.jit(encoder.apply)(read.variables, source, counts)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    pretrained.save_pretrained(
        tmp_path / "ours", find("t5_small_encoder"), encoder, read.variables, {}
    )
    opened = transformers.T5EncoderModel.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        again = opened(torch.tensor(source), torch.tensor(counts)).last_hidden_state
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-5)


def sources():
    """16 sources of 3 to 9 tokens, each followed by padding."""
    generator = np.random.default_rng(3)
    tokens = generator.integers(2, 29, (16, 9))
    lengths = generator.integers(3, 10, 16)
    return np.where(np.arange(9) < lengths[:, None], tokens, 0)


def strong_reference(version):
    """A reference whose sequences differ and of which some end."""
    model = copy.deepcopy(reference(version))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data[:] = 1
        elif name not in ("shared.weight", "lm_head.weight"):
            parameter.data *= 2
    model.lm_head.weight.data[1] *= 2
    return model


@each_version
def test_decoding_is_transformers(version):
    torch, source, theirs = peers.torch(), sources(), strong_reference(version)
    model = MODELS[version]
    params = from_reference(arrays_of(theirs), TABLES[version], shapes(model))
    begin, step = (functools.partial(model.apply, method=name) for name in ("begin", "step"))

    @jax.jit
    def decode(params):
        cache = begin({"params": params}, source, source != 0, 12)
        how = {"max_new_tokens": 12, "end": 1}
        given = (functools.partial(step, {"params": params}), cache, jnp.zeros((16, 1), jnp.int32))
        return {1: greedy(*given, **how), 4: beam_search(*given, num_beams=4, **how)[0]}

    for num_beams, made in decode(params).items():
        expected = theirs.generate(
            torch.tensor(source), attention_mask=torch.tensor(source != 0), max_new_tokens=12,
            do_sample=False, num_beams=num_beams, early_stopping=False, length_penalty=1.0,
        ).numpy()[:, 1:]  # fmt: skip
        # After the end its beam search has more ends, as it takes a padding of 0 for none.
        ended = np.cumsum(expected == 1, axis=1) - (expected == 1) > 0
        expected = np.where(ended, 0, expected)
        np.testing.assert_array_equal(made[:, : expected.shape[1]], expected)
        assert (made[:, expected.shape[1] :] == 0).all()
        # Otherwise it would show little.
        assert len(np.unique(made, axis=0)) > 4
        assert (made == 1).any(axis=1).sum() > 2


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        (MODELS["1.0"], (np.zeros(4, np.int32), np.zeros((1, 3), np.int32)), r"source \(4,\)"),
        (MODELS["1.0"], (np.zeros((1, 3), np.int32), np.zeros(4, np.int32)), r"target \(4,\)"),
        (MODELS["1.0"], (np.zeros((1, 3)), np.zeros((1, 3), np.int32)), "float"),
        (ENCODERS["1.0"], (np.zeros(4, np.int32),), r"tokens \(4,\)"),
        (T5Encoder(**{**SIZES, "num_buckets": 3}), (np.zeros((1, 3), np.int32),), "num_buckets=3"),
        (T5Encoder(**{**SIZES, "max_distance": 2}), (np.zeros((1, 3), np.int32),), "max_distance"),
        (T5Encoder(**{**SIZES, "activation": "rleu"}), (np.zeros((1, 3), np.int32),), "'relu'"),
        (T5Encoder(**SIZES, remat="all"), (np.zeros((1, 3), np.int32),), "remat='all'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(model, inputs, words):
    with pytest.raises(UserError, match=words):
        jax.eval_shape(model.init, jax.random.key(0), *inputs)
