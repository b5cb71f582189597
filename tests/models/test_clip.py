"""CLIP and its towers against Hugging Face's models."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import parity
import peers
import pytest

import zoo
from zoo.errors import UserError
from zoo.families import clip as family
from zoo.families import create_model, find
from zoo.losses import contrastive
from zoo.models import CLIP, CLIPText, CLIPVision
from zoo.pretrained import load_variables, save_pretrained
from zoo.weights.tables import to_reference

TEXT = CLIPText(
    vocab_size=23, context=7, end_token=22, features=8, num_layers=2, num_heads=2,
    feedforward_features=12,
)  # fmt: skip
VISION = CLIPVision(
    image_size=6, patch_size=3, features=8, num_layers=2, num_heads=2, feedforward_features=12
)
# Sizes that differ between the towers wherever they may.
PAIR = CLIP(
    image_size=6, patch_size=3, vision_features=12, vision_layers=1, vision_heads=3,
    vision_feedforward_features=10, vocab_size=23, context=7, end_token=22, text_features=8,
    text_layers=2, text_heads=2, text_feedforward_features=12, projection_features=5,
)  # fmt: skip
MODELS = {"text": TEXT, "vision": VISION, "pair": PAIR}
FAMILIES = {"text": family.TEXT, "vision": family.VISION, "pair": family.FAMILY}


def tokens(rows=3, time=6):
    """Texts without the numbers 2 and 22 but for their ends, which is 22, at other places each."""
    made = np.random.default_rng(0).integers(3, 22, (rows, time))
    made[np.arange(rows), time - 1 - np.arange(rows)] = 22
    return made


def mask():
    """All that stands after the ends is padding."""
    ends = (tokens() == 22).argmax(axis=1)
    return np.arange(6) <= ends[:, None]


def images(rows=3):
    return np.random.default_rng(1).normal(size=(rows, 6, 6, 3)).astype(np.float32)


def inputs(name):
    return {"text": (tokens(),), "vision": (images(),), "pair": (images(), tokens())}[name]


def peer(name, **changes):
    """The reference of a tower or of the pair, with random numbers in all of its weights."""
    torch, transformers = peers.torch(), peers.transformers()
    config = (FAMILIES[name].config_of or dict)(dataclasses.replace(MODELS[name], **changes))
    (architecture,) = config.pop("architectures")
    kind = getattr(transformers, architecture)
    model = kind(kind.config_class(**config)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for array in model.parameters():
            array.copy_(0.3 * torch.randn(array.shape, generator=generator))
    return model


def flat(*arrays):
    return peers.torch().cat([array.flatten() for array in arrays])


def flat_ours(made):
    return jnp.concatenate([array.ravel() for array in made])


def test_the_text_tower_computes_what_cliptextmodel_does():
    # The old rule for the end, and the names of transformers 5.
    model = dataclasses.replace(TEXT, end_token=2)

    def theirs(reference, tokens):
        made = reference(input_ids=tokens)
        return flat(made.last_hidden_state, made.pooler_output)

    parity.check_parity(
        model,
        peer("text", end_token=2),
        family.TEXT.weights["transformers, without a prefix"](model, {}),
        tokens(),
        axes=None,
        ours=lambda apply, tokens: flat_ours(apply(tokens)),
        theirs=theirs,
    )


def test_the_image_tower_computes_what_clipvisionmodel_does():
    model = dataclasses.replace(VISION, activation="gelu")

    def theirs(reference, image):
        made = reference(pixel_values=image.permute(0, 3, 1, 2))
        return flat(made.last_hidden_state, made.pooler_output)

    parity.check_parity(
        model,
        peer("vision", activation="gelu"),
        family.VISION.weights["transformers, without a prefix"](model, {}),
        images(),
        axes=None,
        ours=lambda apply, image: flat_ours(apply(image)),
        theirs=theirs,
    )


def test_the_pair_computes_what_clipmodel_does_and_its_loss():
    def ours(apply, image, tokens):
        found = apply(image, tokens, mask())
        loss = contrastive(found.logits).mean()
        return flat_ours((found.image, found.text, found.logits, found.logits.T, loss))

    def theirs(reference, image, tokens):
        made = reference(
            input_ids=tokens,
            pixel_values=image.permute(0, 3, 1, 2),
            attention_mask=peers.torch().from_numpy(mask().astype(np.int64)),
            return_loss=True,
        )
        logits = made.logits_per_image, made.logits_per_text
        return flat(made.image_embeds, made.text_embeds, *logits, made.loss)

    model = dataclasses.replace(PAIR, text_layers=1)
    parity.check_parity(
        model,
        peer("pair", text_layers=1),
        family.FAMILY.weights["transformers"](model, {}),
        images(),
        tokens(),
        axes=None,
        ours=ours,
        theirs=theirs,
    )


@pytest.mark.parametrize(
    ("name", "published", "changes"),
    [
        ("text", "CLIPTextModel", {"activation": "gelu_tanh"}),
        ("text", "CLIPTextModelWithProjection", {"projection_features": 5}),
        ("vision", "CLIPVisionModel", {"epsilon": 1e-3}),
        ("vision", "CLIPVisionModelWithProjection", {"projection_features": 5}),
        ("pair", "CLIPModel", {}),
    ],
)
def test_a_folder_is_read_and_one_that_transformers_opens_is_written(
    name, published, changes, tmp_path
):
    torch = peers.torch()
    theirs = peer(name, **changes)
    theirs.save_pretrained(tmp_path / "theirs")
    known = FAMILIES[name]
    read = zoo.from_pretrained(known.published[published], tmp_path / "theirs")
    assert read.module == dataclasses.replace(MODELS[name], **changes)

    save_pretrained(tmp_path / "ours", known, read.module, read.variables, {})
    again = zoo.from_pretrained(known.published[published], tmp_path / "ours")
    assert again.module == read.module
    opened, told = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(opened).__name__ == published
    assert not any(told.values()), told
    arrays = dict(opened.named_parameters())
    for path, array in theirs.named_parameters():
        assert torch.equal(array, arrays[path]), path

    given = [torch.from_numpy(np.moveaxis(x, -1, 1) if x.ndim == 4 else x) for x in inputs(name)]
    with torch.no_grad():
        made = opened.eval()(*given[::-1])
    expected = {
        "CLIPTextModel": lambda: (made.last_hidden_state, made.pooler_output),
        "CLIPTextModelWithProjection": lambda: (made.last_hidden_state, made.text_embeds),
        "CLIPVisionModel": lambda: (made.last_hidden_state, made.pooler_output),
        "CLIPVisionModelWithProjection": lambda: (made.last_hidden_state, made.image_embeds),
        "CLIPModel": lambda: (made.image_embeds, made.text_embeds, made.logits_per_image),
    }[published]()
    found = jax.jit(read.module.apply)(read.variables, *inputs(name))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * b.abs().max())


def weights(name, **changes):
    """The reference's arrays by its own names."""
    return {key: array.numpy() for key, array in peer(name, **changes).state_dict().items()}


