"""BERT and RoBERTa against Hugging Face's classes."""

import dataclasses
import functools
import json
import re
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import parity
import peers
import pytest

import zoo
from zoo.errors import UserError
from zoo.families import create_model, find
from zoo.families.bert import FAMILIES
from zoo.fields import ConfigError
from zoo.models import Bert, BertClassifier
from zoo.models.bert import sentence_vectors
from zoo.pretrained import read_variables, save_pretrained, tables_of
from zoo.tasks.classification.task import Classification
from zoo.weights.tables import from_reference, to_reference

ENDS = {
    "": "Model",
    "_masked_lm": "ForMaskedLM",
    "_classifier": "ForSequenceClassification",
    "_token_classifier": "ForTokenClassification",
    "_question_answering": "ForQuestionAnswering",
}
# Name -> the reference's class.
CLASSES = {
    f"{ours}{name}": f"{theirs}{end}"
    for ours, theirs in (("bert", "Bert"), ("roberta", "Roberta"))
    for name, end in ENDS.items()
}
every_name = pytest.mark.parametrize("name", CLASSES)


def sizes(name, num_layers=1):
    """The attributes of a small model, none of them a default that could hide a mistake."""
    made = {
        "vocab_size": 23, "num_layers": num_layers, "num_heads": 2, "features": 8,
        "feedforward_features": 12, "epsilon": 1e-3, "num_positions": 11,
    }  # fmt: skip
    return made | ({"num_classes": 3} if name.endswith("classifier") else {})


