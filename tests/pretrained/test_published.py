"""Files of weights: what is read, what is refused, and that the numbers are the reference's."""

import json

import numpy as np
import peers
import pytest

import zoo
from zoo.errors import UserError
from zoo.pretrained.files import find_weights, read_weights, write_weights


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


def test_what_does_not_fit_is_listed_together(resnet18):
    with pytest.raises(UserError) as refusal:
        zoo.from_pretrained("resnet34", resnet18[1])
    text = str(refusal.value)
    assert "layer1.2.conv1.weight is missing" in text
    assert "fc.weight (7, 512) does not give fc/kernel (512, 1000)" in text


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".pt"])
def test_pickled_files_are_refused_with_the_reason(tmp_path, suffix):
    with pytest.raises(UserError, match="runs code of its author's when it is opened"):
        find_weights(tmp_path / f"weights{suffix}")


def test_files_that_are_not_there_or_broken_are_named(tmp_path):
    with pytest.raises(UserError, match="there is no file of weights"):
        find_weights(tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match="no model.safetensors"):
        find_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="is no safetensors file"):
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