def assert_read_and_written(name, model, file, expected):
    """Reads the arrays of a file, and compares bit for bit what is written of them."""
    family_of = FAMILIES[name]
    variables = load_variables(family_of, model, file, family_of.example(model))
    table = family_of.weights["transformers"](model, variables["params"])
    written = to_reference(variables["params"], table)
    assert written.keys() == expected.keys()
    for key, array in written.items():
        np.testing.assert_array_equal(array, expected[key], err_msg=key)


@pytest.mark.parametrize("name", ["text", "vision"])
def test_every_form_of_a_towers_names_is_read(name):
    model, own = MODELS[name], weights(name)
    projecting, whole = {"projection_features": 5}, weights(name, projection_features=5)
    named = {f"{name}_model.{key}": array for key, array in own.items()}
    # Older versions of transformers saved the numbers of the positions.
    numbers = {f"{name}_model.embeddings.position_ids": np.arange(5)[None]}
    for file in (
        own,
        named,
        named | numbers,
        own | {"embeddings.position_ids": np.arange(5)[None]},
        {f"module.{key}": array for key, array in named.items()},
        {f"_orig_mod.{key}": array for key, array in own.items()},
    ):
        assert_read_and_written(name, model, file, named)
    for file in (whole, whole | numbers):
        assert_read_and_written(name, dataclasses.replace(model, **projecting), file, whole)


