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


def test_a_scan_counts_as_its_unrolled_form_with_its_gradient():
    weights, x = jnp.zeros((7, 8, 8)), jnp.zeros((4, 8))

    def scanned(weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0].sum()

    def unrolled(weights):
        y = x
        for w in weights:
            y = jnp.tanh(y @ w)
        return y.sum()

    found = [count_flops(jax.grad(loss), weights) for loss in (scanned, unrolled)]
    # The unrolled form has no gradient of its first input.
    assert found[0] == 7 * 3 * 2 * 4 * 8 * 8
    assert found[1] == found[0] - 2 * 4 * 8 * 8


def test_gpt_needs_its_closed_form():
    model = zoo.create_model("gpt", dropout_rate=0.0)
    tokens = jax.ShapeDtypeStruct((1, 1024), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)

    def loss(params, tokens):
        return model.apply({"params": params}, tokens)[0].sum()

    found = count_flops(jax.grad(loss), variables["params"], tokens, platform="tpu")
    # Six for each weight in a product and token; causal attention, of which half is needed.
    layers, width, time, words = 12, 768, 1024, 50257
    weights = layers * 12 * width**2 + words * width
    assert found == pytest.approx(time * (6 * weights + 6 * layers * width * time), rel=0.03)


def test_the_form_for_a_platform_is_counted():
    x = jnp.zeros((3, 3))

    def chosen(x):
        return jax.lax.platform_dependent(
            x, cpu=lambda x: x @ x, tpu=lambda x: x @ x @ x, default=lambda x: x
        )

    counts = {name: count_flops(chosen, x, platform=name) for name in ("cpu", "tpu", "cuda", "")}
    assert counts == {"cpu": 54, "tpu": 108, "cuda": 0, "": 108}


def test_rematerialised_work_is_counted():
    weights, x = jnp.zeros((5, 5)), jnp.zeros((2, 5))

    def loss(weights):
        return jax.checkpoint(lambda w: jnp.tanh(jnp.tanh(x @ w) @ w))(weights).sum()

    plain = count_flops(jax.grad(lambda w: jnp.tanh(jnp.tanh(x @ w) @ w).sum()), weights)
    assert count_flops(jax.grad(loss), weights) == plain + 2 * 2 * 2 * 25
