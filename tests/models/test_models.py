"""What holds for every model; a new one joins with a line in ``SMALL``."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import zoo
from zoo import config
from zoo.catalog import catalog
from zoo.errors import UserError
from zoo.families import FAMILIES, by_name, create_model, find, list_models
from zoo.models import kinds, mobilenet


def defaults(name):
    """The attributes of a model's linen module with their values, read from the module itself.

    Without ``remat``, which a config has as ``train.remat``.
    """
    module = create_model(name)
    return {
        field.name: getattr(module, field.name)
        for field in dataclasses.fields(module)
        if field.name not in ("name", "parent", "remat")
    }


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def tokens(seed, *shape):
    return jax.random.randint(jax.random.key(seed), shape, 1, 11)


def ended(seed, *shape):
    """Texts that end with the token 11."""
    return tokens(seed, *shape).at[:, -1].set(11)


BERT = {
    "vocab_size": 11, "num_positions": 9, "num_layers": 1, "num_heads": 2, "features": 8,
    "feedforward_features": 12,
}  # fmt: skip

# All sizes and both versions of T5 are the same then; ``test_t5`` has them apart.
T5 = {
    "features": 8, "num_heads": 2, "head_features": 3, "feedforward_features": 12,
    "num_buckets": 4, "max_distance": 4, "activation": "gelu_tanh", "gated": True,
}  # fmt: skip
T5_OUTPUT = {
    "num_encoder_layers": 1, "num_decoder_layers": 1, "tie_weights": False, "scale_logits": False,
}  # fmt: skip

# Name -> attributes that make it small, and its inputs for a batch.
SMALL = {
    **{name: (BERT, lambda n: (tokens(1, n, 7),)) for name in list_models("*bert*")},
    **{
        # So wide that what is learnt by heart begins to be learnt in time.
        name: (
            BERT | {"features": 16, "feedforward_features": 48}, lambda n: (tokens(1, n, 7),)
        )
        for name in list_models("*bert_masked_lm")
    },
    **{
        name: (BERT | {"num_classes": 5}, lambda n: (tokens(1, n, 7), jnp.full(n, 6)))
        for name in ("bert_classifier", "roberta_classifier")
    },
    **{
        name: (BERT | {"num_classes": 5}, lambda n: (tokens(1, n, 7),))
        for name in list_models("*bert_token_classifier")
    },
    **{
        name: (
            {
                "image_size": 4, "patch_size": 2, "vision_features": 6, "vision_layers": 1,
                "vision_heads": 2, "vision_feedforward_features": 8, "vocab_size": 12,
                "context": 7, "end_token": 11, "text_features": 8, "text_layers": 1,
                "text_heads": 2, "text_feedforward_features": 10, "projection_features": 3,
            },
            lambda n: (normal(1, n, 4, 4, 3), ended(1, n, 6)),
        )
        for name in list_models("clip_vit*")
    },
    **{
        name: (
            {
                "vocab_size": 12, "context": 7, "end_token": 11, "features": 8, "num_layers": 2,
                "num_heads": 2, "feedforward_features": 10,
            },
            lambda n: (ended(1, n, 6),),
        )
        for name in list_models("clip_text*")
    },
    **{
        name: (
            {
                "image_size": 4, "patch_size": 2, "features": 8, "num_layers": 2, "num_heads": 2,
                "feedforward_features": 10, "projection_features": 3,
            },
            lambda n: (normal(1, n, 4, 4, 3),),
        )
        for name in list_models("clip_vision*")
    },
    "cnn": (
        {"num_classes": 5, "features": (4, 6, 8), "hidden_features": 16},
        lambda n: (normal(1, n, 13, 13, 3),),
    ),
    "convnext_tiny": (
        {"num_classes": 5, "stages": (1, 1), "features": (4, 6)},
        lambda n: (normal(1, n, 16, 16, 3),),
    ),
    "densenet121": (
        {"num_classes": 5, "blocks": (1, 2), "growth": 4, "features": 6, "bottleneck": 2},
        lambda n: (normal(1, n, 17, 17, 3),),
    ),
    "efficientnet_b0": (
        {
            "num_classes": 5, "stages": ((1, 3, 1, 8, 1), (2, 5, 2, 8, 2)), "features": 8,
            "last_features": 12, "dropout_rate": 0.0, "stochastic_depth_rate": 0.0,
        },
        lambda n: (normal(1, n, 9, 9, 3),),
    ),
    **{
        name: ({"num_classes": 5, "dropout_rate": 0.0}, lambda n: (normal(1, n, 16, 16, 3),))
        for name in list_models("mobilenet*")
    },
    "gpt": (
        {"vocab_size": 11, "context": 9, "num_layers": 2, "num_heads": 2, "features": 8},
        lambda n: (tokens(1, n, 7),),
    ),
    **{
        # All that sizes differ in is given, so that one of them stands for the others.
        name: (
            {
                "vocab_size": 11, "context": 9, "num_layers": 2, "num_heads": 4,
                "num_key_value_heads": 2, "features": 8, "head_features": 4,
                "feedforward_features": 10, "epsilon": 1e-5, "use_bias": True,
                "use_query_key_norm": True, "windows": (4,), "tie_embeddings": False,
                "rope_base": 50.0, "rope_scaling": "llama3", "rope_factor": 4.0,
                "rope_original_context": 4,
            },
            lambda n: (tokens(1, n, 7),),
        )
        for name in (*list_models("llama*"), *list_models("mistral*"), *list_models("qwen*"))
    },
    "forecaster": (
        # One quantile: several are in order, which what is learnt by heart here is not.
        {"horizon": 4, "quantiles": (0.5,), "period": 4.0, "features": 6},
        lambda n: (normal(1, n, 9), jnp.arange(n) * 1.0),
    ),
    "speech_recognizer": (
        {"num_symbols": 5, "num_mels": 8, "features": 6, "window": 64, "hop": 32},
        lambda n: (normal(1, n, 500), jnp.full(n, 500)),
    ),
    "text_classifier": (
        {"num_classes": 5, "vocab_size": 11, "embed_features": 5, "features": 6},
        lambda n: (tokens(1, n, 7), jnp.full(n, 7)),
    ),
    "rnn": (
        {"vocab_size": 11, "embed_features": 5, "features": 6},
        lambda n: (tokens(1, n, 7),),
    ),
    "text_to_image": (
        {
            "vocab_size": 11, "text_features": 8, "text_layers": 1, "text_heads": 2,
            # One level: half of the compiling; test_unet.py has more.
            "max_length": 5, "features": (4,), "attention": (True,), "num_heads": 2,
            "norm_groups": 2,
        },
        lambda n: (normal(1, n, 4, 6, 3), jnp.arange(n) * 100, tokens(2, n, 5)),
    ),
    **{
        name: (
            {"num_classes": 5, "stages": (1, 2), "features": 4, "stem": "cifar"},
            lambda n: (normal(1, n, 8, 8, 3),),
        )
        for name in list_models("resnet*")
    },
    "squeezenet1_1": (
        {"num_classes": 5, "stages": ((2, 2), (3,)), "features": 6, "dropout_rate": 0.0},
        lambda n: (normal(1, n, 17, 17, 3),),
    ),
    **{
        name: (
            {"num_classes": 5, "stages": (1, 1), "features": (6, 8), "hidden_features": 32},
            lambda n: (normal(1, n, 8, 8, 3),),
        )
        for name in list_models("vgg*")
    },
    **{
        name: (
            {
                "num_classes": 5, "image_size": 8, "patch_size": 4, "features": 8,
                "num_layers": 2, "num_heads": 2, "feedforward_features": 12,
            },
            lambda n: (normal(1, n, 8, 8, 3),),
        )
        for name in list_models("vit*")
    },
    **{
        name: (
            {
                **T5, "vocab_size": 11,
                **({"num_layers": 1} if name.endswith("_encoder") else T5_OUTPUT),
            },
            lambda n, name=name: (tokens(1, n, 6), tokens(2, n, 4))[: 1 + ("encoder" not in name)],
        )
        for name in list_models("t5_*")
    },
    **{
        name: (
            {
                "vocab_size": 11, "num_mels": 4, "features": 8, "num_encoder_layers": 1,
                "num_decoder_layers": 1, "num_heads": 2, "feedforward_features": 12,
                "source_length": 5, "max_length": 6,
            },
            lambda n: (normal(1, n, 10, 4), tokens(2, n, 4)),
        )
        for name in list_models("whisper*")
    },
    "transformer": (
        {
            "source_vocab_size": 11, "target_vocab_size": 11, "features": 8, "num_heads": 2,
            "num_encoder_layers": 1, "num_decoder_layers": 1, "feedforward_features": 12,
        },
        lambda n: (tokens(1, n, 6), tokens(2, n, 4)),
    ),
}  # fmt: skip


def one_worker_each(names):
    """What is compiled for a model is compiled once."""
    return [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]


every_model = pytest.mark.parametrize("name", one_worker_each(list_models()))
# Those that are no other's twin when they are small, as ResNet-34 is ResNet-18's; the large
# MobileNet has the small one's blocks, and takes minutes. RoBERTa's ends are those of BERT.
small_models = list(
    {
        repr(create_model(name, **SMALL[name][0])): name
        for name in reversed(list_models())
        if name != "mobilenet_v3_large" and not name.startswith("roberta_")
    }.values()
)[::-1]
every_small_model = pytest.mark.parametrize("name", one_worker_each(small_models))
# Those that a config can train.
trained_kinds = {kind for wing in catalog().wings.values() for kind in wing.kinds}
every_trained_model = pytest.mark.parametrize(
    "name", one_worker_each(name for name in list_models() if find(name).kind in trained_kinds)
)
every_vision_model = pytest.mark.parametrize(
    "name", one_worker_each(name for name in small_models if "channels" in defaults(name))
)


@pytest.fixture(autouse=True, scope="module")
def fewer_blocks():
    """A MobileNet of all kinds of blocks; ``test_vision`` has it as it is published."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(mobilenet.SIZES, "small", ((*mobilenet.SMALL[:2], *mobilenet.SMALL[3:5]), 16))
        yield