def test_the_file_of_a_pair_is_read_whole_or_a_tower_of_it():
    pair = weights("pair")
    older = pair | {
        f"{tower}_model.embeddings.position_ids": np.arange(5)[None] for tower in ("text", "vision")
    }
    for file in (pair, older, {f"module.{key}": array for key, array in pair.items()}):
        assert_read_and_written("pair", PAIR, file, pair)
    text = dataclasses.replace(TEXT, projection_features=5)
    vision = CLIPVision(
        image_size=6, patch_size=3, features=12, num_layers=1, num_heads=3,
        feedforward_features=10, projection_features=5,
    )  # fmt: skip
    for name, tower, projection in (("text", text, "text"), ("vision", vision, "visual")):
        own = {key: array for key, array in pair.items() if key.startswith(f"{name}_model.")}
        last = f"{projection}_projection.weight"
        without = dataclasses.replace(tower, projection_features=0)
        for file in (pair, older):
            assert_read_and_written(name, tower, file, own | {last: pair[last]})
            assert_read_and_written(name, without, file, own)


def test_what_is_left_over_or_missing_is_refused():
    pair, example = weights("pair"), family.TEXT.example(TEXT)
    with pytest.raises(UserError, match=r"text_model\.head is not in the table"):
        load_variables(family.TEXT, TEXT, pair | {"text_model.head": np.ones(3)}, example)
    del pair["text_model.encoder.layers.1.mlp.fc1.weight"], pair["logit_scale"]
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.fc1\.weight is missing"):
        load_variables(family.TEXT, TEXT, pair, example)
    with pytest.raises(UserError, match="logit_scale is missing"):
        load_variables(family.FAMILY, PAIR, pair, family.FAMILY.example(PAIR))


def drawn(model, *inputs):
    """Variables with random numbers, drawn without compiling anything."""
    generator = np.random.default_rng(2)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * generator.normal(size=leaf.shape)),
        jax.eval_shape(model.init, jax.random.key(0), *inputs),
    )


def test_a_token_sees_the_earlier_ones_that_are_no_padding():
    text = tokens()[2:]
    seen = np.array([[True, True, True, True, False, True]])  # the end is the fourth
    variables = drawn(TEXT, text)

    @jax.jit
    def reached(positions, mask):
        def vectors(positions):
            changed = {**variables["params"], "positions": {"embedding": positions}}
            x, pooled = TEXT.apply({"params": changed}, text, mask)
            return jnp.concatenate([x[0], pooled]).sum(axis=-1)

        return jnp.abs(jax.jacrev(vectors)(positions)[:, :6]).sum(axis=-1) > 0

    positions = variables["params"]["positions"]["embedding"]
    earlier = np.tril(np.ones((6, 6), bool))
    for given in (np.ones_like(seen), seen):
        found = reached(positions, given)
        # A padding token's own vector is its sum so far.
        expected = earlier & given | np.eye(6, dtype=bool)
        np.testing.assert_array_equal(found[:6], expected)
        np.testing.assert_array_equal(found[6], expected[3])


def stacked(params):
    """A tower's parameters as with ``scan_layers``."""
    blocks = params["encoder"].values()
    return {**params, "encoder": {"blocks": jax.tree.map(lambda *each: jnp.stack(each), *blocks)}}


def test_scanned_blocks_compute_the_same_with_every_gradient():
    scanned = dataclasses.replace(TEXT, scan_layers=True)

    def found(model, params):
        made, backward = jax.vjp(
            lambda p: flat_ours(model.apply({"params": p}, tokens(), mask())), params
        )
        return made, *backward(jnp.cos(made))

    with jax.enable_x64(True):
        params = drawn(TEXT, tokens())["params"]
        plain, gradient = jax.jit(found, static_argnums=0)(TEXT, params)
        ours, of_stacked = jax.jit(found, static_argnums=0)(scanned, stacked(params))
        np.testing.assert_allclose(ours, plain, rtol=1e-12, atol=1e-12)
        expected = stacked(gradient)
        assert jax.tree.structure(of_stacked) == jax.tree.structure(expected)
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
        for a, b in zip(jax.tree.leaves(of_stacked), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12 * largest)


def test_the_file_of_a_pair_is_one_for_scanned_blocks_and_others():
    pair = weights("pair")
    scanned = dataclasses.replace(PAIR, scan_layers=True)
    assert_read_and_written("pair", scanned, pair, pair)
    read = load_variables(family.FAMILY, scanned, pair, family.FAMILY.example(scanned))["params"]
    other = load_variables(family.FAMILY, PAIR, pair, family.FAMILY.example(PAIR))["params"]
    for tower in ("text", "vision"):
        jax.tree.map(np.testing.assert_array_equal, read[tower], stacked(other[tower]))


