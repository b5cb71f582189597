"""Runs that begin with other weights, some of them frozen or begun anew."""

import shutil

import jax
import numpy as np
import peers
import pytest

import zoo
from zoo import building, commands
from zoo.config import check
from zoo.errors import UserError

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


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--config.reset=fc2"], "reset='fc2' has no meaning without init_from"),
        (
            ["--config.freeze=covn"],
            "freeze='covn' matches no parameter; the modules are conv1, conv2",
        ),
        (["--config.freeze=."], "matches every parameter"),
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
