"""Runs that begin with other weights, some of them frozen or begun anew."""

import shutil

import jax
import ml_dtypes
import numpy as np
import peers
import pytest

import zoo
from zoo import building, commands, inference
from zoo.config import check
from zoo.errors import UserError
from zoo.training.checkpoints import Checkpoints

TINY = [
    "--config.model.features=(4, 4, 4)", "--config.model.hidden_features=8",
    "--config.data.image_size=8", "--config.train.batch_size=8", "--config.mesh.data=1",
    "--config.train.eval_batch_size=500", "--config.checkpoint.every=2",
]  # fmt: skip


def config(*overrides, steps=4, file="configs/cnn.py"):
    options = [*TINY, f"--config.train.steps={steps}", *overrides]
    return commands.override(commands.load_config(file), options)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("source")
    zoo.run(config("--config.seed=1"), workdir)
    return workdir


def params(workdir):
    return zoo.load(workdir).variables["params"]


def begun(given):
    """The state of step 0 of a run, and what is said of it."""
    made, dataset = building.with_data(check(given))
    parts = building.build(made, dataset)
    return building.started(parts, made, building.init_state(parts))


def test_frozen_layers_stay_and_reset_ones_begin_anew(source, tmp_path, capsys):
    fine = config(
        f"--config.init_from={source}", "--config.freeze=conv", "--config.reset=fc2",
        "--config.optimizer.weight_decay=0.1",
    )  # fmt: skip
    zoo.run(fine, tmp_path)
    out = capsys.readouterr().out
    assert "8 arrays loaded from" in out
    assert "2 begin anew: fc2" in out
    assert "6 arrays with 408 parameters are frozen" in out
    before, after = params(source), params(tmp_path)
    for layer in ("conv1", "conv2", "conv3"):
        np.testing.assert_array_equal(after[layer]["kernel"], before[layer]["kernel"])
    assert (after["fc1"]["kernel"] != before["fc1"]["kernel"]).any()
    # Far from the source's: a fresh start, not some steps away from it.
    assert np.abs(after["fc2"]["kernel"] - before["fc2"]["kernel"]).max() > 0.05


def test_without_steps_in_between_everything_is_the_sources(source, tmp_path):
    state, _ = begun(config(f"--config.init_from={source}"))
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(params(source)), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema_params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_frozen_parameters_have_no_optimizer_state(source):
    def sizes(*overrides):
        parts = building.build(*building.with_data(check(config(*overrides))))
        state = jax.eval_shape(lambda: building.init_state(parts))
        return sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)

    assert sizes() - sizes("--config.freeze=conv") == 2 * 408


def test_the_run_goes_on_when_the_weights_are_gone(source, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    constant = (f"--config.init_from={copy}", "--config.freeze=conv1")
    zoo.run(config(*constant, steps=2), tmp_path / "run")
    shutil.rmtree(copy)
    report = zoo.run(config(*constant, steps=4), tmp_path / "run")
    assert report["steps"] == 4


def test_published_weights_with_another_head(tmp_path):
    torch = peers.torch()
    from safetensors.torch import save_file

    torch.manual_seed(0)
    theirs = peers.torchvision().models.resnet18(num_classes=1000)
    theirs.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    save_file(theirs.state_dict(), str(tmp_path / "model.safetensors"))
    fine = commands.override(
        commands.load_config("configs/resnet.py"),
        [f"--config.init_from={tmp_path}", "--config.reset=^fc", "--config.freeze=^conv1|layer1"],
    )
    state, said = begun(fine)
    np.testing.assert_array_equal(
        np.asarray(state.params["layer2_0"]["conv1"]["kernel"]).transpose(3, 2, 0, 1),
        theirs.layer2[0].conv1.weight.detach().numpy(),
    )
    assert state.params["fc"]["kernel"].shape == (512, 10)
    assert "2 begin anew: fc" in said[0]


def exported(source, folder, dtype):
    """A file of the source's weights in another type."""
    from safetensors.numpy import load_file, save_file

    arrays = load_file(inference.export(source, folder))
    file = folder / f"{np.dtype(dtype).name}.safetensors"
    save_file({name: array.astype(dtype) for name, array in arrays.items()}, str(file))
    return file


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_of_another_type_begin_a_run_of_float32(source, tmp_path, dtype):
    file = exported(source, tmp_path, dtype)
    state, said = begun(config(f"--config.init_from={file}", "--config.train.ema_decay=0.9"))
    name = np.dtype(dtype).name
    assert f"10 arrays loaded from {file}: 10 {name}, converted to float32" in said[0]
    for tree in (state.params, state.ema_params, state.opt_state):
        kinds = {leaf.dtype for leaf in jax.tree.leaves(tree) if leaf.ndim}
        assert kinds == {np.dtype(np.float32)}
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(params(source)), strict=True):
        np.testing.assert_array_equal(a, np.asarray(b).astype(dtype).astype(np.float32))