def test_it_begins_as_clip_does():
    torch, transformers = peers.torch(), peers.transformers()
    torch.manual_seed(0)
    ours = dataclasses.replace(
        PAIR, vocab_size=300, context=60, end_token=299, image_size=24, text_features=64,
        text_layers=1, text_feedforward_features=48, vision_features=60, vision_layers=2,
        vision_feedforward_features=90, projection_features=40,
    )  # fmt: skip
    config = family.FAMILY.config_of(ours)
    theirs = dict(transformers.CLIPModel(transformers.CLIPConfig(**config)).named_parameters())
    table = family.FAMILY.weights["transformers"](ours, {})
    # Of this kind of keys it is compiled in a fraction of the time.
    key = jax.random.key(0, impl="rbg")
    example = np.zeros((1, 24, 24, 3), np.float32), np.full((1, 1), 299)
    params = jax.jit(ours.init)(key, *example)["params"]
    for name, array in to_reference(params, table).items():
        expected = theirs[name].detach().numpy()
        assert array.shape == expected.shape
        if name.endswith("class_embedding"):  # too few numbers to compare their spread
            assert 0.5 * 60**-0.5 < array.std() < 2 * 60**-0.5
            continue
        np.testing.assert_allclose(array.std(), expected.std(), rtol=0.1, err_msg=name)
        np.testing.assert_allclose(array.mean(), expected.mean(), atol=0.01, err_msg=name)


