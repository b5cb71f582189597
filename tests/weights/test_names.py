"""The names in files as they are published, wrapped, or of another model."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.errors import UserError
from zoo.families import find
from zoo.models import CNN, VGG, DenseNet, ViT
from zoo.models.gpt import GPT
from zoo.pretrained import read_variables, tables_of
from zoo.weights.names import differences
from zoo.weights.tables import Renamed, variables_to_reference

MODELS = {
    "cnn": (CNN(2, (2, 2, 2), hidden_features=3), jnp.zeros((1, 8, 8, 3))),
    "vgg11": (
        VGG(2, stages=(1, 1), features=(2, 2), hidden_features=3), jnp.zeros((1, 8, 8, 3)),
    ),
    "densenet121": (
        DenseNet(2, blocks=(2, 1), growth=2, features=4, bottleneck=2), jnp.zeros((1, 32, 32, 3)),
    ),
    "vit_b_16": (
        ViT(2, 8, 4, features=4, num_layers=2, num_heads=2, feedforward_features=4),
        jnp.zeros((1, 8, 8, 3)),
    ),
    "gpt": (GPT(7, 5, 2, 2, 4), jnp.zeros((1, 2), jnp.int32)),
}  # fmt: skip


def drawn(name):
    """The shapes of a small model, its tables, and its weights under the first table's names."""
    model, inputs = MODELS[name]
    like, generator = (
        jax.eval_shape(model.init, jax.random.key(0), inputs),
        np.random.default_rng(0),
    )
    variables = jax.tree.map(lambda x: generator.normal(size=x.shape).astype(x.dtype), like)
    tables = tables_of(find(name), model, like["params"])
    return variables, tables, variables_to_reference(variables, next(iter(tables.values())))


def read(name, change):
    """Reads the weights of a model from a file that was changed; checks that they are the same."""
    variables, tables, arrays = drawn(name)
    found, said = read_variables(change(arrays), tables, variables, "w.safetensors")
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(variables), strict=True):
        assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())
    return said


def respelled(pattern, replacement):
    return lambda arrays: {re.sub(pattern, replacement, name): a for name, a in arrays.items()}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.", "_orig_mod.module.", "model.net.", "state_dict."]
)
def test_a_beginning_that_all_names_share_is_left_out_and_said(name, prefix):
    said = read(name, respelled("^", prefix))
    assert re.search(rf"all \d+ names begin with '{re.escape(prefix)}', which is left out", said)


def test_wrappers_of_parts_of_a_model_are_left_out():
    # torch.nn.DataParallel around the convolutions alone, as PyTorch's example for ImageNet has it.
    said = read("vgg11", respelled(r"^features\.", "features.module."))
    assert "'module.' is left out of 4 of 10 names" in said
    read("gpt", respelled(r"^(transformer\.h\.\d)\.", r"\1._orig_mod."))


def test_counters_beside_the_weights_are_no_weights():
    count = {"n_averaged": np.array(3)}
    read("cnn", lambda arrays: respelled("^", "module.")(arrays) | count)
    counts = {"features.norm0.num_batches_tracked": np.array(7)}
    read("densenet121", lambda arrays: arrays | counts)


def test_torchvisions_older_names_are_read():
    read("densenet121", respelled(r"(denselayer\d\.(?:norm|conv))(\d)", r"\1.\2"))
    old = {"mlp.0": "mlp.linear_1", "mlp.3": "mlp.linear_2"}
    read(
        "vit_b_16",
        lambda arrays: {re.sub(r"mlp\.[03]", lambda m: old[m[0]], n): a for n, a in arrays.items()},
    )


def masks(arrays):
    """What older files of GPT-2 have beside the weights."""
    layers = {name.partition(".attn.")[0] for name in arrays if ".attn." in name}
    return {f"{layer}.attn.bias": np.tri(5)[None, None].astype(bool) for layer in layers} | {
        f"{layer}.attn.masked_bias": np.array(-1e4, np.float32) for layer in layers
    }


