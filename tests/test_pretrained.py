"""Files of weights: what is read, what is refused, and that the numbers are the reference's."""

import json
import shutil

import jax
import numpy as np
import peers
import pytest

import zoo
from zoo.errors import UserError
from zoo.families import find
from zoo.weights.files import find_weights, read_weights, write_weights


def images(rows=2, side=32):
    return np.random.default_rng(0).normal(size=(rows, side, side, 3)).astype(np.float32)


def saved(model, folder):
    from safetensors.torch import save_file

    file = folder / "model.safetensors"
    save_file(model.state_dict(), str(file))
    return file


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    torch = peers.torch()
    torch.manual_seed(0)
    model = peers.torchvision().models.resnet18(num_classes=7).eval()
    return model, saved(model, tmp_path_factory.mktemp("weights"))


def test_torchvisions_file_gives_torchvisions_numbers(resnet18):
    torch, (theirs, file) = peers.torch(), resnet18
    loaded = zoo.from_pretrained("resnet18", file, num_classes=7)
    x = images(side=64)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    found = loaded.module.apply(loaded.variables, x)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert loaded.preprocessing.size == 224


@pytest.mark.parametrize(
    ("name", "timm_name", "overrides"),
    [
        ("resnet18", "resnet18", {}),
        ("vit_s_16", "vit_small_patch16_224", {"image_size": 32}),
        ("convnext_tiny", "convnext_tiny", {}),
    ],
)
def test_timms_file_gives_timms_numbers(name, timm_name, overrides, tmp_path):
    torch, timm = peers.torch(), peers.timm()
    torch.manual_seed(0)
    options = {"img_size": 32} if "image_size" in overrides else {}
    theirs = timm.create_model(timm_name, num_classes=7, **options).eval()
    loaded = zoo.from_pretrained(name, saved(theirs, tmp_path).parent, num_classes=7, **overrides)
    x = images()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    found = loaded.module.apply(loaded.variables, x)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """Hugging Face's folder of a small GPT-2, and its logits of some tokens."""
    torch, folder = peers.torch(), tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = peers.transformers().GPT2Config(
        vocab_size=11, n_positions=6, n_embd=4, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1
    )
    model = peers.transformers().GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    tokens = np.array([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        return folder, tokens, model(torch.from_numpy(tokens)).logits.numpy()


def test_the_sizes_beside_hugging_faces_weights_are_taken(gpt2):
    folder, tokens, expected = gpt2
    loaded = zoo.from_pretrained("gpt", folder)
    sizes = ("vocab_size", "context", "num_layers", "num_heads", "features")
    assert [getattr(loaded.module, name) for name in sizes] == [11, 6, 2, 2, 4]
    found, _ = loaded.module.apply(loaded.variables, tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert zoo.from_pretrained("gpt", folder, dropout_rate=0.5).module.dropout_rate == 0.5
    # What is given by hand wins: these weights have no third block.
    with pytest.raises(UserError, match=r"transformer\.h\.2\.ln_1\.weight is missing"):
        zoo.from_pretrained("gpt", folder, num_layers=3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"activation_function": "relu"}', "activation_function='relu'"),
        ('{"layer_norm_epsilon": 1e-6}', "layer_norm_epsilon=1e-06"),
        ("{", r"config\.json is not JSON"),
        ("[" * 100_000, r"config\.json is not JSON"),
        ("[3]", r"config\.json is not a JSON object"),
        ('{"model_type": "bert"}', "model_type='bert', the zoo's GPT reads 'gpt2'"),
        ('{"n_embd": "4"}', r"config\.json: features='4' must be at least 1"),
        ('{"n_head": true}', r"config\.json: num_heads=True must be at least 1"),
        ('{"n_layer": 0}', r"config\.json: num_layers=0 must be between 1 and 1000"),
        (
            '{"n_layer": 1000, "vocab_size": 11, "n_positions": 6}',
            "28 arrays are too few for num_layers=1000",
        ),
        ('{"model": {"name": "cnn"}}', "are of the model 'cnn', not of 'gpt'"),
        ('{"model": {"name": []}}', "of the model \\[\\], not"),
        ('{"n_inner": 7}', "n_inner=7, the zoo's model needs None"),
        ('{"model": {"features": [4]}}', r"config\.json: features=\(4,\) must be at least 1"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(gpt2, tmp_path, text, words):
    shutil.copy(gpt2[0] / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=words):
        zoo.from_pretrained("gpt", tmp_path)


def test_gpt_2_as_the_hub_has_it_gives_hugging_faces_numbers(gpt2, tmp_path):
    """The hub's ``gpt2`` has no ``transformer.``, but masks and, in some copies, the output."""
    from safetensors.numpy import load_file, save_file

    folder, tokens, expected = gpt2
    shutil.copy(folder / "config.json", tmp_path)
    arrays = {
        name.removeprefix("transformer."): array
        for name, array in load_file(folder / "model.safetensors").items()
    }
    for layer in range(2):
        arrays[f"h.{layer}.attn.bias"] = np.tri(6, dtype=np.float32)[None, None]
        arrays[f"h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
    arrays["lm_head.weight"] = arrays["wte.weight"]
    save_file(arrays, str(tmp_path / "model.safetensors"))
    loaded = zoo.from_pretrained("gpt", tmp_path)
    found, _ = loaded.module.apply(loaded.variables, tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_weights_in_parts_and_in_half_precision_are_hugging_faces(gpt2, tmp_path):
    torch, folder, tokens = peers.torch(), gpt2[0], gpt2[1]
    theirs = peers.transformers().GPT2LMHeadModel.from_pretrained(folder).half()
    theirs.save_pretrained(tmp_path, max_shard_size="1KB")
    assert not (tmp_path / "model.safetensors").exists()
    loaded = zoo.from_pretrained("gpt", tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)} == {np.dtype(np.float32)}
    assert "float16, converted to float32" in loaded.said
    with torch.no_grad():
        expected = theirs.float()(torch.from_numpy(tokens)).logits.numpy()
    found, _ = loaded.module.apply(loaded.variables, tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["densenet121", "vit_b_16"])
def test_torchvision_itself_reads_the_older_names_alike(name):
    """The names that torchvision still takes are those of our second table."""
    import re

    models = peers.torchvision().models
    if name == "vit_b_16":
        theirs = models.vision_transformer.VisionTransformer(8, 4, 2, 2, 4, 4, num_classes=3)
        module = zoo.create_model(
            name, image_size=8, patch_size=4, num_layers=2, num_heads=2, features=4,
            feedforward_features=4, num_classes=3,
        )  # fmt: skip
    else:
        theirs = models.densenet.DenseNet(2, (2, 1), 4, num_classes=3)
        module = zoo.create_model(
            name, blocks=(2, 1), growth=2, features=4, bottleneck=4, num_classes=3
        )
    new, old = list(find(name).weights.values())[:2]
    new, old = ({e.reference for e in make(module, {})} for make in (new, old))
    state = {key: value for key, value in theirs.state_dict().items() if "tracked" not in key}
    assert new == set(state)
    assert old != new
    if name == "vit_b_16":  # its class renames them, if the file has no version
        renamed = dict(zip(sorted(new), sorted(old), strict=True))
        given = {
            n.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): value
            for n, value in state.items()
        }
        assert set(given) == old == set(renamed.values())
        theirs.load_state_dict(given)
    else:  # its loader has the pattern
        pattern = r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:\w+))$"
        assert {re.sub(pattern, r"\1\2", n) for n in old} == new


def test_what_does_not_fit_is_listed_together(resnet18):
    with pytest.raises(UserError) as refusal:
        zoo.from_pretrained("resnet34", resnet18[1])
    text = str(refusal.value)
    assert "layer1.2.conv1.weight is missing" in text
    assert "fc.weight (7, 512) does not give fc/kernel (512, 1000)" in text


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".pt"])
def test_pickled_files_are_refused_with_the_reason(tmp_path, suffix):
    with pytest.raises(UserError, match="runs its author's code when it is opened"):
        find_weights(tmp_path / f"weights{suffix}")


def test_files_that_are_not_there_or_broken_are_named(tmp_path):
    with pytest.raises(UserError, match="there is no file of weights"):
        find_weights(tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match="no model.safetensors"):
        find_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="is not a safetensors file"):
        read_weights(tmp_path / "model.safetensors")


def test_without_a_network_the_error_says_which_file_to_pass(monkeypatch):
    import huggingface_hub

    def offline(*arguments, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(UserError, match=r"timm/resnet50/resolve/main/model\.safetensors elsewhere"):
        find_weights("timm/resnet50")


def test_written_files_are_read_again_bit_for_bit(tmp_path):
    arrays = {"a": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}
    file = write_weights(tmp_path / "new", arrays, {"model": {"name": "x"}})
    assert read_weights(file)["a"].tobytes() == arrays["a"].tobytes()
    assert json.loads((tmp_path / "new" / "config.json").read_text()) == {"model": {"name": "x"}}
