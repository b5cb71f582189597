"""What the tests of tuned forms ask of each: its derivatives, and the programs it becomes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from zoo.layers.tuned.platform import has_native

# The kernel that the processor's matrix unit multiplies with.
MATRICES = "multiply_matrices"

# How users' programs are compiled; conftest.py has most others compiled as quickly as can be.
AS_FOR_USERS = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}

compiled = pytest.mark.skipif(
    not has_native("convolve_tiles", np.dtype("float32")), reason="there are no kernels here"
)
on_a_matrix_unit = pytest.mark.skipif(
    not has_native(MATRICES, np.dtype("float32")), reason="the processor has no matrix unit"
)


def gradients(function, x, kernel, dy):
    """The output and the gradients of both arguments."""
    output, backward = jax.vjp(function, x, kernel)
    return output, *backward(dy)


def assert_close(ours, theirs, tolerance):
    """The same types, shapes and, within a share of each array's largest element, numbers."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max(initial=0) <= tolerance * np.abs(b).max(initial=0)


def second_derivatives(function, x, kernel):
    """Of a sum of cubes: the gradients' tangents, and the gradients of a sum of their squares."""

    def gradient(*arrays):
        return jax.grad(lambda *a: (function(*a) ** 3).sum(), argnums=(0, 1))(*arrays)

    def outer(*arrays):
        return sum((array**2).sum() for array in gradient(*arrays))

    tangents = jnp.cos(x), jnp.sin(kernel)
    forward = jax.jvp(gradient, (x, kernel), tangents)[1]
    return forward, jax.grad(outer, argnums=(0, 1))(x, kernel)


def gradients_of_divided_rows(function, x, kernel, dy):
    """The gradients with the rows on eight devices, where none may gather those of others."""
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    compiled = (
        jax.jit(
            lambda *arrays: gradients(function, *arrays),
            in_shardings=(rows, whole, rows),
            out_shardings=(rows, rows, whole),
        )
        .lower(x, kernel, dy)
        .compile()
    )
    assert "all-gather" not in compiled.as_text()
    assert "all-reduce" in compiled.as_text()
    return compiled(x, kernel, dy)


def lowered_gradients(function, x, kernel, dy, platform="cpu", differentiated=(0, 1)):
    """The program of the output and the gradients of the arguments with these numbers."""

    def program(x, kernel, dy):
        arguments = [x, kernel]

        def of(*some):
            for number, argument in zip(differentiated, some, strict=True):
                arguments[number] = argument
            return function(*arguments)

        output, backward = jax.vjp(of, *(arguments[number] for number in differentiated))
        return output, backward(dy)

    return jax.jit(program).trace(x, kernel, dy).lower(lowering_platforms=(platform,)).as_text()


def contractions(lowered):
    """How many convolutions and products a program has."""
    return lowered.count("stablehlo.convolution") + lowered.count("stablehlo.dot_general")


def kept(function, x, kernel):
    """How many elements are kept for the gradients."""
    _, backward = jax.vjp(function, x, kernel)
    return sum(leaf.size for leaf in jax.tree.leaves(backward))
