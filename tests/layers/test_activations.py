import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from zoo.errors import UserError
from zoo.layers import activation


def peer(name):
    functional = peers.torch().nn.functional
    return {
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "identity": lambda x: 1 * x,
        "quick_gelu": lambda x: peers.transformers().activations.ACT2FN["quick_gelu"](x),
        "relu": functional.relu,
        "sigmoid": functional.sigmoid,
        "silu": functional.silu,
        "softmax": lambda x: functional.softmax(x, dim=-1),
        "tanh": functional.tanh,
    }[name]


NAMES = (
    "gelu", "gelu_tanh", "identity", "quick_gelu", "relu", "sigmoid", "silu", "softmax", "tanh",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_pytorchs(name):
    torch = peers.torch()
    generator = np.random.default_rng(0)
    x = np.concatenate(
        [generator.normal(size=61) * 3, [0, -0.0, 1e-30, -1e-30, 40, -40, 700, -700]]
    )
    x = x.reshape(3, 23)
    weight = generator.normal(size=x.shape)
    theirs = torch.tensor(x, requires_grad=True)
    expected = peer(name)(theirs)
    expected.backward(torch.tensor(weight))
    with jax.enable_x64(True):
        output, backward = jax.vjp(activation(name), jnp.asarray(x))
        (gradient,) = backward(jnp.asarray(weight))
        np.testing.assert_allclose(output, expected.detach(), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(gradient, theirs.grad, rtol=1e-12, atol=1e-14)


def test_unknown_name():
    with pytest.raises(UserError, match="'rleu' is unknown. Did you mean 'relu'"):
        activation("rleu")
