import jax
import jax.numpy as jnp
import pytest

import zoo
from zoo.flops import count_flops


def test_products_and_convolutions_are_counted_by_their_formulas():
    a, b = jnp.zeros((2, 3, 5)), jnp.zeros((5, 7))
    assert count_flops(lambda a, b: jnp.tanh(a @ b) + 1, a, b) == 2 * 2 * 3 * 5 * 7
    image, kernel = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 2, 6))

    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, (2, 2), ((1, 1), (1, 1)), feature_group_count=2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    assert count_flops(convolve, image, kernel) == 2 * (2 * 4 * 4 * 6) * (3 * 3 * 2)


def test_loops_count_as_often_as_they_run_and_inner_functions_too():
    x = jnp.zeros((3, 3))

    def loop(x):
        return jax.lax.scan(lambda c, _: (jax.jit(jnp.matmul)(c, c), None), x, length=5)[0]

    assert count_flops(loop, x) == 5 * 2 * 27
    assert count_flops(lambda x: jax.lax.cond(True, lambda: x @ x @ x, lambda: x), x) == 4 * 27


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # torchvision's documentation, in 10^9 multiply-adds.
        ("resnet18", 1.81), ("resnet50", 4.09), ("vgg16", 15.47), ("mobilenet_v3_large", 0.22),
        ("efficientnet_b0", 0.39), ("densenet121", 2.83), ("convnext_tiny", 4.46),
        ("squeezenet1_1", 0.349), ("vit_b_16", 17.56),
    ],
)  # fmt: skip
def test_models_need_what_is_published(name, published):
    model, image = zoo.create_model(name), jnp.zeros((1, 224, 224, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    found = count_flops(model.apply, variables, image) / 2e9
    assert found == pytest.approx(published, rel=0.03)
