"""The large variants of ``configs/gpt.py``, by their shapes."""

import jax
import jax.numpy as jnp
import pytest

from zoo import building, commands, config
from zoo.catalog import catalog
from zoo.errors import UserError
from zoo.families import create_model


def large(variant, *overrides):
    return config.check(
        commands.override(commands.load_config(f"configs/gpt.py:{variant}"), list(overrides))
    )


def shapes(checked):
    """Returns the shapes of the parameters; nothing is computed."""
    attributes = {name: value for name, value in checked.model.items() if name != "name"}
    model = create_model(checked.model.name, catalog(()).families, **attributes)
    text = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), text)["params"]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("variant", "published"),
    # Of Hugging Face's gpt2 and gpt2-medium.
    [("124m", 124_439_808), ("350m", 354_823_168)],
)
@pytest.mark.parametrize("scanned", [True, False])
def test_gpt2s_shapes_have_the_published_number_of_parameters(variant, published, scanned):
    checked = large(variant, f"--config.model.scan_layers={scanned}")
    assert count(shapes(checked)) == published


@pytest.mark.parametrize(
    ("variant", "published", "context"),
    # Of Llama 3.2 1B, Llama 2 7B and Llama 2 70B.
    [
        ("1b", 1_235_814_400, 8192),
        ("7b", 6_738_415_616, 4096),
        ("70b", 68_976_648_192, 4096),
    ],
)
def test_llamas_shapes_have_the_published_number_of_parameters(variant, published, context):
    checked = large(variant)
    assert count(shapes(checked)) == published
    assert (checked.model.context, checked.data.context) == (context, context)
    assert (checked.model.scan_layers, checked.train.remat) == (True, "block")
    assert checked.model.rope_scaling == "default"


def test_the_text_in_the_package_can_be_read_by_a_llama():
    checked, dataset = building.with_data(large("7b", "--config.train.batch_size=2"))
    assert checked.model.vocab_size == 32_000
    parts = building.build(checked, dataset)
    assert building.train_shapes(parts)["tokens"].shape == (2, 4096)


@pytest.mark.parametrize("variant", ["124m", "350m", "1b", "7b", "70b"])
def test_parameters_are_float32_and_a_run_reads_twenty_tokens_for_each(variant):
    checked = large(variant)
    parameters = shapes(checked)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(parameters)} == {"float32"}
    assert checked.precision == "bfloat16"
    tokens = checked.train.steps * checked.train.batch_size * checked.model.context
    assert tokens / count(parameters) == pytest.approx(20, rel=0.1)


def test_the_text_in_the_package_can_be_read_by_the_smallest():
    checked, dataset = building.with_data(large("124m"))
    assert checked.model.vocab_size == 50_257
    parts = building.build(checked, dataset)
    assert building.train_shapes(parts)["tokens"].shape == (512, 1024)


def test_an_unknown_variant_names_those_there_are():
    with pytest.raises(UserError, match=r"13b.*nanogpt, 124m, 350m, 1b, 7b, 70b"):
        commands.load_config("configs/gpt.py:13b")
