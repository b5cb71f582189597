"""Tables in which one array of the reference holds several of ours."""

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from zoo.errors import UserError
from zoo.families.gpt import gpt_table
from zoo.families.transformer import transformer_table
from zoo.models import GPT, Transformer
from zoo.weights.tables import from_reference, to_reference

TOKENS = jnp.zeros((1, 2), jnp.int32)


def filled(model, *inputs):
    """Parameters of a model with every element another number."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda x: generator.normal(size=x.shape).astype(x.dtype), shapes)


def gpt():
    model = GPT(vocab_size=11, context=6, num_layers=2, num_heads=2, features=4)
    return filled(model, TOKENS), gpt_table(2)


def transformer():
    model = Transformer(7, 9, 4, 2, 2, 1, 6)
    return filled(model, TOKENS, TOKENS), transformer_table(2, 1)


@pytest.mark.parametrize("made", [gpt, transformer])
def test_there_and_back_is_the_same_bit_for_bit(made):
    params, table = made()
    arrays = to_reference(params, table)
    again = from_reference(arrays, table, params)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    for name, array in to_reference(again, table).items():
        assert array.tobytes() == arrays[name].tobytes(), name


def test_names_and_shapes_are_hugging_faces():
    params, table = gpt()
    config = peers.transformers().GPT2Config(
        vocab_size=11, n_positions=6, n_embd=4, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1
    )
    model = peers.transformers().GPT2LMHeadModel(config)
    theirs = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert {name: a.shape for name, a in to_reference(params, table).items()} == theirs


def test_query_key_and_value_are_the_three_parts_in_this_order():
    params, table = gpt()
    whole = to_reference(params, table)["transformer.h.1.attn.c_attn.weight"]
    attention = params["block_1"]["attention"]
    parts = [attention[name]["kernel"] for name in ("query", "key", "value")]
    np.testing.assert_array_equal(whole, np.concatenate(parts, axis=1))

    params, table = transformer()
    whole = to_reference(params, table)["transformer.decoder.layers.0.self_attn.in_proj_weight"]
    attention = params["decoder"]["layer_0"]["self_attention"]
    parts = [attention[name]["kernel"].T for name in ("query", "key", "value")]
    np.testing.assert_array_equal(whole, np.concatenate(parts, axis=0))


def test_what_does_not_fit_is_listed():
    params, table = gpt()
    arrays = to_reference(params, table)
    del arrays["transformer.h.0.attn.c_attn.bias"]
    arrays["transformer.h.1.attn.c_attn.weight"] = np.zeros((4, 13), np.float32)
    with pytest.raises(UserError) as refusal:
        from_reference(arrays, table, params)
    message = str(refusal.value)
    assert message.count("transformer.h.0.attn.c_attn.bias is missing") == 1
    for name in ("query", "key", "value"):
        assert f"(4, 13) does not give block_1/attention/{name}/kernel (4, 4)" in message


def test_a_table_that_lacks_a_part_is_refused():
    params, table = gpt()
    short = [entry for entry in table if entry.ours != "block_0/attention/key/bias"]
    del params["block_0"]["attention"]["key"]["bias"]
    with pytest.raises(UserError, match=r"h\.0\.attn\.c_attn\.bias has parts \[0, 2\] of 3"):
        to_reference(params, short)