@functools.cache
def reference(name, num_layers=1):
    """The reference with random numbers in every array, the vectors of padding too."""
    torch, transformers = peers.torch(), peers.transformers()
    is_roberta = name.startswith("roberta")
    config = getattr(transformers, "RobertaConfig" if is_roberta else "BertConfig")(
        vocab_size=23, num_hidden_layers=num_layers, num_attention_heads=2, hidden_size=8,
        intermediate_size=12, layer_norm_eps=1e-3, max_position_embeddings=11,
        type_vocab_size=1 if is_roberta else 2, hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.3, classifier_dropout=0.4,
        num_labels=3 if name.endswith("classifier") else 2, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, CLASSES[name])(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    return model


def text(name, time=7):
    """Tokens, mask and types of three texts. Padding is also where nothing hides it."""
    generator = np.random.default_rng(0)
    padding = 1 if name.startswith("roberta") else 0
    tokens = generator.integers(2, 23, (3, time))
    mask = np.arange(time) < np.array([[time], [time - 2], [1]])
    tokens[~mask] = padding
    tokens[0, 2] = padding
    types = generator.integers(0, 2, (3, time))
    return tokens, mask, np.zeros_like(types) if name.startswith("roberta") else types


def called(name, call, tokens, mask, types):
    """Calls a model of ours with a mask, whatever the place of that argument."""
    if name.endswith("classifier") and not name.endswith("token_classifier"):
        return call(tokens, mask=mask, token_types=types)
    return call(tokens, mask, types)


def ours(name):
    def call(apply, tokens, mask, types):
        made = called(name, apply, tokens, mask, types)
        if isinstance(made, tuple):
            vectors, pooled = made
            return jnp.concatenate([vectors, pooled[:, None]], axis=1)
        return made

    return call


class Begun:
    """A module that begins with tokens alone, whatever it is called with."""

    def __init__(self, module):
        self.module, self.apply = module, module.apply

    def init(self, key, tokens, mask, types):
        return self.module.init(key, tokens)


def theirs(model, tokens, mask, types):
    torch = peers.torch()
    made = model(tokens, attention_mask=mask.long(), token_type_ids=types)
    if "pooler_output" in made:
        return torch.cat([made.last_hidden_state, made.pooler_output[:, None]], dim=1)
    if "start_logits" in made:
        return torch.stack([made.start_logits, made.end_logits], dim=-1)
    return made.logits


def table_of(name, module):
    return next(iter(tables_of(find(name), module, {}).values()))


# RoBERTa's ends that are the same as BERT's; their outputs are compared below in any case.
SAME = ("roberta_token_classifier", "roberta_question_answering")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.long] if n in SAME else []) for n in CLASSES]
)
def test_it_computes_what_the_reference_does(name):
    layers = 2 if name in ("bert", "roberta") else 1
    module = create_model(name, **sizes(name, layers))
    parity.check_parity(
        Begun(module),
        reference(name, layers),
        table_of(name, module),
        *text(name),
        axes=None,
        ours=ours(name),
        theirs=theirs,
        name=type(module).__name__ + (", RoBERTa" if name.startswith("roberta") else ""),
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of each reference, as its library writes it."""
    made = {}
    for name in CLASSES:
        made[name] = tmp_path_factory.mktemp(name)
        reference(name).save_pretrained(made[name])
    return made


@every_name
def test_a_published_folder_is_read_and_ours_is_opened_by_transformers(name, folders, tmp_path):
    torch, transformers = peers.torch(), peers.transformers()
    tokens, mask, types = text(name)
    with torch.no_grad():
        expected = theirs(reference(name), *map(torch.from_numpy, (tokens, mask, types))).numpy()
    loaded = zoo.from_pretrained(name, folders[name])
    module = loaded.module
    assert [getattr(module, key) for key in sizes(name)] == list(sizes(name).values())
    assert (module.dropout_rate, module.attention_dropout_rate) == (0.2, 0.3)
    assert getattr(module, "head_dropout_rate", 0.4) == 0.4
    apply = jax.jit(functools.partial(module.apply, loaded.variables))
    found = ours(name)(apply, tokens, mask, types)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    save_pretrained(tmp_path, find(name), module, loaded.variables, {})
    again = zoo.from_pretrained(name, tmp_path)
    assert again.module == module
    assert_same_bits(again.variables, loaded.variables)
    opened, told = getattr(transformers, CLASSES[name]).from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(told.values()), told
    with torch.no_grad():
        same = theirs(opened.eval(), *map(torch.from_numpy, (tokens, mask, types))).numpy()
    np.testing.assert_allclose(same, found, rtol=1e-5, atol=1e-5)
    (architecture,) = json.loads((tmp_path / "config.json").read_text())["architectures"]
    assert find(name).published[architecture] == name


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


def arrays_of(name, num_layers=1):
    state = reference(name, num_layers).state_dict()
    return {key: array.detach().numpy() for key, array in state.items()}


def read(name, arrays, num_layers=1, **attributes):
    module = create_model(name, **sizes(name, num_layers), **attributes)
    like = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    return read_variables(arrays, tables_of(find(name), module, {}), like, "file")[0]


def respelled(arrays, *changes):
    made = {}
    for name, array in arrays.items():
        for pattern, replacement in changes:
            name = re.sub(pattern, replacement, name)
        made[name] = array
    return made


OLDER = ((r"LayerNorm\.weight$", "LayerNorm.gamma"), (r"LayerNorm\.bias$", "LayerNorm.beta"))


@every_name
def test_every_spelling_of_the_names_is_read(name):
    arrays = arrays_of(name)
    expected = read(name, arrays)
    written = to_reference(expected["params"], table_of(name, create_model(name, **sizes(name))))
    for key, array in written.items():
        np.testing.assert_array_equal(array, arrays[key], err_msg=key)
    kind = name.partition("_")[0]
    prefix = f"{kind}." if any(key.startswith(f"{kind}.") for key in arrays) else ""
    # The encoder alone, or as a part of a class.
    other = (r"^", f"{kind}.") if not prefix else (rf"^{kind}\.", "")
    heads = {} if prefix else unread(kind)
    for changes in ((), OLDER, (other,), (other, *OLDER)):
        buffers = {f"{prefix}embeddings.position_ids": np.arange(11)[None]}
        changed = respelled(arrays | buffers, *changes)
        if other in changes and heads:
            changed |= respelled(heads, *changes[1:])
        assert_same_bits(read(name, changed), expected)


def unread(kind):
    """The ends of the pretraining, which an encoder does not read."""
    arrays = arrays_of(f"{kind}_masked_lm")
    made = {key: array for key, array in arrays.items() if not key.startswith(f"{kind}.")}
    if kind == "bert":
        made |= {
            f"cls.seq_relationship.{key}": np.ones(2, np.float32) for key in ("weight", "bias")
        }
    return made


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_tied_weights_may_be_there_twice_and_a_pooler_may_be_left_over(kind):
    name, head = f"{kind}_masked_lm", {"bert": "cls.predictions", "roberta": "lm_head"}[kind]
    arrays = arrays_of(name)
    assert f"{head}.decoder.weight" in arrays
    expected = read(name, arrays)
    without = {key: array for key, array in arrays.items() if ".decoder." not in key}
    assert_same_bits(read(name, without), expected)
    # As older files of `bert-base-uncased` are: what a pretraining has beside the masked tokens.
    pooler = {f"{kind}.pooler.dense.{key}": np.ones(8, np.float32) for key in ("weight", "bias")}
    more = {key: array for key, array in unread(kind).items() if "seq_relationship" in key}
    assert_same_bits(read(name, without | pooler | more), expected)
    only_decoder = {key: array for key, array in arrays.items() if key != f"{head}.bias"}
    assert_same_bits(read(name, only_decoder), expected)
    wrong = arrays | {f"{head}.decoder.weight": arrays[f"{head}.decoder.weight"] + 1}
    with pytest.raises(UserError, match=r"decoder\.weight is not equal to .*word_embeddings"):
        read(name, wrong)


def test_the_encoder_of_masked_tokens_has_no_pooler():
    """And the encoder reads a file of the whole pretraining."""
    arrays = arrays_of("bert_masked_lm")
    with pytest.raises(UserError, match=r"bert\.pooler\.dense\.weight is missing"):
        read("bert", arrays)
    found = read("bert", arrays, use_pooler=False)
    np.testing.assert_array_equal(
        found["params"]["tokens"]["embedding"], arrays["bert.embeddings.word_embeddings.weight"]
    )
    module = Bert(**sizes("bert"), use_pooler=False)
    vectors, pooled = jax.eval_shape(module.apply, found, text("bert")[0])
    assert (vectors.shape, pooled) == ((3, 7, 8), None)
    with pytest.raises(UserError, match=r"classifier\.weight is missing"):
        read("bert_classifier", arrays | unread("bert"))


def test_a_classifier_begins_with_the_encoder_of_a_pretraining():
    arrays = arrays_of("bert_masked_lm")
    module = create_model("bert_classifier", **sizes("bert_classifier"))
    like = dict(jax.eval_shape(module.init, jax.random.key(0), text("bert")[0])["params"])
    like = {"params": {key: like[key] for key in like.keys() - {"pooler", "output"}}}
    tables = tables_of(find("bert_classifier"), module, {})
    found, _ = read_variables(arrays, tables, like, "file")
    np.testing.assert_array_equal(
        found["params"]["layer_0"]["up"]["bias"],
        arrays["bert.encoder.layer.0.intermediate.dense.bias"],
    )


def test_attributes_are_read_from_the_configs_of_both():
    transformers = peers.transformers()
    for name, made in (
        ("bert_classifier", transformers.BertConfig()),
        ("roberta_classifier", transformers.RobertaConfig()),
    ):
        # What a config.json does not say is what the reference takes.
        short = create_model(name, **find(name).attributes_of({"model_type": made.model_type}))
        whole = create_model(name, **find(name).attributes_of(made.to_dict()))
        assert short == whole
        assert whole.num_positions == made.max_position_embeddings
        assert whole.epsilon == made.layer_norm_eps
        assert whole.padding_token == made.pad_token_id
    read = find("bert_classifier").attributes_of
    assert read({"hidden_act": "gelu_new"}) == {"activation": "gelu_tanh"}
    assert read({"id2label": {"0": "a", "1": "b", "2": "c"}})["num_classes"] == 3
    assert read({"num_labels": 4, "problem_type": "regression"})["num_classes"] == 4
    assert read({"hidden_dropout_prob": 0.3})["head_dropout_rate"] == 0.3
    assert find("bert").attributes_of({"num_labels": 4, "pruned_heads": None}) == {}


@pytest.mark.parametrize(
    ("name", "keys", "words"),
    [
        ("bert", {"model_type": "roberta"}, "model_type='roberta', this model of the zoo reads"),
        ("roberta", {"model_type": "bert"}, "model_type='bert', this model of the zoo reads"),
        ("bert", {"is_decoder": True}, "is_decoder=True"),
        ("bert", {"add_cross_attention": True}, "add_cross_attention=True"),
        ("bert", {"position_embedding_type": "relative_key"}, "'relative_key', the zoo's model"),
        ("bert", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("bert", {"hidden_act": "mish"}, "hidden_act='mish' must be one of 'gelu'"),
        ("bert", {"hidden_act": ["gelu"]}, r"hidden_act=\['gelu'\] must be one of"),
        ("bert", {"embedding_size": 3, "auto_map": {}}, "does not know auto_map, embedding_size"),
        ("bert_masked_lm", {"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ("roberta_masked_lm", {"hidden_act": "relu"}, "RoBERTa's output takes 'gelu'"),
        ("bert_classifier", {"problem_type": "ranking"}, "problem_type='ranking'"),
        ("bert_classifier", {"id2label": ["a"]}, "id2label=.'a'. must be"),
        ("bert_classifier", {"id2label": {"0": "a"}, "num_labels": 2}, "id2label has 1 names"),
    ],
)  # fmt: skip
def test_a_config_that_changes_the_mathematics_is_refused(name, keys, words):
    with pytest.raises(UserError, match=words):
        find(name).attributes_of(keys)


def test_values_of_a_config_that_cannot_be_are_refused(folders, tmp_path):
    shutil.copy(folders["bert"] / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text('{"pad_token_id": null}')
    with pytest.raises(UserError, match="padding_token=None must be at least 0"):
        zoo.from_pretrained("bert", tmp_path)


def test_bert_is_not_written_with_the_positions_of_roberta(tmp_path):
    module = create_model("bert", **sizes("bert"), skip_padding=True)
    with pytest.raises(ConfigError, match="skip_padding=True: BERT does not skip padding"):
        find("bert").config_of(module)


def test_each_published_class_is_one_of_transformers():
    transformers = peers.transformers()
    found = {key: name for family in FAMILIES for key, name in family.published.items()}
    assert {*CLASSES.values(), "BertForPreTraining"} == set(found)
    assert all(hasattr(transformers, key) for key in found)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # As BertModel, BertForMaskedLM and RobertaModel of the published configs count them.
        ("bert", 109_482_240),
        ("bert_large", 335_141_888),
        ("bert_masked_lm", 109_514_298),
        ("roberta", 124_645_632),
        ("roberta_large", 355_359_744),
    ],
)
def test_the_published_sizes_have_the_published_numbers_of_parameters(name, count):
    module = create_model(name, scan_layers=True)
    made = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(made)) == count


def test_it_begins_as_bert_does():
    torch, transformers = peers.torch(), peers.transformers()
    torch.manual_seed(0)
    like = transformers.BertConfig(
        vocab_size=200, hidden_size=64, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=100, max_position_embeddings=50,
    )  # fmt: skip
    theirs = dict(transformers.BertForMaskedLM(like).named_parameters())
    module = create_model(
        "bert_masked_lm", vocab_size=200, features=64, num_layers=1, num_heads=2,
        feedforward_features=100, num_positions=50,
    )  # fmt: skip
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    for name, array in to_reference(params, table_of("bert_masked_lm", module)).items():
        expected = theirs[name].detach().numpy()
        assert array.shape == expected.shape
        # There are two vectors of types.
        spread = 0.2 if "token_type" in name else 0.1
        np.testing.assert_allclose(array.std(), expected.std(), rtol=spread, err_msg=name)
        np.testing.assert_allclose(array.mean(), expected.mean(), atol=4e-3, err_msg=name)


@every_name
def test_dropout_is_where_the_reference_has_it(name, monkeypatch):
    torch = peers.torch()
    dropped = []

    def record(x, p=0.5, training=True, inplace=False):
        dropped.append((tuple(x.shape), p))
        return x

    tokens, mask, types = text(name)
    model = reference(name)
    module = create_model(
        name, **sizes(name), dropout_rate=0.2, attention_dropout_rate=0.3,
        **({"head_dropout_rate": 0.4} if name.endswith("classifier") else {}),
    )  # fmt: skip
    monkeypatch.setattr(torch.nn.functional, "dropout", record)
    model.train()
    theirs(model, *map(torch.from_numpy, (tokens, mask, types)))
    model.eval()
    expected, dropped = sorted(dropped), []

    def note(call, arguments, options, context):
        if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
            dropped.append((arguments[0].shape, context.module.rate))
        return call(*arguments, **options)

    def run():
        def call(*arguments, **options):
            keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
            return module.init(keys, *arguments, train=True, **options)

        return called(name, call, tokens, mask, types)

    with nn.intercept_methods(note):
        jax.eval_shape(run)
    assert sorted(dropped) == expected


MODELS = {
    "bert": create_model("bert_token_classifier", **sizes("bert_token_classifier", 2)),
    "roberta": create_model("roberta_token_classifier", **sizes("roberta_token_classifier", 2)),
}


@pytest.fixture(scope="module")
def params():
    """The parameters of both, from the reference: so large that attention sees something."""
    names = {name: f"{name}_token_classifier" for name in MODELS}
    return {name: read(of, arrays_of(of, 2), 2)["params"] for name, of in names.items()}


@pytest.mark.parametrize("name", MODELS)
def test_no_gradient_from_padding(name, params):
    """Each place of the text has a token of its own, so its vector says who was seen."""
    model, tokens = MODELS[name], np.arange(2, 9)[None]
    params = params[name]

    @jax.jit
    @jax.grad
    def gradient(embedding, mask):
        changed = params | {"tokens": {"embedding": embedding}}
        logits = model.apply({"params": changed}, tokens, mask)
        return jnp.where(mask[..., None], jnp.cos(logits), 0).sum()

    for seen in ([1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 1, 0, 1]):
        of_tokens = gradient(params["tokens"]["embedding"], np.array([seen], bool))
        reached = np.abs(of_tokens[2:9]).sum(axis=1) > 0
        assert reached.tolist() == [bool(place) for place in seen]


@pytest.mark.parametrize("name", MODELS)
def test_a_padded_text_has_the_vectors_of_the_text_alone(name, params):
    model, (tokens, mask, _) = MODELS[name], text(name)
    params = params[name]

    @jax.jit
    def both(params):
        call = functools.partial(model.apply, {"params": params})
        return call(tokens, mask), call(tokens[1:2, :5])

    together, alone = both(params)
    np.testing.assert_allclose(together[1, :5], alone[0], rtol=1e-4, atol=1e-5)


def stacked(params):
    """The parameters of two layers as a model with ``scan_layers`` has them."""
    rest = dict(params)
    layers = [rest.pop(f"layer_{index}") for index in range(2)]
    return {**rest, "layers": jax.tree.map(lambda *each: jnp.stack(each), *layers)}


def test_scanned_and_rematerialized_layers_compute_the_same_with_every_gradient(params):
    model, params, (tokens, mask, types) = MODELS["bert"], params["bert"], text("bert")

    @functools.partial(jax.jit, static_argnums=0)
    def found(model, params):
        logits, backward = jax.vjp(
            lambda p: model.apply({"params": p}, tokens, mask, types), params
        )
        return logits, *backward(jnp.cos(logits))

    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: x.astype(jnp.float64), params)
        logits, gradient = found(model, exact)
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
        for scan_layers, remat in ((False, "dots"), (True, "block")):
            same = dataclasses.replace(model, scan_layers=scan_layers, remat=remat)
            form = stacked if scan_layers else lambda tree: tree
            a, of_params = found(same, form(exact))
            np.testing.assert_allclose(a, logits, rtol=1e-12, atol=1e-12)
            expected = form(gradient)
            assert jax.tree.structure(of_params) == jax.tree.structure(expected)
            for a, b in zip(jax.tree.leaves(of_params), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12 * largest)


def test_scanned_layers_begin_and_drop_out_each_for_itself(params):
    model = dataclasses.replace(MODELS["bert"], scan_layers=True)
    tokens = text("bert")[0]

    @jax.jit
    def made_and_kept(key):
        params = model.init(key, tokens)["params"]
        _, seen = model.apply(
            {"params": params}, tokens, train=True, rngs={"dropout": key}, mutable="intermediates",
            capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
        )  # fmt: skip
        return params, [x for x in jax.tree.leaves(seen) if x.shape == (2, 3, 2, 7, 7)]

    begun, (kept,) = made_and_kept(jax.random.key(1))
    assert jax.tree.map(jnp.shape, begun) == jax.tree.map(jnp.shape, stacked(params["bert"]))
    first, second = begun["layers"]["up"]["kernel"]
    assert not np.array_equal(first, second)
    assert not np.array_equal(kept[0] == 0, kept[1] == 0)


@pytest.mark.parametrize("kind", MODELS)
def test_weights_of_both_forms_are_one_file(kind, params):
    name, model, params = f"{kind}_token_classifier", MODELS[kind], params[kind]
    arrays = to_reference(params, table_of(name, model))
    table = table_of(name, dataclasses.replace(model, scan_layers=True))
    again = from_reference(arrays, table, stacked(params))
    assert_same_bits(again, stacked(params))
    for key, array in to_reference(again, table).items():
        np.testing.assert_array_equal(array, arrays[key], err_msg=key)


def test_lengths_say_what_a_mask_says_and_the_task_trains_it():
    model = BertClassifier(**sizes("bert_classifier"))
    tokens, mask, _ = text("bert")
    lengths = np.array([7, 5, 0])
    variables = read("bert_classifier", arrays_of("bert_classifier"))

    @jax.jit
    def each(variables):
        call = functools.partial(model.apply, variables, tokens)
        return call(lengths), call(mask=mask), call()

    by_length, by_mask, whole = each(variables)
    # A text without tokens is read as its first.
    np.testing.assert_array_equal(by_length, by_mask)
    assert np.abs(by_length - whole)[1:].max() > 1e-3

    task = Classification(model, inputs=("tokens", "length"), class_names=("a", "b", "c"))
    batch = {
        "tokens": tokens, "length": lengths, "label": np.arange(3), "mask": np.ones(3, np.float32)
    }  # fmt: skip

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        return task.loss(params, {}, batch, jax.random.key(0))

    (found, _), gradient = loss(variables["params"])
    assert np.isfinite(found)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient["output"]))


def test_sentence_vectors_are_those_of_sentence_transformers():
    torch = peers.torch()
    generator = np.random.default_rng(0)
    vectors, weights = generator.normal(size=(3, 5, 8)), generator.normal(size=(3, 8))
    mask = np.arange(5) < np.array([[5], [2], [1]])

    # Pooling (mean) and Normalize, as their definitions say.
    given = torch.from_numpy(vectors).requires_grad_()
    counts = torch.from_numpy(mask)[..., None].double()
    mean = (given * counts).sum(1) / counts.sum(1).clamp(min=1e-9)
    expected = torch.nn.functional.normalize(mean, p=2, dim=1)
    expected.backward(torch.from_numpy(weights))

    def compute(vectors):
        found, backward = jax.vjp(lambda x: sentence_vectors(x, mask), vectors)
        whole, all_seen = sentence_vectors(vectors), sentence_vectors(vectors, np.ones((3, 5)))
        return found, backward(weights)[0], whole, all_seen

    with jax.enable_x64(True):
        found, gradient, whole, all_seen = jax.jit(compute)(vectors)
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(gradient, given.grad.numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(whole, all_seen, rtol=1e-14)


def test_a_sentence_without_tokens_is_zero_and_has_no_gradient():
    mask = np.array([[True, False], [False, False]])
    vectors = jnp.ones((2, 2, 4)).at[0, 1].set(jnp.nan)

    @jax.jit
    def compute(vectors):
        found, backward = jax.vjp(lambda x: sentence_vectors(x, mask), vectors)
        return found, backward(jnp.ones_like(found))[0]

    found, gradient = compute(vectors)
    np.testing.assert_allclose(found, [[0.5] * 4, [0.0] * 4])
    assert not np.any(gradient[1])
    half = jax.eval_shape(sentence_vectors, vectors.astype(jnp.bfloat16), mask)
    assert half.dtype == jnp.bfloat16
    with pytest.raises(UserError, match=r"mask \(2, 3\) must be \(2, 2\)"):
        sentence_vectors(vectors, np.ones((2, 3), bool))


ZEROS = jnp.zeros((2, 3), jnp.int32)


@pytest.mark.parametrize(
    ("name", "call", "words"),
    [
        ("bert", lambda f: f(ZEROS[0]), r"Bert: the tokens \(3,\) must be \[batch, time\]"),
        ("bert", lambda f: f(jnp.zeros((1, 12), jnp.int32)), "12 tokens are more than the 11"),
        ("roberta", lambda f: f(jnp.zeros((1, 10), jnp.int32)), "10 tokens are more than the 9"),
        ("bert", lambda f: f(ZEROS.astype(float)), "float32"),
        ("bert", lambda f: f(ZEROS, jnp.ones((2, 4), bool)), r"mask \(2, 4\) must have the shape"),
        ("bert", lambda f: f(ZEROS, None, ZEROS[:1]), r"token_types \(1, 3\) must have the shape"),
        ("bert_classifier", lambda f: f(ZEROS, ZEROS > 0), "A mask is given by name"),
        ("bert_classifier", lambda f: f(ZEROS[0], jnp.ones(2)), r"\(3,\)"),
        ("bert_classifier", lambda f: f(ZEROS, jnp.ones(2), mask=ZEROS > 0), "not both"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(name, call, words):
    module = create_model(name, **sizes(name))
    with pytest.raises(UserError, match=words):
        jax.eval_shape(lambda: call(functools.partial(module.init, jax.random.key(0))))