def make(name, batch=4):
    attributes, inputs = SMALL[name]
    model = create_model(name, **attributes)
    x = inputs(batch)
    # Drawn here: to compile the initialisation takes far longer than all else in these tests.
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        # Neither dead nor overflowing after many layers: by the number of inputs.
        spread = 0.3 if leaf.ndim < 2 else np.prod(leaf.shape[:-1]) ** -0.5
        numbers = generator.normal(size=leaf.shape) * spread
        # A variance is positive.
        return jnp.asarray(np.abs(numbers) + 0.5 if path[-1].key == "var" else numbers, leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(
        draw, jax.eval_shape(model.init, jax.random.key(0), *x)
    )
    return model, variables, x


@partial(jax.jit, static_argnums=0)
def output(model, variables, x):
    """The first result, compiled; the second, where there is one, is a cache."""
    return _first(model.apply(variables, *x))


def _first(made):
    return made[0] if isinstance(made, tuple) else made


def cast(tree, dtype):
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )


@every_small_model
def test_parameters_are_float32_and_depend_on_the_key_alone(name):
    model, _, x = make(name)
    init = jax.jit(lambda key: model.init(key, *x))
    # Of the kinds of keys this one is compiled in a fraction of the time.
    variables, again, other = (init(jax.random.key(seed, impl="rbg")) for seed in (0, 0, 2))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, jax.eval_shape(model.init, jax.random.key(0), *(part[:1] for part in x))
    )
    for leaf, same in zip(jax.tree.leaves(variables), jax.tree.leaves(again), strict=True):
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, same)
    assert any(
        (leaf != changed).any()
        for leaf, changed in zip(jax.tree.leaves(variables), jax.tree.leaves(other), strict=True)
    )


