"""Whether a linen module computes what a PyTorch module does, from the same weights."""

import copy
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import peers
from jaxtyping import Float

from zoo.pretrained import from_reference, to_reference

IMAGE_AXES = (0, 3, 1, 2)  # from our [batch, height, width, channels] to PyTorch's

Results = dict[str, np.ndarray]


def check_parity(
    module: nn.Module,
    reference: Any,
    table: Any,
    inputs: Float[np.ndarray, "batch ..."],
    *,
    axes: Sequence[int] | None = IMAGE_AXES,
) -> None:
    """Compares outputs, and the gradients of every parameter and of the input, without dropout.

    In float64 each array ``a`` may differ from the reference's ``b`` by ``1e-9 * max|b| + 1e-12``.
    In float32 it may be three times as far from the reference's float64 as its float32 is, or
    1e-6 of the largest element.

    Args:
        module: ours; called as ``module.apply({"params": ...}, inputs)``.
        reference: a float32 ``torch.nn.Module``, whose weights are taken.
        table: between the parameters of both.
        inputs: float32, in our layout.
        axes: the order of our input's axes in the reference's; None: the same.

    Raises:
        AssertionError: the largest differences are too large; all are listed.
    """
    exact = computed_by_reference(reference, inputs, axes, np.float64)
    theirs = computed_by_reference(reference, inputs, axes, np.float32)
    with jax.enable_x64(True):
        ours64 = computed_by_ours(module, reference, table, inputs, axes, np.float64)
    ours32 = computed_by_ours(module, reference, table, inputs, axes, np.float32)
    assert set(ours64) == set(ours32) == set(exact)
    wrong = []
    for name, b in exact.items():
        largest = np.abs(b).max()
        assert largest > 0, f"{name} is zero everywhere: comparing it shows nothing"
        if distance(ours64[name], b) > 1e-9 * largest + 1e-12:
            wrong.append(f"{name} in float64: {distance(ours64[name], b):.2g} of {largest:.2g}")
        if distance(ours32[name], b) > max(3 * distance(theirs[name], b), 1e-6 * largest):
            wrong.append(
                f"{name} in float32: {distance(ours32[name], b):.2g}, the reference "
                f"{distance(theirs[name], b):.2g} of {largest:.2g}"
            )
    assert not wrong, "; ".join(wrong)


def computed_by_reference(
    reference: Any, inputs: np.ndarray, axes: Sequence[int] | None, dtype: Any
) -> Results:
    """Returns ``output``, ``input`` (its gradient) and gradients by the parameters' names."""
    torch = peers.torch()
    module = copy.deepcopy(reference).to(getattr(torch, np.dtype(dtype).name)).eval()
    arranged = inputs.astype(dtype).transpose(axes) if axes else inputs.astype(dtype)
    x = torch.from_numpy(np.ascontiguousarray(arranged)).requires_grad_()
    output = module(x)
    output.backward(torch.from_numpy(_cotangent(output.shape).astype(dtype)))
    gradients = {name: p.grad.numpy() for name, p in module.named_parameters()}
    return {"output": output.detach().numpy(), "input": x.grad.numpy()} | gradients


def computed_by_ours(
    module: nn.Module,
    reference: Any,
    table: Any,
    inputs: np.ndarray,
    axes: Sequence[int] | None,
    dtype: Any,
) -> Results:
    """Returns the same as ``computed_by_reference``, in its names and layouts."""
    x = inputs.astype(dtype)
    like = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    weights = {name: p.detach().numpy().astype(dtype) for name, p in reference.named_parameters()}
    params = from_reference(weights, table, like)

    @jax.jit
    def forward_and_backward(params: Any, x: Any, cotangent: Any) -> Any:
        output, backward = jax.vjp(lambda p, x: module.apply({"params": p}, x), params, x)
        return output, *backward(cotangent)

    shape = jax.eval_shape(lambda p, x: module.apply({"params": p}, x), params, x).shape
    with jax.default_matmul_precision("highest"):
        output, gradients, x_gradient = forward_and_backward(
            params, x, _cotangent(shape).astype(dtype)
        )
    assert output.dtype == dtype
    x_gradient = np.asarray(x_gradient)
    return {
        "output": np.asarray(output),
        "input": x_gradient.transpose(axes) if axes else x_gradient,
    } | to_reference(gradients, table)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the largest absolute difference; infinite where shapes differ or nan appears."""
    if a.shape != b.shape:
        return np.inf
    largest = float(np.abs(a.astype(np.float64) - b).max())
    return np.inf if np.isnan(largest) else largest


def _cotangent(shape: Sequence[int]) -> np.ndarray:
    # Of float32 precision, so that both precisions see the same numbers.
    return np.random.default_rng(11).normal(size=tuple(shape)).astype(np.float32)
