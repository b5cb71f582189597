import jax
import jax.numpy as jnp
import pytest

from zoo.training import compiler_options, jit
from zoo.training.partitioning import compile_step, make_mesh, run_once


def convolve(kernel, image):
    return jax.lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


SHAPES = ((3, 3, 32, 64), (64, 48, 48, 32))
ARRAYS = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in SHAPES)


def uses_the_slower_library(compiled):
    return "ynn_fusion" in compiled.as_text()


def test_convolutions_on_a_cpu_are_the_faster_librarys():
    # When this fails jaxlib has another default: measure again whether the option still pays.
    assert uses_the_slower_library(jax.jit(convolve).lower(*ARRAYS).compile())
    assert not uses_the_slower_library(jit(convolve).lower(*ARRAYS).compile())
    step, _ = compile_step(
        lambda kernel, batch: convolve(kernel, batch["image"]),
        ARRAYS[0], {"image": ARRAYS[1]}, make_mesh(1), donate=False,
    )  # fmt: skip
    assert not uses_the_slower_library(step)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_other_platforms_are_told_nothing(platform):
    assert compiler_options(platform) == {}


def test_compiled_quickly_the_first_numbers_are_the_same():
    def drawn():
        key = jax.random.key(0)
        return jax.random.uniform(key, (1000,)), jax.random.normal(key, (1000,))

    for quick, usual in zip(run_once(drawn), jax.jit(drawn)(), strict=True):
        assert (quick == usual).all()
