"""Whether a linen module computes what a PyTorch module does, from the same weights."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import peers
from jaxtyping import Shaped

from zoo.pretrained import from_reference, to_reference

IMAGE_AXES = (0, 3, 1, 2)  # from our [batch, height, width, channels] to PyTorch's

Results = dict[str, np.ndarray]


def check_parity(
    module: nn.Module,
    reference: Any,
    table: Any,
    *inputs: Shaped[np.ndarray, "batch ..."],
    axes: Sequence[int] | None = IMAGE_AXES,
    ours: Callable[..., Any] | None = None,
    theirs: Callable[..., Any] | None = None,
) -> dict[str, float]:
    """Compares outputs, and the gradients of every parameter and input, without dropout.

    In float64 each array ``a`` may differ from the reference's ``b`` by ``1e-9 * max|b| + 1e-12``.
    In float32 it may be three times as far from the reference's float64 as its float32 is, or
    1e-6 of the largest element.

    Args:
        module: a linen module.
        reference: a float32 ``torch.nn.Module``, whose weights are taken.
        table: between the parameters of both.
        *inputs: in our layout; float32 ones get gradients, others such as tokens do not.
        axes: the order of our inputs' axes in the reference's; None: the same.
        ours: ``(apply, *inputs) -> output``; None: ``apply(*inputs)``.
        theirs: ``(reference, *tensors) -> output``; None: ``reference(*tensors)``.

    Returns:
        The largest differences as shares of the largest elements: ``float64`` and ``float32``.

    Raises:
        AssertionError: the largest differences are too large; all are listed.
    """
    ours = ours or (lambda apply, *inputs: apply(*inputs))
    theirs = theirs or (lambda reference, *tensors: reference(*tensors))
    exact = computed_by_reference(reference, inputs, axes, np.float64, theirs)
    single = computed_by_reference(reference, inputs, axes, np.float32, theirs)
    with jax.enable_x64(True):
        ours64 = computed_by_ours(module, reference, table, inputs, axes, np.float64, ours)
    ours32 = computed_by_ours(module, reference, table, inputs, axes, np.float32, ours)
    assert set(ours64) == set(ours32) == set(exact)
    wrong = []
    shares = {"float64": 0.0, "float32": 0.0}
    for name, b in exact.items():
        largest = np.abs(b).max()
        if name.endswith("bias") and largest < 1e-12:
            continue  # the gradient of a key's bias: the softmax takes it away
        assert largest > 0, f"{name} is zero everywhere: comparing it shows nothing"
        off64, off32 = distance(ours64[name], b), distance(ours32[name], b)
        if off64 > 1e-9 * largest + 1e-12:
            wrong.append(f"{name} in float64: {off64:.2g} of {largest:.2g}")
        if off32 > max(3 * distance(single[name], b), 1e-6 * largest):
            wrong.append(
                f"{name} in float32: {off32:.2g}, the reference "
                f"{distance(single[name], b):.2g} of {largest:.2g}"
            )
        shares["float64"] = max(shares["float64"], off64 / largest)
        shares["float32"] = max(shares["float32"], off32 / largest)
    assert not wrong, "; ".join(wrong)
    # `pytest -s` shows them.
    print(
        f"\nparity: {type(module).__name__} and {type(reference).__name__}, {len(exact)} arrays: "
        f"float64 {shares['float64']:.1e}, float32 {shares['float32']:.1e} of the largest"
    )
    return shares


def computed_by_reference(
    reference: Any, inputs: Sequence[np.ndarray], axes: Any, dtype: Any, call: Callable
) -> Results:
    """Returns ``output``, gradients of inputs (``input``, ``input1``, …) and of parameters."""
    torch = peers.torch()
    module = copy.deepcopy(reference).to(getattr(torch, np.dtype(dtype).name)).eval()
    tensors = []
    for array in inputs:
        arranged = array.transpose(axes) if axes else array
        tensor = torch.from_numpy(np.array(_cast(arranged, dtype)))
        tensors.append(tensor.requires_grad_() if array.dtype == np.float32 else tensor)
    output = call(module, *tensors)
    output.backward(torch.from_numpy(_cotangent(output.shape).astype(dtype)))
    gradients = {name: p.grad.numpy() for name, p in module.named_parameters()}
    of_inputs = [tensor.grad.numpy() for tensor in tensors if tensor.requires_grad]
    return {"output": output.detach().numpy()} | _named(of_inputs) | gradients


def computed_by_ours(
    module: nn.Module,
    reference: Any,
    table: Any,
    inputs: Sequence[np.ndarray],
    axes: Any,
    dtype: Any,
    call: Callable,
) -> Results:
    """Returns the same as ``computed_by_reference``, in its names and layouts."""
    arrays = [_cast(array, dtype) for array in inputs]
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), *arrays))
    weights = {name: p.detach().numpy().astype(dtype) for name, p in reference.named_parameters()}
    params = from_reference(weights, table, variables["params"])
    differentiable = [i for i, array in enumerate(inputs) if array.dtype == np.float32]

    def forward(params: Any, floats: Any) -> Any:
        given = list(arrays)
        for i, array in zip(differentiable, floats, strict=True):
            given[i] = array
        return call(lambda *a, **k: module.apply({"params": params}, *a, **k), *given)

    floats = [arrays[i] for i in differentiable]
    shape = jax.eval_shape(forward, params, floats).shape

    @jax.jit
    def forward_and_backward(params: Any, floats: Any, cotangent: Any) -> Any:
        output, backward = jax.vjp(forward, params, floats)
        return output, *backward(cotangent)

    with jax.default_matmul_precision("highest"):
        output, gradients, of_inputs = forward_and_backward(
            params, floats, _cotangent(shape).astype(dtype)
        )
    assert output.dtype == dtype
    of_inputs = [np.asarray(g).transpose(axes) if axes else np.asarray(g) for g in of_inputs]
    return {"output": np.asarray(output)} | _named(of_inputs) | to_reference(gradients, table)


def _cast(array: np.ndarray, dtype: Any) -> np.ndarray:
    return array.astype(dtype) if array.dtype == np.float32 else array


def _named(of_inputs: Sequence[np.ndarray]) -> Results:
    return {f"input{i or ''}": array for i, array in enumerate(of_inputs)}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the largest absolute difference; infinite where shapes differ or nan appears."""
    if a.shape != b.shape:
        return np.inf
    largest = float(np.abs(a.astype(np.float64) - b).max())
    return np.inf if np.isnan(largest) else largest


def _cotangent(shape: Sequence[int]) -> np.ndarray:
    # Of float32 precision, so that both precisions see the same numbers.
    return np.random.default_rng(11).normal(size=tuple(shape)).astype(np.float32)