def test_gpt_2_as_the_hub_has_it_is_read():
    def hub(arrays):
        return respelled(r"^transformer\.", "")(arrays)

    read("gpt", hub)
    read("gpt", lambda arrays: hub(arrays | masks(arrays)))
    read("gpt", lambda arrays: arrays | masks(arrays))
    tied = {"lm_head.weight": "transformer.wte.weight"}
    read("gpt", lambda arrays: arrays | {new: arrays[old] for new, old in tied.items()})
    read("gpt", lambda arrays: hub(arrays) | {new: arrays[old] for new, old in tied.items()})
    # A file that keeps tied weights once may keep them under the second name.
    read("gpt", respelled(r"^transformer\.wte\.weight", "lm_head.weight"))


def test_an_output_that_is_not_the_embedding_is_refused():
    def untied(arrays):
        return arrays | {"lm_head.weight": arrays["transformer.wte.weight"] + 1}

    with pytest.raises(UserError, match="lm_head.weight is not equal to transformer.wte.weight"):
        read("gpt", untied)


def test_arrays_are_read_once_and_only_those_that_are_needed():
    class Counted(Renamed):
        def __getitem__(self, name):
            asked.append(name)
            return super().__getitem__(name)

    asked = []
    read("gpt", lambda arrays: Counted(all_ := arrays | masks(arrays), {n: n for n in all_}))
    assert len(asked) == len(set(asked))
    assert not [name for name in asked if name.endswith((".attn.bias", "masked_bias"))]


def refusal(name, change):
    with pytest.raises(UserError) as refused:
        read(name, change)
    text = str(refused.value)
    assert text.startswith("w.safetensors: the weights do not fit the model")
    assert len(text.splitlines()) < 20, text
    assert max(map(len, text.splitlines())) < 600
    return text


def test_a_beginning_that_some_names_share_is_named_with_the_way_out():
    text = refusal(
        "vit_b_16",
        lambda arrays: respelled("^", "model.")(arrays) | {"loss.weight": np.zeros(3, np.float32)},
    )
    assert "32 of 33 names begin with 'model.', and without it 32 of them are the model's" in text
    assert "the rest (loss.weight) begins otherwise" in text
    # Two sets of weights in one file, as trainers with an average write them.
    text = refusal(
        "cnn",
        lambda arrays: respelled("^", "model.")(arrays) | respelled("^", "ema.")(arrays),
    )
    assert "10 of 20 names begin with 'model.'" in text


def test_a_file_of_another_model_is_called_that():
    text = refusal("vit_b_16", lambda arrays: drawn("gpt")[2])
    assert "none of the file's 28 names is the model's: the file has transformer.wte.weight" in text
    assert "the model class_token, encoder.pos_embedding, conv_proj.weight (torchvision)" in text
    assert "cls_token, pos_embed, patch_embed.proj.weight (timm)" in text
    text = refusal("cnn", lambda arrays: {})
    assert "10 of 10 arrays are missing" in text


def test_a_layer_that_differs_is_said_as_one():
    text = refusal("gpt", lambda a: {k: v for k, v in a.items() if ".h.1." not in k})
    assert "12 of 28 arrays are missing, all 12 of transformer.h.1:" in text
    assert "and 7 more" in text
    text = refusal("densenet121", respelled(r"^features\.", "trunk."))
    assert re.search(r"\d+ of \d+ arrays are missing, all \d+ of features:", text)
    assert re.search(r"\d+ of \d+ arrays are not in the table, all \d+ of trunk:", text)


def test_strange_names_are_shown_printable_and_short():
    text = refusal("cnn", lambda a: a | {"\x1b[31m\n": np.zeros(1), "x" * 5000: np.zeros(1)})
    assert r"'\x1b[31m\n' is not in the table" in text
    assert "\x1b" not in text


def test_two_names_that_would_be_one_stay_two():
    text = refusal("cnn", lambda a: a | {"module.fc2.bias": a["fc2.bias"]})
    assert "module.fc2.bias is not in the table" in text


def test_differences_of_few_names_are_a_line_each():
    assert differences(["a", "c"], ["a", "b"], {"a", "b"}) == [
        "b is missing", "c is not in the table",
    ]  # fmt: skip
    assert differences(["a"], ["a"], {"a", "optional"}) == []
