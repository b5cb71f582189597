"""Load, fine-tune, export: transformers opens the folder and computes the same."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from safetensors.numpy import load_file, save_file

import zoo
from zoo import commands, inference
from zoo.errors import UserError
from zoo.training.checkpoints import Checkpoints
from zoo.training.layout import Layout, make_mesh

NEW = 50


@dataclasses.dataclass(frozen=True)
class Trip:
    """A model of transformers with tiny random weights, and how both libraries call it.

    Attributes:
        make: makes the model of transformers, from the library.
        inputs: the inputs by the name that transformers has for them.
        ours: calls our module's ``apply`` with the inputs, and returns outputs.
        theirs: returns the same outputs of what transformers returns.
        writes: whether it writes texts, of which ``NEW`` tokens are compared.
    """

    make: Callable[[Any], Any]
    inputs: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"input_ids": np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])}
    )
    ours: Callable[..., Any] = lambda apply, input_ids: apply(input_ids)[0]
    theirs: Callable[[Any], Any] = lambda made: made.logits
    writes: bool = True


TEXT_PAIR = {"input_ids": np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])}
BERT = {
    "vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
LLAMA = {
    "vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    "max_position_embeddings": 64, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CLIP = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip

# A family that arrives adds its line here.
TRIPS = {
    "llama_1b": Trip(lambda t: t.LlamaForCausalLM(t.LlamaConfig(**LLAMA))),
    "mistral_7b": Trip(lambda t: t.MistralForCausalLM(t.MistralConfig(**LLAMA, sliding_window=8))),
    "qwen2_0_5b": Trip(
        lambda t: t.Qwen2ForCausalLM(
            t.Qwen2Config(**{k: v for k, v in LLAMA.items() if k != "head_dim"})
        )
    ),
    "qwen3_0_6b": Trip(lambda t: t.Qwen3ForCausalLM(t.Qwen3Config(**LLAMA))),
    "bert_masked_lm": Trip(
        lambda t: t.BertForMaskedLM(t.BertConfig(**BERT)),
        ours=lambda apply, input_ids: apply(input_ids),
        writes=False,
    ),
    "roberta_masked_lm": Trip(
        lambda t: t.RobertaForMaskedLM(t.RobertaConfig(**BERT)),
        inputs={"input_ids": TEXT_PAIR["input_ids"] + 1},
        ours=lambda apply, input_ids: apply(input_ids),
        writes=False,
    ),
    "t5_small": Trip(
        lambda t: t.T5ForConditionalGeneration(
            t.T5Config(
                vocab_size=31, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
                initializer_factor=2.0, decoder_start_token_id=0,
            )
        ),
        inputs={**TEXT_PAIR, "decoder_input_ids": np.array([[0, 7, 8], [0, 9, 4]])},
        ours=lambda apply, input_ids, decoder_input_ids: apply(input_ids, decoder_input_ids),
        writes=False,
    ),
    "clip_vit_base_patch32": Trip(
        lambda t: t.CLIPModel(
            t.CLIPConfig(
                text_config={**CLIP, "vocab_size": 31, "max_position_embeddings": 16,
                             "eos_token_id": 5},
                vision_config={**CLIP, "image_size": 8, "patch_size": 4},
                projection_dim=8,
            )
        ),
        inputs={
            "input_ids": np.array([[3, 1, 4, 1, 5], [9, 2, 6, 3, 5]]),
            "pixel_values": np.random.default_rng(0)
            .normal(size=(2, 3, 8, 8))
            .astype(np.float32),
        },
        ours=lambda apply, input_ids, pixel_values: apply(
            pixel_values.transpose(0, 2, 3, 1), input_ids
        ).logits,
        theirs=lambda made: made.logits_per_image,
        writes=False,
    ),
    "whisper_tiny": Trip(
        lambda t: t.WhisperForConditionalGeneration(
            t.WhisperConfig(
                vocab_size=31, num_mel_bins=4, d_model=16, encoder_layers=2, decoder_layers=2,
                encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
                decoder_ffn_dim=24, max_source_positions=6, max_target_positions=12,
                pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
                init_std=0.3,
            )
        ),
        inputs={
            "input_features": np.random.default_rng(0).normal(size=(2, 4, 12)).astype(np.float32),
            "decoder_input_ids": np.array([[3, 7, 8], [3, 9, 4]]),
        },
        ours=lambda apply, input_features, decoder_input_ids: apply(
            input_features.transpose(0, 2, 1), decoder_input_ids
        ),
        writes=False,
    ),
    "gpt": Trip(
        lambda t: t.GPT2LMHeadModel(
            t.GPT2Config(
                vocab_size=31, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=1,
                eos_token_id=2, initializer_range=0.3,
            )
        )
    ),
}  # fmt: skip


def tokenizer_of(folder, size):
    """Writes a tokenizer of words, ``w0`` and so on, as its model has numbers."""
    tokenizers = peers.peer("tokenizers")
    words = {f"w{number}": number for number in range(size)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w2", "unk_token": "w0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def fine_tuned(loaded, trip):
    """The variables after a step that changes every parameter, none of them much."""

    def loss(params):
        outputs = trip.ours(
            lambda *a, **b: loaded.module.apply({**loaded.variables, "params": params}, *a, **b),
            **trip.inputs,
        )
        return jnp.square(outputs - 1).mean()

    params = loaded.variables["params"]
    gradient = jax.jit(jax.grad(loss))(params)
    changed = jax.tree.map(lambda p, g: p - 0.02 * g / (1e-3 + jnp.abs(g).max()), params, gradient)
    return {**loaded.variables, "params": changed}


def likeliest(module, variables, prompt):
    """The likeliest tokens after a prompt, each by a whole forward pass."""
    apply = jax.jit(lambda tokens: module.apply(variables, tokens)[0])
    tokens = np.zeros((1, len(prompt) + NEW), np.int32)
    tokens[0, : len(prompt)] = prompt
    for place in range(len(prompt), len(prompt) + NEW):
        tokens[0, place] = int(apply(tokens)[0, place - 1].argmax())
    return tokens[0].tolist()


def opened(folder):
    """transformers' model of a folder; nothing may be missing or left over."""
    transformers = peers.transformers()
    described = json.loads((folder / "config.json").read_text())
    kind = getattr(transformers, described["architectures"][0])
    theirs, told = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    return theirs.eval()


