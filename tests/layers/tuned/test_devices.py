"""Native functions under a mesh: each device calls them with its rows, or none does."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tuned_forms

from zoo.layers import Conv, Linear, Recurrent
from zoo.layers.tuned.platform import has_native
from zoo.training.layout import Layout, compile_step, make_mesh
from zoo.training.placement import placement_of


class Layers(nn.Module):
    """One of each layer that has native functions, large enough that they are called."""

    @nn.compact
    def __call__(self, image):
        y = Conv(32, 3, padding=1, name="conv")(image)
        y = Linear(256, name="up")(y.reshape(len(y), -1, 64))
        return Recurrent("lstm", 16, name="layers")(y)[0]


TABLE = ((r"up/kernel$", ("embed", "hidden")), (r"up/bias$", ("hidden",)))


@pytest.fixture(scope="module")
def one():
    image = jax.random.normal(jax.random.key(0), (8, 12, 12, 16))
    variables = jax.jit(Layers().init)(jax.random.key(1), image)["params"]
    return variables, {"image": np.asarray(image)}, *computed(variables, image, (1,))


def computed(params, image, mesh):
    """The gradients on a mesh, and the text of the program."""

    def gradients(params, batch):
        return jax.grad(lambda p: jnp.square(Layers().apply({"params": p}, batch["image"])).sum())(
            params
        )

    mesh = make_mesh(*mesh)
    layout = Layout(mesh, placement_of(TABLE, params, mesh)[0])
    batch = {"image": np.asarray(image)}
    compiled, _ = compile_step(gradients, params, batch, layout, returns_state=False)
    return compiled(layout.put(params), layout.put_batch(batch)), compiled.as_text()


@pytest.mark.parametrize("mesh", [(8,), (1, 8), (2, 4)])
def test_each_device_calls_them_with_its_rows(one, mesh):
    params, batch, expected, text_of_one = one
    made, text = computed(params, batch["image"], mesh)
    tuned_forms.assert_close(made, expected, 1e-5)
    if has_native("recur_forward", np.dtype("float32")):
        for function in ("recur_forward", "recur_backward"):
            assert "zoo_" in text_of_one
            assert function in text_of_one
            assert function in text


@pytest.mark.parametrize("mesh", [(2, 2, 2), (2, 1, 2, 2)])
def test_where_widths_or_lengths_are_divided_none_is_called(one, mesh):
    params, batch, expected, _ = one
    made, text = computed(params, batch["image"], mesh)
    assert "zoo_" not in text
    tuned_forms.assert_close(made, expected, 1e-5)
