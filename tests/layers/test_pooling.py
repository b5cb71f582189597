import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from zoo.errors import UserError
from zoo.layers import adaptive_mean_pool, max_pool, mean_pool


@pytest.mark.parametrize(
    ("height", "width", "arguments"),
    [
        (6, 8, {"window": 2}),
        (7, 5, {"window": 2}),
        (9, 8, {"window": 3, "strides": 2, "padding": 1}),
        (8, 7, {"window": (3, 2), "strides": (1, 3), "padding": (1, 0)}),
        (3, 3, {"window": 3, "strides": 1}),
        (1, 1, {"window": 1}),
    ],
)
@pytest.mark.parametrize("values", ["distinct", "equal ones"])
def test_outputs_and_gradients_are_pytorchs(height, width, arguments, values):
    torch = peers.torch()
    generator = np.random.default_rng(0)
    shape = (2, height, width, 3)
    # After a ReLU many elements of a window are the same: which one gets the gradient matters.
    x = generator.normal(size=shape) if values == "distinct" else generator.integers(-1, 2, shape)
    their_x = torch.tensor(x.transpose(0, 3, 1, 2).astype(float), requires_grad=True)
    names = {"window": "kernel_size", "strides": "stride"}
    expected = torch.nn.functional.max_pool2d(
        their_x, **{names.get(name, name): value for name, value in arguments.items()}
    )
    weight = generator.normal(size=expected.shape)
    expected.backward(torch.tensor(weight))
    with jax.enable_x64(True):
        output, backward = jax.vjp(lambda x: max_pool(x, **arguments), jnp.asarray(x, float))
        (gradient,) = backward(jnp.asarray(weight.transpose(0, 2, 3, 1)))
    np.testing.assert_array_equal(output.transpose(0, 3, 1, 2), expected.detach())
    np.testing.assert_allclose(gradient.transpose(0, 3, 1, 2), their_x.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 7, 8])
@pytest.mark.parametrize(
    ("window", "strides", "padding"),
    [(3, 2, 0), (3, 2, 1), (2, 2, 0), (2, 2, 1), (2, 5, 0), (5, 4, 2)],
)
def test_windows_over_the_edge_are_pytorchs(size, window, strides, padding):
    torch = peers.torch()
    generator = np.random.default_rng(0)
    # Negative: zeros beyond the edge would win.
    x = generator.integers(-4, 0, (2, size, 7, 3)).astype(float)
    their_x = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    options = {"padding": padding, "ceil_mode": True}
    try:
        expected = torch.nn.MaxPool2d(window, strides, **options)(their_x)
    except RuntimeError:  # no window begins in the image
        with pytest.raises(UserError, match="not smaller than the window"):
            max_pool(jnp.asarray(x), window, strides=strides, **options)
        return
    weight = generator.normal(size=expected.shape)
    expected.backward(torch.tensor(weight))
    with jax.enable_x64(True):
        output, backward = jax.vjp(
            lambda x: max_pool(x, window, strides=strides, **options), jnp.asarray(x)
        )
        (gradient,) = backward(jnp.asarray(weight.transpose(0, 2, 3, 1)))
    np.testing.assert_array_equal(output.transpose(0, 3, 1, 2), expected.detach())
    np.testing.assert_allclose(gradient.transpose(0, 3, 1, 2), their_x.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_padding_never_wins_and_nan_always_does(dtype):
    x = jnp.full((1, 2, 2, 1), -5, dtype).at[0, 1, 1].set(jnp.nan)
    pooled = max_pool(x, 2, strides=1, padding=1)
    assert pooled.dtype == dtype
    expected = [[-5, -5, -5], [-5, np.nan, np.nan], [-5, np.nan, np.nan]]
    np.testing.assert_array_equal(pooled[0, :, :, 0].astype(jnp.float32), expected)


@pytest.mark.parametrize("shape", [(4, 4, 3), (1, 1, 4, 3), (1, 4, 1, 3)])
def test_what_does_not_fit_is_refused(shape):
    with pytest.raises(UserError, match="max_pool") as refusal:
        max_pool(jnp.zeros(shape), 2)
    assert str(shape) in str(refusal.value)


def test_windows_of_nothing_but_padding_are_refused():
    with pytest.raises(UserError, match=r"padding \(0, 2\).*window \(3, 2\)"):
        max_pool(jnp.zeros((1, 4, 4, 3)), (3, 2), padding=(0, 2))


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        (lambda x: max_pool(x, 2, padding="SAME"), ["max_pool: padding='SAME'", "size // 2"]),
        (lambda x: max_pool(x, 2, padding=-1), ["max_pool: padding=-1", "at least 0"]),
        (lambda x: max_pool(x, 0), ["max_pool: window=0", "at least 1"]),
        (lambda x: max_pool(x, 2.0), ["max_pool: window=2.0", "integer"]),
        (lambda x: max_pool(x, (2, 2, 1)), ["max_pool: window=(2, 2, 1)", "(height, width)"]),
        (lambda x: max_pool(x, 2, strides="2"), ["max_pool: strides='2'", "integer"]),
        (lambda x: mean_pool(x, None), ["mean_pool: window=None", "integer"]),
        (lambda x: adaptive_mean_pool(x, (0, 1)), ["adaptive_mean_pool: size=(0, 1)", "least 1"]),
    ],
)
def test_arguments_that_are_no_numbers_are_refused(pool, words):
    with pytest.raises(UserError) as refusal:
        pool(jnp.zeros((1, 4, 4, 3)))
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
