"""``jax.export`` of models: what is exported may run anywhere, so it names none of our kernels."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from peers import peer
from tuned_forms import compiled

from zoo.layers import fuse
from zoo.models import CNN, GPT, RNN, ResNet

# Large enough for our own kernels.
CASES = {
    "cnn": (
        CNN(num_classes=5, features=(16, 32, 32), hidden_features=64),
        lambda: jax.random.normal(jax.random.key(1), (8, 16, 16, 3)),
    ),
    "residual network": (
        ResNet(num_classes=5, stages=(1, 1), features=16, stem="cifar"),
        lambda: jax.random.normal(jax.random.key(1), (4, 16, 16, 3)),
    ),
    "lstm": (
        RNN(vocab_size=11, embed_features=16, features=32, num_layers=1),
        lambda: jax.random.randint(jax.random.key(1), (4, 32), 0, 11),
    ),
    "transformer": (
        GPT(vocab_size=11, context=64, num_layers=1, num_heads=2, features=64),
        lambda: jax.random.randint(jax.random.key(1), (4, 64), 0, 11),
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


def program(name):
    """The model, its outputs and the gradients of their mean square, and the arguments."""
    model, inputs = CASES[name]
    x = inputs()
    generator = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(np.abs(generator.normal(size=leaf.shape)) * 0.1, leaf.dtype),
        jax.eval_shape(model.init, jax.random.key(0), x),
    )

    def forward(variables, x):
        made = model.apply(variables, x)
        return made[0] if isinstance(made, tuple) else made

    def outputs_and_gradients(variables, x):
        def loss(variables):
            outputs = forward(variables, x)
            return jnp.square(outputs).mean(), outputs

        gradients, outputs = jax.grad(loss, has_aux=True)(variables)
        return outputs, gradients

    return forward, outputs_and_gradients, (variables, x)


def our_calls(text):
    """The names by which a program calls our kernels."""
    called = re.findall(r'custom_call(?: |_target_name = )@?"?([\w.-]+)', text)
    assert "custom_call" not in text or called  # the pattern knows how they are written
    return [name for name in called if name.startswith("zoo")]


def assert_exported_alike(function, arguments):
    normal = jax.jit(function)
    exported = export.export(normal)(*arguments)
    assert not our_calls(exported.mlir_module())
    again = export.deserialize(exported.serialize())
    found, expected = again.call(*arguments), normal(*arguments)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


@every_case
def test_what_is_exported_computes_what_the_model_does(name):
    peer("flatbuffers")
    _, function, arguments = program(name)
    assert_exported_alike(function, arguments)


def test_what_is_fused_can_be_exported_too():
    peer("flatbuffers")
    forward, _, arguments = program("residual network")
    assert_exported_alike(fuse(forward), arguments)


def test_one_export_is_for_several_platforms():
    forward, _, arguments = program("cnn")
    exported = export.export(jax.jit(forward), platforms=("cpu", "cuda", "tpu"))(*arguments)
    assert not our_calls(exported.mlir_module())
    np.testing.assert_allclose(exported.call(*arguments), forward(*arguments), rtol=1e-4)


@compiled
@every_case
def test_a_program_that_runs_here_still_calls_our_kernels(name):
    _, function, arguments = program(name)
    traced = jax.jit(function).trace(*arguments)
    export.export(jax.jit(function))(*arguments)  # leaves nothing behind that others find
    assert our_calls(traced.lower(lowering_platforms=("cpu",)).as_text())
    assert not our_calls(traced.lower(lowering_platforms=("tpu",)).as_text())