@every_small_model
def test_a_row_does_not_depend_on_the_other_rows(name):
    model, variables, x = make(name)
    together = output(model, variables, x)
    for row in range(4):
        alone = output(model, variables, [part[row : row + 1] for part in x])
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-4, atol=1e-5)


@every_small_model
def test_compiled_equals_not_compiled(name):
    model, variables, x = make(name)
    with jax.disable_jit():
        plain = _first(model.apply(variables, *x))
    np.testing.assert_allclose(output(model, variables, x), plain, rtol=1e-4, atol=1e-5)


@every_small_model
def test_bfloat16_stays_bfloat16_and_near(name):
    model, variables, x = make(name)
    half = output(model, cast(variables, jnp.bfloat16), cast(x, jnp.bfloat16))
    exact = output(model, variables, x)
    assert half.dtype == jnp.bfloat16
    assert np.abs(half.astype(jnp.float32) - exact).max() < 0.05 * np.abs(exact).max() + 0.02


@every_small_model
def test_gradient_is_the_same_on_one_device_and_on_two(name):
    model, variables, x = make(name)

    def loss(variables, x):
        return jnp.square(output(model, variables, x)).mean()

    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    rows = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    one = jax.jit(jax.grad(loss))(variables, x)
    two = jax.jit(jax.grad(loss))(variables, rows)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert len(b.devices()) == 2
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5)


