"""Low ranks against their formula, and as ``peft`` reads them."""

import dataclasses

import jax
import numpy as np
import peers
import pytest

import zoo
from zoo.errors import UserError
from zoo.families.gpt import gpt_table
from zoo.models import GPT
from zoo.training import lora
from zoo.weights.adapters import peft_adapter
from zoo.weights.files import write_weights

SMALL = GPT(vocab_size=13, context=8, num_layers=2, num_heads=2, features=4)
TEXT = np.array([[3, 1, 4, 1, 5]])


def shapes(module=SMALL):
    return jax.eval_shape(module.init, jax.random.key(0), TEXT)["params"]


def random(shapes):
    """Values of some shapes, every one another number."""
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda x: generator.normal(size=x.shape).astype(x.dtype), shapes)


def test_they_begin_by_adding_nothing():
    params = random(shapes())
    additions = lora.init(jax.random.key(0), params, "attention/.*/kernel", 2)
    for a, b in zip(
        jax.tree.leaves(lora.merged(params, additions, 16.0)), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    query = additions["block_1"]["attention"]["query"]["kernel"]
    assert (query["a"].shape, query["b"].shape) == ((4, 2), (2, 4))
    assert 0.25 < np.abs(query["a"]).max() <= 0.5  # 1 / sqrt(4)
    other = additions["block_0"]["attention"]["query"]["kernel"]["a"]
    assert not np.array_equal(query["a"], other)


@pytest.mark.parametrize("scan", [False, True])
def test_what_is_added_is_the_product_of_both(scan):
    module = dataclasses.replace(SMALL, scan_layers=scan)
    params = random(shapes(module))
    additions = random(lora.init(jax.random.key(0), params, "up/kernel", 3))
    found = lora.merged(params, additions, 6.0)
    name = "blocks" if scan else "block_0"
    before, added = params[name]["up"]["kernel"], additions[name]["up"]["kernel"]
    expected = before + 2 * np.einsum("...ir,...ro->...io", added["a"], added["b"])
    np.testing.assert_allclose(found[name]["up"]["kernel"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found["ln_f"]["scale"], params["ln_f"]["scale"])


def test_dropout_leaves_out_the_additions_of_some_inputs():
    additions = random(lora.init(jax.random.key(0), shapes(), "down/kernel", 2))
    found = lora.dropped(jax.random.key(1), additions, 0.5)["block_0"]["down"]["kernel"]
    before = additions["block_0"]["down"]["kernel"]
    np.testing.assert_array_equal(found["b"], before["b"])
    factors = found["a"] / before["a"]
    np.testing.assert_allclose(factors[:, 0], factors[:, 1], rtol=1e-6)
    assert sorted(set(factors[:, 0].round(3).tolist())) == [0, 2]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("qeury", r"'qeury' matches no parameter.*block_\*/attention/query/kernel, block_\*/"),
        ("query", "matches block_0/attention/query/bias .*no kernel of a linear layer"),
        ("tokens", "matches tokens/embedding"),
    ],
)
def test_targets_that_cannot_be_are_refused(pattern, words):
    with pytest.raises(UserError, match=words):
        lora.init(jax.random.key(0), shapes(), pattern, 2)


def test_a_digest_sees_every_change_and_no_division():
    params = random(shapes())
    before = lora.digest(params)
    lora.check_base(before, lora.digest(jax.tree.map(np.copy, params)))
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    divided = dict(params, positions=jax.device_put(params["positions"], rows))
    lora.check_base(before, lora.digest(divided))
    swapped = params["positions"]["embedding"][::-1]
    for changed in (swapped, np.nextafter(params["positions"]["embedding"], 9)):
        other = lora.digest(dict(params, positions={"embedding": changed}))
        with pytest.raises(UserError, match="trained with: positions/embedding changed"):
            lora.check_base(before, other)


@pytest.mark.parametrize(
    ("targets", "scan"),
    [(r"(query|value)/kernel$", False), (r"(query|up)/kernel$", True), ("out/kernel$", False)],
)
def test_peft_reads_what_is_exported_and_computes_the_same(targets, scan, tmp_path):
    torch, transformers = peers.torch(), peers.transformers()
    peft = peers.peer("peft")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=13, n_positions=8, n_embd=4, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1,
        initializer_range=0.5,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    loaded = zoo.from_pretrained(tmp_path / "base", scan_layers=scan)
    params = loaded.variables["params"]
    additions = random(lora.init(jax.random.key(0), params, targets, 3))
    arrays, described = peft_adapter(
        additions, gpt_table(2, scan_layers=scan), alpha=5.0, dropout=0.1,
        base=str(tmp_path / "base"),
    )  # fmt: skip
    write_weights(
        tmp_path / "adapter", arrays, described, file="adapter_model.safetensors",
        config="adapter_config.json",
    )  # fmt: skip
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(TEXT)).logits.numpy()
    whole = {"params": lora.merged(params, additions, 5.0)}
    found = np.asarray(loaded.module.apply(whole, TEXT)[0])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    without = np.asarray(loaded.module.apply(loaded.variables, TEXT)[0])
    assert np.abs(found - without).max() > 0.1 * np.abs(found).max()