def test_a_run_from_half_precision_is_that_from_the_same_values(source, tmp_path):
    file = exported(source, tmp_path, np.float16)
    zoo.run(config(f"--config.init_from={file}"), tmp_path / "half")
    from safetensors.numpy import load_file, save_file

    rounded = {name: array.astype(np.float32) for name, array in load_file(file).items()}
    save_file(rounded, str(tmp_path / "single.safetensors"))
    zoo.run(config(f"--config.init_from={tmp_path}/single.safetensors"), tmp_path / "single")
    half, single = params(tmp_path / "half"), params(tmp_path / "single")
    for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(single), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, b)


def test_a_run_whose_own_parameters_are_half_begins_one_of_float32(source, monkeypatch):
    def in_half(self, which, layout):
        read = of_checkpoint(self, which, layout)
        assert read is not None
        state, step = read
        return jax.tree.map(lambda x: x.astype(np.float16), state), step

    of_checkpoint = Checkpoints.read_state
    monkeypatch.setattr(Checkpoints, "read_state", in_half)
    state, said = begun(config(f"--config.init_from={source}"))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    assert "10 float16, converted to float32" in said[0]


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (1, np.int8, "fc2.weight is int8"),
        (1, np.bool_, "fc2.weight is bool"),
        (1, np.complex64, "fc2.weight is complex64"),
        (1, ml_dtypes.float8_e4m3fn, "fc2.weight is float8_e4m3"),
        (np.nan, np.float32, "fc2.weight has 40 of 80 values that are not finite"),
        (np.inf, np.float16, "fc2.weight has 40 of 80 values that are not finite"),
        (1e39, np.float64, r"fc2.weight has values up to 1e\+39, beyond the range of float32"),
    ],
)
def test_weights_that_no_parameter_can_be_are_refused_by_name(
    source, tmp_path, value, dtype, words
):
    from safetensors.flax import save_file
    from safetensors.numpy import load_file

    arrays = load_file(inference.export(source, tmp_path))
    wrong = arrays["fc2.weight"].astype(np.float64)
    wrong[:5] = value
    arrays["fc2.weight"] = wrong.astype(dtype)
    file = tmp_path / "wrong.safetensors"
    save_file(arrays, str(file))
    with pytest.raises(UserError, match=words) as refusal:
        zoo.run(config(f"--config.init_from={file}"), tmp_path / "run")
    assert str(file) in str(refusal.value)
    # Begun anew, the array is not read.
    state, _ = begun(config(f"--config.init_from={file}", "--config.reset=fc2"))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--config.reset=fc2"], "reset='fc2' has no meaning without init_from"),
        (
            ["--config.freeze=covn"],
            "freeze='covn' matches no parameter; the modules are conv1, conv2",
        ),
        (["--config.freeze=."], "matches every parameter"),
        (["--config.init_from={source}", "--config.reset=."], "reset='.' matches every parameter"),
        (["--config.init_from=nowhere"], "there is no file of weights nowhere"),
        (["--config.init_from={source}", "--config.reset=head"], "reset='head' matches no"),
        (["--config.init_from={source}", "--config.model.hidden_features=9"], "fc1/kernel"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_kept(source, tmp_path, overrides, words):
    given = [override.replace("{source}", str(source)) for override in overrides]
    with pytest.raises(UserError, match=words):
        zoo.run(config(*given), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