@every_small_model
def test_it_learns_a_tiny_batch_by_heart(name):
    model, variables, x = make(name)
    target = jax.nn.one_hot(jnp.arange(output(model, variables, x).size) % 3, 1)
    target = target.reshape(output(model, variables, x).shape)
    optimizer = optax.adam(1e-2)

    def made(params):
        if "batch_stats" not in variables:
            return output(model, variables | {"params": params}, x)
        # As it is trained: with the statistics of the batch.
        return model.apply(
            variables | {"params": params}, *x, train=True, mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )[0]  # fmt: skip

    def loss(params):
        return jnp.square(made(params) - target).mean()

    @jax.jit
    def learn(params):
        def step(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), length=150)[1]

    losses = learn(variables["params"])
    assert losses[-1] < 0.5 * min(losses[0], jnp.square(target - target.mean()).mean())


@pytest.mark.parametrize("wrong", ["channels first", "one channel", "integers", "one image"])
@every_vision_model
def test_images_that_it_cannot_read_are_refused_with_the_fix(name, wrong):
    model, inputs = create_model(name, **SMALL[name][0]), SMALL[name][1]
    image, *others = inputs(2)
    made, words = {
        "channels first": (jnp.moveaxis(image, -1, 1), "use jnp.moveaxis(images, 1, -1)"),
        "one channel": (image[..., :1], "reads channels=3. Make it with channels=1"),
        "integers": (image.astype(jnp.uint8), "uint8, they must be floating-point numbers"),
        "one image": (image[0], "must be [batch, height, width, channels]"),
    }[wrong]
    with pytest.raises(UserError) as refusal:
        jax.eval_shape(model.init, jax.random.key(0), made, *others)
    text = str(refusal.value)
    assert text.startswith(f"{type(model).__name__}: the images ")
    assert words in text
    assert wrong == "integers" or str(made.shape) in text


@every_model
def test_it_says_how_many_channels_it_reads_if_it_reads_images(name):
    x, *_ = jax.eval_shape(lambda: SMALL[name][1](2))
    assert ("channels" in defaults(name)) == (x.ndim == 4)


@every_vision_model
def test_it_reads_images_of_as_many_channels_as_it_is_told(name):
    attributes, inputs = SMALL[name]
    image, *others = inputs(2)
    model = create_model(name, **attributes, channels=2)
    made, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image[..., :2], *others)
    special = {"denoiser": (2, 4, 6, 2), "image_text": (2, 3), "image_encoder": (2, 5, 8)}
    assert _first(made).shape == special.get(find(name).kind, (2, 5))


