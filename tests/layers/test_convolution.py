import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from zoo.errors import UserError
from zoo.layers import Conv


@pytest.mark.parametrize(
    ("height", "width", "channels", "features", "arguments"),
    [
        (6, 5, 3, 4, {"kernel_size": 3, "padding": 1}),
        (7, 9, 2, 3, {"kernel_size": (3, 2), "strides": (2, 3)}),
        (8, 8, 4, 6, {"kernel_size": 3, "strides": 2, "padding": (2, 1), "groups": 2}),
        (9, 7, 3, 3, {"kernel_size": 2, "dilation": (3, 2), "padding": 1, "groups": 3}),
        (1, 1, 2, 5, {"kernel_size": 1, "use_bias": False}),
        (2, 2, 1, 1, {"kernel_size": 5, "padding": 2}),
    ],
)
def test_outputs_and_gradients_are_pytorchs(height, width, channels, features, arguments):
    torch = peers.torch()
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2, height, width, channels))
    names = {"strides": "stride", "use_bias": "bias"}
    theirs = torch.nn.Conv2d(
        channels, features, **{names.get(name, name): value for name, value in arguments.items()}
    ).double()
    their_x = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    expected = theirs(their_x)
    weight = generator.normal(size=expected.shape)
    expected.backward(torch.tensor(weight))

    params = {"kernel": theirs.weight.detach().numpy().transpose(2, 3, 1, 0)}
    if theirs.bias is not None:
        params["bias"] = theirs.bias.detach().numpy()
    with jax.enable_x64(True):
        ours = Conv(features, **arguments)
        shapes = jax.eval_shape(ours.init, jax.random.key(0), x)["params"]
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
        output, backward = jax.vjp(
            lambda p, x: ours.apply({"params": p}, x), params, jnp.asarray(x)
        )
        gradients, x_gradient = backward(jnp.asarray(weight.transpose(0, 2, 3, 1)))
    close = {"rtol": 1e-10, "atol": 1e-12}
    np.testing.assert_allclose(output.transpose(0, 3, 1, 2), expected.detach(), **close)
    np.testing.assert_allclose(x_gradient.transpose(0, 3, 1, 2), their_x.grad, **close)
    kernel_gradient = gradients["kernel"].transpose(3, 2, 0, 1)
    np.testing.assert_allclose(kernel_gradient, theirs.weight.grad, **close)
    if theirs.bias is not None:
        np.testing.assert_allclose(gradients["bias"], theirs.bias.grad, **close)


def test_integers_are_computed_in_the_parameters_type():
    conv, x = Conv(2, 3), np.arange(50, dtype=np.uint8).reshape(1, 5, 5, 2)
    output, variables = conv.init_with_output(jax.random.key(0), x)
    assert output.dtype == jnp.float32
    np.testing.assert_array_equal(output, conv.apply(variables, x.astype(np.float32)))


def test_numpys_numbers_and_lists_are_numbers_and_pairs():
    x = np.random.default_rng(0).normal(size=(1, 7, 6, 2)).astype(np.float32)
    plain = Conv(3, (3, 2), strides=(2, 1), padding=1)
    other = Conv(3, [3, 2], strides=np.array([2, 1]).tolist(), padding=np.int64(1))
    expected, variables = plain.init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(other.apply(variables, x), expected)


@pytest.mark.parametrize(
    ("conv", "shape", "words"),
    [
        (Conv(4), (5, 5, 3), ["(5, 5, 3)", "batch"]),
        (Conv(4, groups=2), (1, 5, 5, 3), ["groups=2", "3"]),
        (Conv(5, groups=2), (1, 5, 5, 4), ["groups=2", "features=5"]),
        (Conv(4, 5, padding=1), (1, 9, 2, 3), ["5", "2"]),
        (Conv(4, 3, dilation=3), (1, 6, 9, 3), ["dilation", "6"]),
        (Conv(4, padding="SAME"), (1, 5, 5, 3), ["Conv: padding='SAME'", "give size // 2"]),
        (Conv(4, padding=((1, 1), (1, 1))), (1, 5, 5, 3), ["padding=((1, 1), (1, 1))", "integer"]),
        (Conv(4, padding=-1), (1, 5, 5, 3), ["padding=-1", "at least 0"]),
        (Conv(4, padding=True), (1, 5, 5, 3), ["padding=True", "integer"]),
        (Conv(4, kernel_size=3.0), (1, 5, 5, 3), ["kernel_size=3.0", "integer"]),
        (Conv(4, kernel_size=(3, 3, 3)), (1, 5, 5, 3), ["kernel_size=(3, 3, 3)", "two of them"]),
        (Conv(4, kernel_size=None), (1, 5, 5, 3), ["kernel_size=None", "integer"]),
        (Conv(4, strides=0), (1, 5, 5, 3), ["strides=0", "at least 1"]),
        (Conv(4, strides=(1, 2.5)), (1, 5, 5, 3), ["strides=(1, 2.5)", "(height, width)"]),
        (Conv(4, dilation="2"), (1, 5, 5, 3), ["dilation='2'", "integer"]),
        (Conv(4, groups=0), (1, 5, 5, 3), ["groups=0", "at least 1"]),
        (Conv(4, groups="1"), (1, 5, 5, 3), ["groups='1'", "integer"]),
    ],
)
def test_what_does_not_fit_is_refused(conv, shape, words):
    with pytest.raises(UserError) as refusal:
        conv.init(jax.random.key(0), jnp.zeros(shape))
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
