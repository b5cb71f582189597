import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from zoo.layers import Linear, apply_each


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_outputs_and_gradients_are_pytorchs(shape, use_bias):
    torch = peers.torch()
    generator = np.random.default_rng(0)
    x = generator.normal(size=shape)
    theirs = torch.nn.Linear(7, 5, bias=use_bias).double()
    their_x = torch.tensor(x, requires_grad=True)
    expected = theirs(their_x)
    weight = generator.normal(size=expected.shape)
    expected.backward(torch.tensor(weight))
    params = {"kernel": theirs.weight.detach().numpy().T}
    if use_bias:
        params["bias"] = theirs.bias.detach().numpy()
    with jax.enable_x64(True):
        ours = Linear(5, use_bias=use_bias)
        shapes = jax.eval_shape(ours.init, jax.random.key(0), x)["params"]
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
        output, backward = jax.vjp(
            lambda p, x: ours.apply({"params": p}, x), params, jnp.asarray(x)
        )
        gradients, x_gradient = backward(jnp.asarray(weight))
    np.testing.assert_allclose(output, expected.detach(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(x_gradient, their_x.grad, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(gradients["kernel"].T, theirs.weight.grad, rtol=1e-12, atol=1e-13)
    if use_bias:
        np.testing.assert_allclose(gradients["bias"], theirs.bias.grad, rtol=1e-12, atol=1e-13)


class Several(nn.Module):
    """Layers of several widths, with and without bias, applied together or one by one."""

    together: bool

    @nn.compact
    def __call__(self, x):
        layers = [Linear(width, use_bias=width != 64, name=f"to_{width}") for width in (3, 64, 96)]
        return apply_each(layers, x) if self.together else [layer(x) for layer in layers]


@pytest.mark.parametrize("shape", [(5, 7), (3, 40, 7)])
def test_applied_together_layers_are_what_they_are_one_by_one(shape):
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), shape, jnp.float64)
        (ours, params), (theirs, expected) = (
            Several(together).init_with_output(jax.random.key(1), x) for together in (True, False)
        )
        assert jax.tree.structure(params) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14)