def config_of(name, **attributes):
    """A config of a model and the first task that trains its kind."""
    task = next(wing for wing in catalog().wings.values() if find(name).kind in wing.kinds)
    made = config.base(name, task.name)
    if "image_size" in made.model:
        made.data.image_size = made.model.image_size
    with made.ignore_type():
        for attribute, value in attributes.items():
            made.model[attribute] = value
    return made


def never_allowed(default):
    """A value like a default that no attribute of any model may have."""
    if isinstance(default, tuple):
        return tuple(never_allowed(value) for value in default[:1])
    return {bool: "yes", int: -1, float: -1.0, str: "nonsense"}[type(default)]


def is_numeric(value):
    if isinstance(value, tuple):
        return all(map(is_numeric, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


@every_trained_model
def test_fields_of_a_config_are_the_modules_attributes(name):
    made = config_of(name).model.to_dict()
    assert made == {"name": name} | defaults(name)


@every_model
def test_fields_of_a_family_are_the_modules_attributes(name):
    fields = find(name).fields(name)
    assert {attribute: field.default for attribute, field in fields.items()} == defaults(name)


@every_trained_model
def test_a_config_accepts_every_default(name):
    assert config.check(config_of(name)).model.to_dict() == {"name": name} | defaults(name)


@every_trained_model
def test_a_config_refuses_wrong_values_of_every_attribute_by_path_and_value(name):
    for attribute, default in defaults(name).items():
        wrong = never_allowed(default)
        with pytest.raises(config.ConfigError) as refusal:
            config.check(config_of(name, **{attribute: wrong}))
        assert str(refusal.value).startswith(f"model.{attribute}={wrong!r} "), str(refusal.value)


@every_model
def test_every_attribute_that_is_a_number_has_a_rule(name):
    fields = find(name).fields(name)
    numbers = [attribute for attribute, value in defaults(name).items() if is_numeric(value)]
    assert numbers
    for attribute in numbers:
        assert fields[attribute].rule.words, attribute
        assert not fields[attribute].rule.allows(never_allowed(defaults(name)[attribute]))


@every_model
def test_every_choice_of_the_config_is_one_the_module_knows(name):
    attributes, inputs = SMALL[name]
    for attribute, field in find(name).fields(name).items():
        for choice in field.rule.choices:
            model = create_model(name, **attributes | {attribute: choice})
            jax.eval_shape(model.init, jax.random.key(0), *inputs(1))


# A user's own loss trains them: see ``zoo.models.kinds``.
WITHOUT_TASK = {
    "image_encoder", "image_text", "masked_lm", "question_answering", "speech_to_text",
    "text_encoder", "token_classifier",
}  # fmt: skip


def test_a_task_trains_every_kind_but_those_that_say_so():
    found = {family.kind for family in FAMILIES}
    assert found - trained_kinds == WITHOUT_TASK
    assert all(f"``{kind}``" in kinds.__doc__ for kind in found)


def test_models_are_listed_and_made_by_name():
    assert zoo.list_models() == sorted(by_name()) == sorted(SMALL)
    assert list_models("cn*") == ["cnn"]
    assert list_models("resnet*")[0] == "resnet101"
    assert list_models("x*") == []
    assert zoo.create_model("cnn", num_classes=7).num_classes == 7


def test_two_families_with_one_name_are_refused():
    twice = dataclasses.replace(find("gpt"), sizes={"cnn": {}})
    with pytest.raises(UserError, match="two families have a model 'cnn'"):
        by_name((*FAMILIES, twice))


@pytest.mark.parametrize(
    ("name", "attributes", "words"),
    [
        ("cnm", {}, ["'cnm'", "Did you mean 'cnn'"]),
        ("cnn", {"num_clases": 3}, ["'num_clases'", "Did you mean 'num_classes'"]),
        ("cnn", {"parent": None}, ["'parent'"]),
    ],
)
def test_unknown_names_are_refused(name, attributes, words):
    with pytest.raises(UserError) as refusal:
        create_model(name, **attributes)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