def check_same(theirs, trip, module, variables):
    torch = peers.torch()
    with torch.no_grad():
        tensors = {name: torch.from_numpy(x) for name, x in trip.inputs.items()}
        expected = trip.theirs(theirs(**tensors)).numpy()
    found = trip.ours(lambda *a, **b: module.apply(variables, *a, **b), **trip.inputs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    if trip.writes:
        prompt = trip.inputs["input_ids"][0].tolist()
        given = torch.tensor([prompt])
        made = theirs.generate(
            input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=NEW,
            min_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert likeliest(module, variables, prompt) == made[0].tolist()


@pytest.mark.parametrize("name", TRIPS)
def test_a_fine_tuned_model_opens_in_transformers(name, tmp_path):
    torch, trip = peers.torch(), TRIPS[name]
    torch.manual_seed(0)
    model = trip.make(peers.transformers()).eval()
    model.save_pretrained(tmp_path / "from")
    tokenizer_of(tmp_path / "from", model.config.get_text_config().vocab_size)
    loaded = zoo.from_pretrained(tmp_path / "from")
    assert loaded.name == name
    check_same(model, trip, loaded.module, loaded.variables)
    variables = fine_tuned(loaded, trip)
    loaded.save(tmp_path / "to", variables)
    check_same(opened(tmp_path / "to"), trip, loaded.module, variables)
    # What does not depend on the weights is as it was.
    assert loaded.tokenizer.encode("w3 w1 w4") == [3, 1, 4]
    texts = [
        peers.transformers().AutoTokenizer.from_pretrained(tmp_path / folder).encode("w3 w1 w4")
        for folder in ("from", "to")
    ]
    # For Qwen2, transformers reads the words by rules of its own.
    assert texts[0] == texts[1] == ([] if name == "qwen2_0_5b" else [3, 1, 4])
    before, after = (
        json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("from", "to")
    )
    for key in ("bos_token_id", "eos_token_id", "architectures", "model_type"):
        assert after.get(key) == before.get(key)
    if (tmp_path / "from" / "generation_config.json").exists():
        generation = [(tmp_path / f / "generation_config.json").read_text() for f in ("from", "to")]
        assert generation[0] == generation[1]
    # And it comes back bit for bit.
    again = zoo.from_pretrained(tmp_path / "to")
    assert again.module == loaded.module
    for a, b in zip(jax.tree.leaves(again.variables), jax.tree.leaves(variables), strict=True):
        np.testing.assert_array_equal(a, b)


# A short one: a run evaluates all of it.
TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n" * 20


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder of a GPT-2 with as many tokens as ``TEXT`` has characters."""
    torch, transformers = peers.torch(), peers.transformers()
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(set(TEXT)), n_positions=64, n_embd=8, n_layer=2, n_head=2, bos_token_id=1,
        eos_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def run(published, workdir, *overrides, steps=2):
    """Fine-tunes the folder's model on the characters of ``TEXT``."""
    text = workdir.parent / "text.txt"
    text.write_text(TEXT)
    config = commands.load_config("configs/gpt.py")
    config.data.name, config.data.path = "text", str(text)
    zoo.run(
        commands.override(
            config,
            [
                f"--config.init_from={published}", "--config.model.use_bias=True",
                "--config.model.features=8", "--config.model.num_layers=2",
                "--config.model.num_heads=2", "--config.model.context=64",
                "--config.data.eval_context=64", "--config.train.eval_batch_size=4",
                "--config.data.context=16", "--config.train.batch_size=4",
                f"--config.train.steps={steps}", "--config.train.ema_decay=0.0",
                "--config.optimizer.schedule=constant", "--config.optimizer.warmup_steps=0",
                "--config.mesh.data=1", "--config.checkpoint.every=1", *overrides,
            ],
        ),
        workdir,
    )  # fmt: skip


def test_a_run_that_began_with_published_weights_opens_in_transformers(published, tmp_path):
    run(published, tmp_path / "run")
    loaded = zoo.load(tmp_path / "run")
    before = zoo.from_pretrained(published)
    assert not np.array_equal(
        loaded.params["tokens"]["embedding"], before.variables["params"]["tokens"]["embedding"]
    )
    folder = inference.export(tmp_path / "run").parent
    check_same(opened(folder), TRIPS["gpt"], loaded.module, loaded.variables)
    theirs = peers.transformers().AutoTokenizer.from_pretrained(folder)
    text = "First Citizen:\nBefore we proceed, \n"
    numbers = loaded.preprocess(text).tolist()
    assert theirs.encode(text) == numbers == zoo.from_pretrained(folder).tokenizer.encode(text)
    assert theirs.decode(numbers) == text
    assert json.loads((folder / "generation_config.json").read_text()) == {
        "bos_token_id": None, "eos_token_id": None
    }  # fmt: skip


LORA = [
    "--config.lora.rank=2", "--config.lora.alpha=8.0", "--config.lora.dropout=0.1",
    "--config.optimizer.learning_rate=0.05",
]  # fmt: skip


@pytest.fixture(scope="module")
def adapted(published, tmp_path_factory):
    """A run of two steps that trains low ranks, and the copy of the weights it began with."""
    folder = tmp_path_factory.mktemp("adapted")
    shutil.copytree(published, folder / "base")
    run(folder / "base", folder / "run", *LORA)
    return folder


def state_of(workdir):
    return Checkpoints(workdir, read_only=True).read_state("latest", Layout(make_mesh(1)))[0]


def test_only_low_ranks_are_trained_and_saved(adapted):
    state = state_of(adapted / "run")
    kernels = [f"block_{layer}/attention/{name}/kernel" for layer in "01" for name in
               ("query", "value")]  # fmt: skip
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(state["params"])
    }
    assert shapes == {
        f"{kernel}/{name}": shape for kernel in kernels for name, shape in
        (("a", (8, 2)), ("b", (2, 8)))
    }  # fmt: skip
    assert all(np.any(leaf) for leaf in jax.tree.leaves(state["params"]))
    # Of each frozen array there are two numbers.
    assert {leaf.shape for leaf in jax.tree.leaves(state["model_state"])} == {(2,)}
    report = json.loads((adapted / "run" / "report.json").read_text())
    assert report["parameters"] == 4 * 2 * (8 + 8)


def test_low_ranks_go_on_bit_for_bit_with_unchanged_weights_alone(adapted, tmp_path):
    base = adapted / "base"
    run(base, tmp_path / "run", *LORA, steps=1)
    run(base, tmp_path / "run", *LORA, steps=2)
    found, expected = state_of(tmp_path / "run"), state_of(adapted / "run")
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    arrays = load_file(base / "model.safetensors")
    arrays["transformer.h.1.mlp.c_fc.bias"][3] += 1e-3
    kept = (base / "model.safetensors").read_bytes()
    save_file(arrays, str(base / "model.safetensors"))
    try:
        with pytest.raises(UserError, match="trained with: block_1/up/bias changed"):
            run(base, tmp_path / "run", *LORA, steps=3)
        with pytest.raises(UserError, match="trained with: block_1/up/bias changed"):
            zoo.load(tmp_path / "run")
    finally:
        (base / "model.safetensors").write_bytes(kept)


def test_low_ranks_open_in_transformers_and_in_peft(adapted):
    peft, transformers = peers.peer("peft"), peers.transformers()
    loaded = zoo.load(adapted / "run")
    before = zoo.from_pretrained(adapted / "base")
    for name, changes in (("query", True), ("key", False), ("value", True)):
        ours, theirs = (
            np.asarray(params["block_1"]["attention"][name]["kernel"])
            for params in (loaded.params, before.variables["params"])
        )
        assert changes == (not np.array_equal(ours, theirs))
    folder = inference.export(adapted / "run").parent
    check_same(opened(folder), TRIPS["gpt"], loaded.module, loaded.variables)
    file = inference.export(adapted / "run", adapter=True)
    assert file == adapted / "run" / "adapter" / "adapter_model.safetensors"
    base = transformers.AutoModelForCausalLM.from_pretrained(adapted / "base")
    theirs = peft.PeftModel.from_pretrained(base, file.parent).eval()
    check_same(theirs, TRIPS["gpt"], loaded.module, loaded.variables)


def test_what_has_no_low_ranks_is_refused(published, adapted, tmp_path):
    with pytest.raises(UserError, match="matches no parameter.*block_.*/attention/query/kernel"):
        run(published, tmp_path / "run", "--config.lora.rank=2", "--config.lora.targets=qeury")
    with pytest.raises(UserError, match="is a run with lora.rank.*`zoo export --workdir"):
        run(adapted / "run", tmp_path / "run")
    with pytest.raises(UserError, match="needs init_from"):
        run("", tmp_path / "run", "--config.lora.rank=2")
    with pytest.raises(UserError, match="freeze='up' has no meaning with lora.rank=2"):
        run(published, tmp_path / "run", "--config.lora.rank=2", "--config.freeze=up")
