"""Whisper against Hugging Face's ``WhisperForConditionalGeneration``."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import parity
import peers
import pytest

import zoo
from zoo.errors import UserError
from zoo.families import create_model, whisper
from zoo.families.whisper import whisper_table
from zoo.layers.audio import mel_filters, whisper_features
from zoo.models import Whisper
from zoo.pretrained import save_pretrained
from zoo.weights.tables import variables_from_reference, variables_to_reference

SMALL = Whisper(
    vocab_size=23, num_mels=5, features=8, num_encoder_layers=2, num_decoder_layers=2, num_heads=2,
    feedforward_features=12, source_length=7, max_length=9,
)  # fmt: skip
SCANNED = dataclasses.replace(SMALL, scan_layers=True)
TABLE = whisper_table(2, 2)


def inputs(rows=3, time=6):
    generator = np.random.default_rng(0)
    sound = generator.normal(size=(rows, 14, 5)).astype(np.float32)
    # Not token 1: the reference keeps the gradient of padding's vector at zero.
    return sound, generator.integers(2, 23, (rows, time))


@functools.cache
def reference():
    torch, transformers = peers.torch(), peers.transformers()
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=23, num_mel_bins=5, d_model=8, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=12,
        decoder_ffn_dim=12, max_source_positions=7, max_target_positions=9, init_std=0.3,
        pad_token_id=1, bos_token_id=1, eos_token_id=1, decoder_start_token_id=2,
        begin_suppress_tokens=None, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(1)
    for name, array in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):  # zeros and ones otherwise
            array.data += 0.3 * torch.randn(array.shape, generator=generator)
    return model.eval()


@functools.cache
def variables():
    like = jax.eval_shape(SMALL.init, jax.random.key(0), *inputs())
    arrays = {name: array.detach().numpy() for name, array in reference().named_parameters()}
    return variables_from_reference(arrays, TABLE, like)


def stacked(tree):
    """Variables or their gradients as ``SCANNED`` has them."""
    made = jax.tree.map(lambda x: x, tree)
    for stack in made["params"].values():
        layers = [stack.pop(f"layer_{number}") for number in range(2)]
        stack["layers"] = jax.tree.map(lambda *each: jnp.stack(each), *layers)
    return made


def test_it_computes_what_whisper_does_with_every_gradient():
    model = reference()
    # The positions are no parameter of ours: nothing trains them there either.
    encoder = model.model.encoder
    positions = encoder.embed_positions
    assert not positions.weight.requires_grad
    with pytest.MonkeyPatch.context() as patch:
        fixed = positions.weight.detach()
        patch.delitem(positions._parameters, "weight")
        patch.setitem(positions._buffers, "weight", fixed)
        parity.check_parity(
            SMALL,
            model,
            TABLE,
            *inputs(),
            axes=None,
            theirs=lambda model, sound, tokens: (
                model(sound.transpose(1, 2), decoder_input_ids=tokens).logits
            ),
        )


def test_the_features_are_the_extractors():
    peers.transformers()
    from transformers import WhisperFeatureExtractor

    generator = np.random.default_rng(0)
    time = np.arange(5000) / 16000
    tone = np.sin(2 * np.pi * 440 * time) + 0.1 * generator.normal(size=5000)
    for mels, sound in ((80, tone), (128, generator.normal(size=21_000)), (80, np.zeros(900))):
        theirs = WhisperFeatureExtractor(feature_size=mels, chunk_length=1)
        filters = mel_filters(mels, 400, 16000, slaney=True)
        np.testing.assert_allclose(filters, theirs.mel_filters, rtol=1e-12, atol=1e-15)
        made = jax.jit(functools.partial(whisper_features, filters=filters, length=16000))
        sound = sound.astype(np.float32)
        found = made(sound[None])[0]
        expected = theirs(sound, sampling_rate=16000, return_tensors="np").input_features[0]
        assert found.shape == (100, mels)
        np.testing.assert_allclose(found, expected.T, atol=2e-5)
        # What the reference computes with numpy in float64, it rounds to float32.
        whole = np.pad(sound, (0, max(0, 16000 - len(sound))))[None, :16000]
        exact = theirs._np_extract_fbank_features(whole.astype(np.float64), "cpu")[0]
        with jax.enable_x64(True):
            found = made(sound[None].astype(np.float64))[0]
        np.testing.assert_allclose(found, exact.T, atol=2e-7)


def test_a_row_of_features_depends_on_its_own_loudness_and_has_gradients():
    filters = mel_filters(20, 64, 16000, slaney=True)
    made = jax.jit(functools.partial(whisper_features, filters=filters, hop=32, length=320))
    samples = np.random.default_rng(0).normal(size=(2, 300)).astype(np.float32)
    samples[1] *= 1e-3
    together = made(samples)
    assert together.shape == (2, 10, 20)
    np.testing.assert_allclose(together[1:], made(samples[1:]), atol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: made(x)[0, 3].sum()))(samples)
    reached = np.flatnonzero(gradient[0])
    # Frame 3 has sample 96 in its middle, and a Hann window's first weight is zero.
    assert (reached.min(), reached.max()) == (65, 127)
    assert not gradient[1].any()


def test_bad_sounds_are_refused():
    filters = mel_filters(20, 64, 16000, slaney=True)
    with pytest.raises(UserError, match=r"\(300,\) must be \[batch, time\]"):
        whisper_features(np.zeros(300), filters)
    with pytest.raises(UserError, match="length=32 must be more than 32"):
        whisper_features(np.zeros((1, 300)), filters, length=32)


def test_it_begins_as_whisper_does():
    torch, transformers = peers.torch(), peers.transformers()
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=200, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=128, decoder_ffn_dim=128,
        max_source_positions=200, max_target_positions=100, pad_token_id=1,
    )  # fmt: skip
    theirs = dict(transformers.WhisperForConditionalGeneration(config).named_parameters())
    ours = Whisper(
        vocab_size=200, features=64, num_encoder_layers=2, num_decoder_layers=2, num_heads=2,
        feedforward_features=128, source_length=200, max_length=100,
    )  # fmt: skip
    # Of the kinds of keys this one is compiled in a fraction of the time.
    made = jax.jit(ours.init)(jax.random.key(0, impl="rbg"), **whisper.FAMILY.example(ours))
    for name, array in variables_to_reference(made, TABLE).items():
        expected = theirs[name].detach().numpy()
        assert array.shape == expected.shape
        if name == "model.encoder.embed_positions.weight":
            np.testing.assert_allclose(array, expected, atol=1e-4)
            continue
        np.testing.assert_allclose(array.std(), expected.std(), rtol=0.1, err_msg=name)
        np.testing.assert_allclose(array.mean(), expected.mean(), atol=3e-3, err_msg=name)


@pytest.mark.parametrize("module", [SMALL, SCANNED], ids=["apart", "scanned"])
def test_steps_with_the_cache_are_the_whole(module):
    sound, text = inputs(time=9)
    given = variables() if module is SMALL else stacked(variables())
    whole = jax.jit(module.apply)(given, sound, text)
    begin = jax.jit(functools.partial(module.apply, method="begin"))
    step = jax.jit(functools.partial(module.apply, method="step"))
    cache, found = begin(given, sound), []
    assert {x.shape[0] for x in jax.tree.leaves(cache) if x.ndim} == {3}
    assert len(cache.layers) == 2
    for first, last in ((0, 1), (1, 5), (5, 9)):
        logits, cache = step(given, text[:, first:last], cache)
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole, rtol=1e-4, atol=1e-5)


def test_no_gradient_from_later_tokens_and_from_other_rows():
    sound, text = (jnp.asarray(x) for x in inputs(rows=2, time=9))

    @jax.jit
    def gradient(at):
        def total(positions, sound):
            given = jax.tree.map(lambda x: x, variables())
            given["params"]["decoder"]["positions"]["embedding"] = positions
            return jnp.sin(SMALL.apply(given, sound, text)[0, at]).sum()

        positions = variables()["params"]["decoder"]["positions"]["embedding"]
        return jax.grad(total, argnums=(0, 1))(jnp.asarray(positions), sound)

    for at in (0, 4, 8):
        of_positions, of_sound = gradient(at)
        reached = np.abs(of_positions).sum(axis=1) > 0
        assert reached.tolist() == [position <= at for position in range(9)]
        # All of a sound is heard by every token, also what stands at its end.
        assert (np.abs(of_sound[0]).sum(axis=1) > 0).all()
        assert not of_sound[1].any()


def test_scanned_and_rematerialized_layers_compute_the_same_with_every_gradient():
    sound, text = inputs()

    def found(module, given, sound):
        def logits(params, sound):
            return module.apply({**given, "params": params}, sound, text)

        made, backward = jax.vjp(logits, given["params"], sound)
        return made, *backward(jnp.cos(made))

    with jax.enable_x64(True):
        given = jax.tree.map(lambda x: x.astype(np.float64), variables())
        run = jax.jit(found, static_argnums=0)
        logits, of_params, of_sound = run(SMALL, given, sound.astype(np.float64))
        expected = {"params": of_params}
        module = dataclasses.replace(SCANNED, remat="dots")
        ours, gradient, ours_of_sound = run(module, stacked(given), sound.astype(np.float64))
        np.testing.assert_allclose(ours, logits, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(ours_of_sound, of_sound, rtol=1e-9, atol=1e-12)
        expected = stacked(expected)["params"]
        assert jax.tree.structure(gradient) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12 * np.abs(logits).max())


def test_in_bfloat16_it_stays_bfloat16_with_its_cache():
    sound, text = inputs()
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), variables())
    begin = jax.jit(functools.partial(SMALL.apply, method="begin"))
    step = jax.jit(functools.partial(SMALL.apply, method="step"))
    logits, cache = step(half, text, begin(half, sound.astype(jnp.bfloat16)))
    assert {x.dtype for x in jax.tree.leaves(cache) if x.ndim} == {jnp.dtype(jnp.bfloat16)}
    assert logits.dtype == jnp.bfloat16
    exact = jax.jit(SMALL.apply)(variables(), sound, text)
    assert np.abs(logits.astype(jnp.float32) - exact).max() < 0.05 * np.abs(exact).max()


def test_dropout_is_where_whisper_has_it():
    module = dataclasses.replace(
        SMALL, dropout_rate=0.1, attention_dropout_rate=0.2, hidden_dropout_rate=0.3
    )

    def dropped():
        return module.init(
            {"params": jax.random.key(0), "dropout": jax.random.key(1)},
            *inputs(),
            train=True,
            capture_intermediates=lambda module, _: type(module).__name__ == "Dropout",
        )["intermediates"]

    found = sorted(leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(dropped)))
    # The embeddings; in each layer attention's weights, each part's contribution, hidden values.
    encoder = [(3, 2, 7, 7), (3, 7, 8), (3, 7, 12), (3, 7, 8)]
    decoder = [(3, 2, 6, 6), (3, 6, 8), (3, 2, 6, 7), (3, 6, 8), (3, 6, 12), (3, 6, 8)]
    assert found == sorted([(3, 7, 8), (3, 6, 8), *2 * encoder, *2 * decoder])


def test_published_models_have_the_published_numbers_of_parameters():
    torch, transformers = peers.torch(), peers.transformers()
    # Table 1 of the paper, in millions, with the positions of the encoder.
    published = {"tiny": 39, "base": 74, "small": 244, "medium": 769, "large_v3": 1550}
    for name, millions in published.items():
        module = create_model(f"whisper_{name}", scan_layers=True)
        example = whisper.FAMILY.example(module)
        shapes = jax.eval_shape(lambda m=module, e=example: m.init(jax.random.key(0), **e))
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert count / 1e6 == pytest.approx(millions, rel=0.035)
        config = transformers.WhisperConfig(**whisper.FAMILY.config_of(module))
        with torch.device("meta"):
            theirs = transformers.WhisperForConditionalGeneration(config)
        assert count == sum(array.numel() for array in theirs.parameters())


def spelled(form):
    """The arrays of the reference under the names that files have in the wild."""
    arrays = {name: array.detach().numpy() for name, array in reference().named_parameters()}
    assert "proj_out.weight" not in arrays
    if form == "tied twice":
        arrays["proj_out.weight"] = arrays["model.decoder.embed_tokens.weight"].copy()
    if form == "output alone":
        arrays["proj_out.weight"] = arrays.pop("model.decoder.embed_tokens.weight")
    if form == "without model.":
        arrays = {name.removeprefix("model."): array for name, array in arrays.items()}
    if form == "wrapped":
        arrays = {f"module.{name}": array for name, array in arrays.items()}
    return arrays


@pytest.mark.parametrize(
    "form", ["as saved", "tied twice", "output alone", "without model.", "wrapped"]
)
@pytest.mark.parametrize("module", [SMALL, SCANNED], ids=["apart", "scanned"])
def test_weights_come_in_and_go_out_bit_for_bit(form, module, tmp_path):
    from safetensors.numpy import save_file

    save_file(spelled(form), str(tmp_path / "model.safetensors"), metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(reference().config.to_json_string(use_diff=False))
    loaded = zoo.from_pretrained("whisper_tiny", tmp_path, scan_layers=module.scan_layers)
    assert loaded.module == module
    # The positions come from the file, not from the formula.
    table = whisper_table(2, 2, scan_layers=module.scan_layers)
    again = variables_to_reference(loaded.variables, table)
    expected = spelled("as saved")
    assert set(again) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


def test_a_wrong_second_copy_is_refused():
    arrays = spelled("tied twice")
    arrays["proj_out.weight"][0, 0] += 1
    like = jax.eval_shape(SMALL.init, jax.random.key(0), *inputs())
    with pytest.raises(UserError, match=r"proj_out\.weight is not equal to"):
        variables_from_reference(arrays, TABLE, like)
    del arrays["proj_out.weight"], arrays["model.encoder.conv2.bias"]
    with pytest.raises(UserError, match=r"conv2\.bias is missing"):
        variables_from_reference(arrays, TABLE, like)


@pytest.mark.parametrize("module", [SMALL, SCANNED], ids=["apart", "scanned"])
def test_transformers_opens_what_is_written(module, tmp_path):
    torch, transformers = peers.torch(), peers.transformers()
    given = variables() if module is SMALL else stacked(variables())
    save_pretrained(tmp_path, whisper.FAMILY, module, given, {})
    theirs, said = transformers.WhisperForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    sound, text = inputs()
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(sound).transpose(1, 2), decoder_input_ids=torch.from_numpy(text)
        ).logits
    found = jax.jit(module.apply)(given, sound, text)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    written = json.loads((tmp_path / "config.json").read_text())
    attributes = whisper.FAMILY.attributes_of(written)
    assert Whisper(**attributes, scan_layers=module.scan_layers) == module


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation_function": "relu"}, "activation_function='relu', the zoo's Whisper needs"),
        ({"scale_embedding": True}, "scale_embedding=True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"model_type": "bart"}, "model_type='bart'"),
        ({"decoder_ffn_dim": 99}, "decoder_ffn_dim=99, and encoder_ffn_dim is 1536"),
        ({"encoder_attention_heads": 8}, "decoder_attention_heads=6, and encoder_attention_heads"),
        ({"rotary": True}, "the key rotary=True is unknown"),
    ],
)
def test_configs_of_other_models_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        whisper.FAMILY.attributes_of({"model_type": "whisper", **change})


def test_a_published_config_is_read():
    # What openai/whisper-large-v3 has, of what differs from the defaults.
    config = {
        "_name_or_path": "openai/whisper-large-v3", "activation_dropout": 0.0,
        "activation_function": "gelu", "apply_spec_augment": False,
        "architectures": ["WhisperForConditionalGeneration"], "attention_dropout": 0.0,
        "begin_suppress_tokens": [220, 50257], "bos_token_id": 50257, "classifier_proj_size": 256,
        "d_model": 1280, "decoder_attention_heads": 20, "decoder_ffn_dim": 5120,
        "decoder_layerdrop": 0.0, "decoder_layers": 32, "decoder_start_token_id": 50258,
        "dropout": 0.0, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
        "encoder_layerdrop": 0.0, "encoder_layers": 32, "eos_token_id": 50257, "init_std": 0.02,
        "is_encoder_decoder": True, "mask_feature_length": 10, "mask_feature_min_masks": 0,
        "mask_feature_prob": 0.0, "mask_time_length": 10, "mask_time_min_masks": 2,
        "mask_time_prob": 0.05, "max_length": 448, "max_source_positions": 1500,
        "max_target_positions": 448, "median_filter_width": 7, "model_type": "whisper",
        "num_hidden_layers": 32, "num_mel_bins": 128, "pad_token_id": 50256,
        "scale_embedding": False, "torch_dtype": "float16", "transformers_version": "4.36.0.dev0",
        "use_cache": True, "use_weighted_layer_sum": False, "vocab_size": 51866,
    }  # fmt: skip
    assert Whisper(**whisper.FAMILY.attributes_of(config)) == create_model("whisper_large_v3")


@pytest.mark.parametrize(
    ("module", "sound", "text", "words"),
    [
        (SMALL, (2, 13, 5), (2, 3), r"\(2, 13, 5\) must be .*14 frames .* num_mels=5"),
        (SMALL, (2, 5, 14), (2, 3), r"\(2, 5, 14\)"),
        (SMALL, (14, 5), (2, 3), r"\(14, 5\)"),
        (SMALL, (2, 14, 5), (3,), r"the tokens \(3,\) must be \[batch, time\]"),
        (SMALL, (2, 14, 5), (2, 10), "10 tokens are more than max_length=9"),
        (dataclasses.replace(SMALL, num_heads=3), (2, 14, 5), (2, 3), "num_heads=3"),
        (dataclasses.replace(SMALL, features=7), (2, 14, 5), (2, 3), "features=7 must be even"),
    ],
)
def test_what_does_not_fit_is_refused(module, sound, text, words):
    with pytest.raises(UserError, match=words):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(sound), jnp.zeros(text, jnp.int32))


def test_begin_refuses_a_mask_and_too_many_tokens():
    def begin(*more):
        jax.eval_shape(
            functools.partial(SMALL.apply, method="begin"), variables(), inputs()[0], *more
        )

    with pytest.raises(UserError, match="source_mask must be None"):
        begin(np.ones((3, 7), bool))
    with pytest.raises(UserError, match="10 tokens are more than max_length=9"):
        jax.eval_shape(lambda: SMALL.apply(variables(), inputs()[0], None, 10, method="begin"))
