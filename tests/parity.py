"""Whether a linen module computes what a PyTorch module does, from the same weights."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import peers
from jaxtyping import Shaped

from zoo.weights.tables import variables_from_reference, variables_to_reference

IMAGE_AXES = (0, 3, 1, 2)  # from our [batch, height, width, channels] to PyTorch's

# Below it a gradient is zero but for rounding.
TINY = 1e-12

Results = dict[str, np.ndarray]

# What was compared so far: pytest --status writes it down.
MEASURED: list[dict[str, Any]] = []


def check_parity(
    module: nn.Module,
    reference: Any,
    table: Any,
    *inputs: Shaped[np.ndarray, "batch ..."],
    axes: Sequence[int] | None = IMAGE_AXES,
    ours: Callable[..., Any] | None = None,
    theirs: Callable[..., Any] | None = None,
    train: bool = False,
    name: str = "",
) -> dict[str, dict[str, float]]:
    """Compares outputs, and the gradients of every parameter and input, without dropout.

    In float64 each array ``a`` may differ from the reference's ``b`` by ``1e-9 * max|b| + 1e-12``.
    In float32 it may be three times as far from the reference's float64 as its float32 is, or
    1e-6 of the largest element. For gradients that is three times the farthest of the model's
    arrays: how far a single one is, is chance, and of a hundred arrays some are lucky in one of two
    correct programs.

    Args:
        module: a linen module.
        reference: a float32 ``torch.nn.Module``, whose weights are taken.
        table: between the parameters of both.
        *inputs: in our layout; float32 ones get gradients, others such as tokens do not.
        axes: the order of our inputs' axes in the reference's; None: the same.
        ours: ``(apply, *inputs) -> output``; None: ``apply(*inputs)``.
        theirs: ``(reference, *tensors) -> output``; None: ``reference(*tensors)``.
        train: as in training, of modules without dropout: the third of three passes, and what
            batch normalisations keep after it.
        name: for the table of what was compared; empty: the module's class.

    Returns:
        The largest differences as shares of the largest elements, by ``forward`` and ``gradient``
        (with it what normalisations keep), then ``float64`` and ``float32``.

    Raises:
        AssertionError: the largest differences are too large; all are listed.
    """
    ours = ours or (lambda apply, *inputs: apply(*inputs))
    theirs = theirs or (lambda reference, *tensors: reference(*tensors))
    exact = computed_by_reference(reference, inputs, axes, np.float64, theirs, train)
    single = computed_by_reference(reference, inputs, axes, np.float32, theirs, train)
    with jax.enable_x64(True):
        ours64 = computed_by_ours(module, reference, table, inputs, axes, np.float64, ours, train)
    ours32 = computed_by_ours(module, reference, table, inputs, axes, np.float32, ours, train)
    assert set(ours64) == set(ours32) == set(exact)
    wrong = []
    worst = {True: 0.0, False: 0.0}
    for array, b in exact.items():
        if np.abs(b).max() >= TINY:
            share = distance(single[array], b) / np.abs(b).max()
            worst[array == "output"] = max(worst[array == "output"], share)
    shares = {kind: {"float64": 0.0, "float32": 0.0} for kind in ("forward", "gradient")}
    for array, b in exact.items():
        largest = np.abs(b).max()
        if array.endswith("bias") and largest < TINY:
            continue  # the gradient of a key's bias: the softmax takes it away
        assert largest > 0, f"{array} is zero everywhere: comparing it shows nothing"
        off64, off32 = distance(ours64[array], b), distance(ours32[array], b)
        if off64 > 1e-9 * largest + 1e-12:
            wrong.append(f"{array} in float64: {off64:.2g} of {largest:.2g}")
        if off32 > max(3 * worst[array == "output"], 1e-6) * largest:
            wrong.append(
                f"{array} in float32: {off32:.2g}, the reference "
                f"{distance(single[array], b):.2g} of {largest:.2g}, and "
                f"{worst[array == 'output']:.2g} of its worst"
            )
        kind = shares["forward" if array == "output" else "gradient"]
        kind["float64"] = max(kind["float64"], off64 / largest)
        kind["float32"] = max(kind["float32"], off32 / largest)
    assert not wrong, "; ".join(wrong)
    MEASURED.append(
        {
            # Some tests wrap a module to fix arguments.
            "model": name or type(getattr(module, "module", module)).__name__,
            "reference": _described(type(reference)),
            "train": train,
            "arrays": len(exact),
            **shares,
        }
    )
    # `pytest -s` shows them.
    print(
        f"\nparity{' in training' if train else ''}: {type(module).__name__} and "
        f"{type(reference).__name__}, {len(exact)} arrays: "
        + ", ".join(
            f"{kind} {of['float64']:.1e} in float64 and {of['float32']:.1e} in float32"
            for kind, of in shares.items()
        )
        + " of the largest"
    )
    return shares


def computed_by_reference(
    reference: Any,
    inputs: Sequence[np.ndarray],
    axes: Any,
    dtype: Any,
    call: Callable,
    train: bool = False,
) -> Results:
    """Returns ``output``, gradients of inputs (``input``, ``input1``, …) and of parameters.

    In training also the running statistics.
    """
    torch = peers.torch()
    module = copy.deepcopy(reference).to(getattr(torch, np.dtype(dtype).name)).train(train)
    tensors = []
    for array in inputs:
        arranged = array.transpose(axes) if axes else array
        tensor = torch.from_numpy(np.array(_cast(arranged, dtype)))
        tensors.append(tensor.requires_grad_() if array.dtype == np.float32 else tensor)
    for _ in range(2 if train else 0):
        call(module, *tensors)
    output = call(module, *tensors)
    output.backward(torch.from_numpy(_cotangent(output.shape).astype(dtype)))
    gradients = {name: p.grad.numpy() for name, p in module.named_parameters()}
    of_inputs = [tensor.grad.numpy() for tensor in tensors if tensor.requires_grad]
    statistics = {
        name: array.numpy() for name, array in module.named_buffers() if train and array.ndim
    }
    return {"output": output.detach().numpy()} | _named(of_inputs) | gradients | statistics


def computed_by_ours(
    module: nn.Module,
    reference: Any,
    table: Any,
    inputs: Sequence[np.ndarray],
    axes: Any,
    dtype: Any,
    call: Callable,
    train: bool = False,
) -> Results:
    """Returns the same as ``computed_by_reference``, in its names and layouts."""
    arrays = [_cast(array, dtype) for array in inputs]
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), *arrays))
    weights = {
        name: _cast(array.detach().numpy(), dtype)
        for name, array in (*reference.named_parameters(), *reference.named_buffers())
        if name in {entry.reference for entry in table}
    }
    variables = variables_from_reference(weights, table, variables)
    params = variables.pop("params")
    differentiable = [i for i, array in enumerate(inputs) if array.dtype == np.float32]

    def forward(params: Any, floats: Any, state: Any) -> Any:
        given = list(arrays)
        for i, array in zip(differentiable, floats, strict=True):
            given[i] = array
        kept = [state]

        def apply(*a: Any, **k: Any) -> Any:
            if not train:
                return module.apply({"params": params, **state}, *a, **k)
            output, kept[0] = module.apply(
                {"params": params, **state}, *a, train=True, mutable=list(state), **k
            )
            return output

        return call(apply, *given), kept[0]

    floats = [arrays[i] for i in differentiable]
    shape = jax.eval_shape(forward, params, floats, variables)[0].shape

    @jax.jit
    def forward_and_backward(params: Any, floats: Any, state: Any, cotangent: Any) -> Any:
        output, backward, state = jax.vjp(
            lambda params, floats: forward(params, floats, state), params, floats, has_aux=True
        )
        return output, state, *backward(cotangent)

    cotangent = _cotangent(shape).astype(dtype)
    with jax.default_matmul_precision("highest"):
        # One program for all three passes: to compile it takes longer than to run it.
        state = variables
        for _ in range(3 if train else 1):
            output, state, gradients, of_inputs = forward_and_backward(
                params, floats, state, cotangent
            )
    assert output.dtype == dtype
    of_inputs = [np.asarray(g).transpose(axes) if axes else np.asarray(g) for g in of_inputs]
    statistics = to_reference_names(table, state) if train else {}
    return (
        {"output": np.asarray(output)}
        | _named(of_inputs)
        | to_reference_names(table, {"params": gradients})
        | statistics
    )


def to_reference_names(table: Any, collections: Any) -> Results:
    """Returns some collections, such as gradients, in the reference's names and layouts."""
    paths = {
        "/".join(key.key for key in path)
        for collection in collections.values()
        for path, _ in jax.tree_util.tree_leaves_with_path(collection)
    }
    part = [entry for entry in table if entry.ours in paths]
    return variables_to_reference(collections, part)


def _cast(array: np.ndarray, dtype: Any) -> np.ndarray:
    return array.astype(dtype) if array.dtype == np.float32 else array


def _named(of_inputs: Sequence[np.ndarray]) -> Results:
    return {f"input{i or ''}": array for i, array in enumerate(of_inputs)}


def _described(reference: type) -> str:
    library = reference.__module__.partition(".")[0]
    # A class that is written here, such as the seed's.
    own = library == "benchmarks" or library.startswith("test")
    return f"{'PyTorch' if own else library} {reference.__name__}"


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the largest absolute difference; infinite where shapes differ or nan appears."""
    if a.shape != b.shape:
        return np.inf
    largest = float(np.abs(a.astype(np.float64) - b).max())
    return np.inf if np.isnan(largest) else largest


def _cotangent(shape: Sequence[int]) -> np.ndarray:
    # Of float32 precision, so that both precisions see the same numbers.
    return np.random.default_rng(11).normal(size=tuple(shape)).astype(np.float32)