def test_a_text_without_an_end_is_refused_and_compiled_it_is_nan():
    text = tokens()
    text[1] = 5
    shallow = dataclasses.replace(TEXT, num_layers=0)
    variables = drawn(shallow, text)
    with pytest.raises(UserError, match="the text 1 has no end_token=22"):
        shallow.apply(variables, text)
    x, pooled = jax.jit(shallow.apply)(variables, text)
    assert np.isfinite(x).all()
    assert np.isnan(pooled).all(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: TEXT.init(jax.random.key(0), np.zeros(4, int)), r"\(4,\) must be \[batch, time"),
        (lambda: TEXT.init(jax.random.key(0), np.zeros((1, 8), int)), "8 tokens .* context=7"),
        (lambda: TEXT.init(jax.random.key(0), tokens(), mask()[:, :2]), r"the mask \(3, 2\)"),
        (lambda: TEXT.init(jax.random.key(0), np.full((1, 2), 23)), "vocab_size=23"),
        (lambda: VISION.init(jax.random.key(0), images()[:, :3]), "image_size=6"),
        (lambda: VISION.init(jax.random.key(0), images()[..., :2]), "channels=3"),
        (lambda: dataclasses.replace(VISION, patch_size=4).init(
            jax.random.key(0), images()), "patch_size=4 must divide image_size=6"),
        (lambda: dataclasses.replace(PAIR, projection_features=0).init(
            jax.random.key(0), images(), tokens()), "projection_features=0"),
        (lambda: PAIR.init(jax.random.key(0), images()[..., :2], tokens()), "CLIP: the images"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(UserError, match=words):
        jax.eval_shape(call)


@pytest.mark.parametrize(
    ("name", "count"),
    # The two that the authors' files have, and what the larger image adds: positions.
    [
        ("clip_vit_base_patch32", 151_277_313),
        ("clip_vit_base_patch16", 149_620_737),
        ("clip_vit_large_patch14", 427_616_513),
        ("clip_vit_large_patch14_336", 427_616_513 + (576 - 256) * 1024),
    ],
)
def test_the_sizes_have_as_many_parameters_as_the_published_ones(name, count):
    model = create_model(name, scan_layers=True)
    inputs = find(name).example(model)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_images_are_prepared_as_clip_does():
    theirs = peers.transformers().CLIPImageProcessor()
    ours = family.FAMILY.preprocessing["clip_vit_base_patch32"]
    assert theirs.size["shortest_edge"] == ours.resize
    assert theirs.crop_size["height"] == theirs.crop_size["width"] == ours.size
    assert int(theirs.resample) == 3  # bicubic
    assert ours.interpolation == "bicubic"
    np.testing.assert_allclose(ours.mean, theirs.image_mean, rtol=1e-7)
    np.testing.assert_allclose(ours.std, theirs.image_std, rtol=1e-7)


def read_config(name, config):
    """What is read of a file, as JSON has it."""
    return FAMILIES[name].attributes_of(json.loads(json.dumps(config)))


def test_the_defaults_of_a_config_are_the_references():
    transformers = peers.transformers()
    for name, kind, model in (
        ("pair", transformers.CLIPConfig, CLIP()),
        ("text", transformers.CLIPTextConfig, CLIPText()),
        ("vision", transformers.CLIPVisionConfig, CLIPVision()),
    ):
        module = type(model)
        full = json.loads(kind().to_json_string(use_diff=False))
        assert module(**read_config(name, full)) == model
        # Files of older versions lack what does not differ from the defaults.
        assert module(**read_config(name, {})) == model


# What files of transformers 4 say of every model.
EVERYWHERE = {
    "architectures": None, "bad_words_ids": None, "begin_suppress_tokens": None,
    "bos_token_id": None, "cross_attention_hidden_size": None, "decoder_start_token_id": None,
    "eos_token_id": None, "exponential_decay_length_penalty": None, "finetuning_task": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "pad_token_id": None,
    "prefix": None, "problem_type": None, "sep_token_id": None, "suppress_tokens": None,
    "task_specific_params": None, "tokenizer_class": None, "torch_dtype": None,
    "_name_or_path": "", "add_cross_attention": False, "chunk_size_feed_forward": 0,
    "diversity_penalty": 0.0, "do_sample": False, "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0, "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False, "is_encoder_decoder": False, "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0, "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0,
    "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1, "output_attentions": False,
    "output_hidden_states": False, "output_scores": False, "pruned_heads": {},
    "remove_invalid_values": False, "repetition_penalty": 1.0, "return_dict": True,
    "return_dict_in_generate": False, "temperature": 1.0, "tf_legacy_loss": False,
    "tie_encoder_decoder": False, "tie_word_embeddings": True, "top_k": 50, "top_p": 1.0,
    "torchscript": False, "transformers_version": "4.16.0", "typical_p": 1.0,
    "use_bfloat16": False, "dropout": 0.0, "initializer_factor": 1.0, "initializer_range": 0.02,
}  # fmt: skip


def old_config():
    """A file as the authors' large model has it; the reference changes what it is given."""
    end = {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}
    return {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 9,
        "initializer_factor": 1.0, "logit_scale_init_value": 2.6592, "torch_dtype": "float32",
        "transformers_version": None,
        "text_config": {**EVERYWHERE, "model_type": "clip_text_model", "hidden_size": 64, **end},
        "vision_config": {**EVERYWHERE, "model_type": "clip_vision_model", "hidden_size": 96},
    }  # fmt: skip


def test_sections_of_the_older_spelling_count():
    # They have what differs from the defaults; the end of a text is then a default again.
    older = {
        "text_config_dict": {
            "hidden_size": 64, "num_attention_heads": 4, "projection_dim": 11, "hidden_act": "gelu",
        },
        "vision_config_dict": {"hidden_size": 96, "num_hidden_layers": 3, "hidden_act": "gelu"},
    }  # fmt: skip
    made = CLIP(**read_config("pair", old_config() | older))
    assert made == CLIP(
        text_features=64, text_heads=4, vision_features=96, vision_layers=3, activation="gelu",
        projection_features=9,
    )  # fmt: skip
    theirs = peers.transformers().CLIPConfig(**old_config(), **older)
    assert made == CLIP(**read_config("pair", json.loads(theirs.to_json_string(use_diff=False))))
    text = CLIPText(**read_config("text", old_config() | older))
    assert text == CLIPText(features=64, num_heads=4, activation="gelu")

    without = old_config() | dict.fromkeys(older)
    assert read_config("pair", without)["end_token"] == 2
    assert CLIPText(**read_config("text", without)) == CLIPText(features=64, end_token=2)
    assert CLIPVision(**read_config("vision", without)) == CLIPVision(features=96)


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("pair", {"model_type": "siglip"}, "model_type='siglip', the zoo's CLIP reads 'clip'"),
        ("text", {"model_type": "clip_vision_model"}, "'clip_text_model' and 'clip'"),
        ("text", {"rope_theta": 1e4}, "rope_theta=10000.0 is unknown"),
        ("pair", {"text_config": {"hidden_act": "mish"}}, "text_config.hidden_act='mish'"),
        ("pair", {"vision_config": {"attention_bias": 1}}, "vision_config.attention_bias=1 is"),
        ("pair", {"vision_config": 3}, "vision_config=3 must be a JSON object"),
        ("vision", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        (
            "pair",
            {"vision_config": {"layer_norm_eps": 1e-6}},
            "epsilon is 1e-05 for texts and 1e-06 for images",
        ),
    ],
)
def test_a_config_that_the_zoo_cannot_have_is_refused(name, config, words):
    with pytest.raises(UserError) as refusal:
        read_config(name, config)
    assert words in str(refusal.value)
