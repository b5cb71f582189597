"""Every line of docs/coming_from_flax.md that is ours, run on tiny folders of transformers."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

import zoo
from zoo.families import FAMILIES

PAGE = (Path(__file__).parents[1] / "docs" / "coming_from_flax.md").read_text()
TINY = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
}  # fmt: skip
BERT = {**TINY, "vocab_size": 20, "max_position_embeddings": 16}
ROBERTA = {**BERT, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
T5 = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 20}
VISION = {**TINY, "image_size": 8, "patch_size": 4, "projection_dim": 8}
CLIP_TEXT = {**BERT, "projection_dim": 8, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
CONFIGS = {
    "Bert": lambda t: t.BertConfig(**BERT),
    "Roberta": lambda t: t.RobertaConfig(**ROBERTA),
    "GPT2": lambda t: t.GPT2Config(
        vocab_size=20, n_positions=16, n_embd=8, n_layer=2, n_head=2, bos_token_id=1,
        eos_token_id=1,
    ),
    "Llama": lambda t: t.LlamaConfig(**BERT, num_key_value_heads=1),
    "T5": lambda t: t.T5Config(**T5),
    "CLIP": lambda t: t.CLIPConfig(
        text_config=CLIP_TEXT, vision_config=VISION, projection_dim=8
    ),
    "CLIPText": lambda t: t.CLIPTextConfig(**CLIP_TEXT),
    "CLIPVision": lambda t: t.CLIPVisionConfig(**VISION),
    "Whisper": lambda t: t.WhisperConfig(
        vocab_size=20, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=8,
        max_source_positions=16, max_target_positions=16, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=3, suppress_tokens=None,
        begin_suppress_tokens=None,
    ),
}  # fmt: skip


def saved(architecture, folder):
    """Saves a tiny model of transformers."""
    torch, transformers = peers.torch(), peers.transformers()
    torch.manual_seed(0)
    kind = re.split(r"Model|LMHead|For|Encoder", architecture)[0]
    model = getattr(transformers, architecture)(CONFIGS[kind](transformers)).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names that the right column and the blocks of the page have made, by the first row on."""
    tokenizers, folder = peers.peer("tokenizers"), tmp_path_factory.mktemp("gpt2")
    theirs = saved("GPT2LMHeadModel", folder)
    words = {f"w{number}": number for number in range(20)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    names = {
        "zoo": zoo, "jnp": jnp, "folder": str(folder), "out": str(folder / "out"),
        "text": "w3 w1 w4", "key": jax.random.key(0), "messages": [{"content": "w3"}],
    }  # fmt: skip
    table = PAGE.split("## The same steps")[1].split("## Which classes")[0]
    rows = re.findall(r"^\| `(.+)` \| `(.+)` \|$", table, re.MULTILINE)
    assert len(rows) == 12
    for _, ours in rows:
        exec(ours, names)
    blocks = PAGE.split("```python\n")[1:]
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block.partition("```")[0], "coming_from_flax.md", "exec"), names)
    return names, theirs


def test_the_rows_give_what_transformers_gives(page):
    names, theirs = page
    torch = peers.torch()
    with torch.no_grad():
        expected = theirs(torch.tensor([[3, 1, 4]])).logits.numpy()
    found, _ = names["model"].module.apply(names["model"].variables, names["tokens"])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert names["text"] == "w3 w1 w4"
    assert names["half"].variables["params"]["ln_f"]["scale"].dtype == jnp.bfloat16
    again = names["again"].variables["params"]
    for a, b in zip(
        jax.tree.leaves(again), jax.tree.leaves(names["model"].variables["params"]), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_the_step_lowers_the_loss(page):
    names, _ = page
    assert names["loss"](names["params"]) < names["before"]


def test_nnx_computes_the_same_there_and_back(page):
    names, _ = page
    expected, _ = names["model"].module.apply(names["model"].variables, names["tokens"])
    np.testing.assert_allclose(names["logits_of_nnx"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(names["logits_of_linen"], expected, rtol=1e-5, atol=1e-6)
    head = names["variables"]["params"]["head"]
    vectors, _ = names["model"].module.apply(
        names["model"].variables, names["tokens"], method="vectors"
    )
    by_hand = vectors[:, -1] @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(names["numbers"], by_hand, rtol=1e-4, atol=1e-5)


CLASSES = re.findall(r"`Flax(\w+)`", PAGE.split("## Which classes")[1].split("## From NNX")[0])


@pytest.mark.parametrize("architecture", CLASSES)
def test_every_class_of_the_table_is_found_by_its_folder(architecture, tmp_path):
    published = {theirs: name for family in FAMILIES for theirs, name in family.published.items()}
    if architecture not in published:
        pytest.skip(f"the zoo has no {architecture} yet")
    saved(architecture, tmp_path)
    assert zoo.from_pretrained(tmp_path).name == published[architecture]
