"""``zoo export`` of every config: what is written is read back bit for bit, here and elsewhere."""

import json

import jax
import numpy as np
import peers
import pytest
from families import TINY

import zoo
from zoo import building, commands, inference
from zoo.config import check
from zoo.families import Family, create_model, find
from zoo.models import CNN
from zoo.pretrained import load_variables, save_pretrained
from zoo.tasks.loaded import Loaded
from zoo.weights.files import read_weights


def numbers(shapes):
    """Variables of some shapes, every element another number."""
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: (0.3 * generator.normal(size=x.shape)).astype(x.dtype), dict(shapes)
    )


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


def loaded(name, *overrides):
    """A run of a config as ``zoo.load`` returns it, without training."""
    config = commands.load_config(f"configs/{name}.py")
    for options in (TINY[name], overrides):
        config = commands.override(config, options)
    config, dataset = building.with_data(check(config))
    parts = building.build(config, dataset)
    state = jax.eval_shape(lambda: building.init_state(parts))
    task = parts.task
    variables = {"params": state.params} | building.weights_in(state.model_state, task)
    return Loaded(
        task.model, numbers(variables), dataset.vocabularies, config, task, 7,
        building.wing_of(config),
    )  # fmt: skip


# What changes which parameters a model has, beside each family as its config has it.
RUNS = [
    *([name] for name in TINY),
    ["gpt", "--config.model.use_bias=True"],
    ["gpt", "--config.model.scan_layers=True", "--config.model.num_layers=2"],
    ["transformer", "--config.model.tie_weights=True", "--config.model.positions=learned"],
    ["resnet", "--config.model.bottleneck=True", "--config.model.stem=imagenet"],
    ["lstm", "--config.model.cell=gru", "--config.model.num_layers=2"],
    [
        "diffusion", "--config.model.attention=(True,)", "--config.model.layers_per_level=2",
        "--config.model.scale_shift=False",
    ],
]  # fmt: skip


@pytest.mark.parametrize("run", RUNS, ids=" ".join)
def test_every_config_is_exported_and_read_again(run, tmp_path, monkeypatch):
    made = loaded(*run)
    monkeypatch.setattr(inference, "load", lambda workdir, *, checkpoint: made)
    file = inference.export(tmp_path / "run")
    assert file == tmp_path / "run" / "export" / "model.safetensors"
    again = zoo.from_pretrained(made.config.model.name, file.parent)
    assert again.module == made.module
    assert_same_bits(again.variables, made.variables)
    described = json.loads(file.with_name("config.json").read_text())
    assert described["step"] == 7
    assert described["names"] == next(iter(find(made.config.model.name).weights))


@pytest.mark.parametrize("use_bias", [True, False])
def test_transformers_opens_an_exported_gpt_and_computes_the_same(use_bias, tmp_path, monkeypatch):
    torch, transformers = peers.torch(), peers.transformers()
    made = loaded("gpt", f"--config.model.use_bias={use_bias}")
    monkeypatch.setattr(inference, "load", lambda workdir, *, checkpoint: made)
    folder = inference.export(tmp_path).parent
    theirs, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert type(theirs).__name__ == "GPT2LMHeadModel"
    assert not any(told.values()), told
    tokens = np.array([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(tokens)).logits.numpy()
    found, _ = made.module.apply(made.variables, tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_weights_with_biases_are_not_taken_by_a_model_without(tmp_path):
    sizes = {"vocab_size": 7, "context": 5, "num_layers": 1, "num_heads": 1, "features": 4}
    model, plain = create_model("gpt", **sizes), create_model("gpt", **sizes, use_bias=False)
    family, inputs = find("gpt"), find("gpt").example(model)
    variables = numbers(jax.eval_shape(model.init, jax.random.key(0), **inputs))
    arrays = read_weights(save_pretrained(tmp_path, family, model, variables, {}))
    with pytest.raises(zoo.errors.UserError, match=r"ln_f\.bias is not zero, and the model"):
        load_variables(family, plain, arrays, inputs)
    without = numbers(jax.eval_shape(plain.init, jax.random.key(0), **inputs))
    arrays = read_weights(save_pretrained(tmp_path / "plain", family, plain, without, {}))
    assert_same_bits(load_variables(family, plain, arrays, inputs), without)
    # A model with biases takes the zeros.
    filled = load_variables(family, model, arrays, inputs)
    assert not filled["params"]["ln_f"]["bias"].any()


def test_a_model_that_no_library_has_is_written_by_the_zoos_own_names(tmp_path):
    model = CNN(num_classes=2, features=(2, 2, 2), hidden_features=3)
    family = Family(CNN, "image_classifier", {"mine": {}}, {}, find("cnn").example)
    inputs = family.example(model)
    variables = numbers(jax.eval_shape(model.init, jax.random.key(0), **inputs))
    file = save_pretrained(tmp_path, family, model, variables, {"step": 3})
    arrays = read_weights(file)
    np.testing.assert_array_equal(arrays["conv1.kernel"], variables["params"]["conv1"]["kernel"])
    assert_same_bits(load_variables(family, model, arrays, inputs), variables)
    described = json.loads((tmp_path / "config.json").read_text())
    assert described == {"step": 3, "names": "zoo"}
