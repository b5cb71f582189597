"""Products by native functions that are linear in both of their arguments, with every derivative.

The gradients of both arguments are linear in both of theirs, and the derivatives of each of the
three functions are the other two. So each is a primitive of JAX that names them. Everywhere but on
a CPU it is XLA's own operation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from zoo.layers.tuned.devices import on_each_device, vary_alike
from zoo.layers.tuned.platform import with_native

# (first, second, sizes) -> result. The sizes are any value that can be hashed.
Function = Callable[[Array, Array, Any], Array]


@dataclasses.dataclass(frozen=True)
class Form:
    """A function in one or two forms.

    Attributes:
        axes: names of the axes of both arrays and the result, such as ``b i, i f -> b f``. An
            axis ``b`` comes first, and arrays may be divided along it over devices.
        xlas: by XLA's operations.
        native: the same by native functions, for a CPU; None: there is none.
        worthwhile: for given sizes, whether ``native`` is used.
    """

    axes: str
    xlas: Function
    native: Function | None = None
    worthwhile: Callable[[Any], bool] = lambda sizes: True


def differentiable(
    name: str, product: Form, first_gradient: Form, second_gradient: Form
) -> tuple[Function, Function, Function]:
    """Returns three functions that are each other's derivatives.

    Args:
        name: name of the product's primitive.
        product: (first, second, sizes) -> y.
        first_gradient: (dy, second, sizes) -> what the first argument's is.
        second_gradient: (first, dy, sizes) -> what the second argument's is.
    """
    product_p, multiply = _primitive(name, product)
    first_p, by_first = _primitive(f"{name}_d1", first_gradient)
    second_p, by_second = _primitive(f"{name}_d2", second_gradient)
    ad.defbilinear(
        product_p,
        lambda dy, a, b, *, sizes, **_: by_first(dy, b, sizes),
        lambda dy, a, b, *, sizes, **_: by_second(a, dy, sizes),
    )
    ad.defbilinear(
        first_p,
        lambda da, dy, b, *, sizes, **_: multiply(da, b, sizes),
        lambda da, dy, b, *, sizes, **_: by_second(da, dy, sizes),
    )
    ad.defbilinear(
        second_p,
        lambda db, a, dy, *, sizes, **_: by_first(dy, db, sizes),
        lambda db, a, dy, *, sizes, **_: multiply(a, db, sizes),
    )
    return multiply, by_first, by_second


def _bind(primitive: Primitive, form: Form, a: Array, b: Array, sizes: Any) -> Array:
    a, b = vary_alike(a, b)
    function = xlas = functools.partial(_with, form.xlas, sizes)
    if form.native is not None and form.worthwhile(sizes):
        native = on_each_device(functools.partial(_with, form.native, sizes), form.axes)
        function = functools.partial(with_native, native, xlas)
    program = jax.make_jaxpr(function)(a, b)
    return primitive.bind(a, b, program=program, sizes=sizes)


def _with(function: Function, sizes: Any, a: Array, b: Array) -> Array:
    return function(a, b, sizes)


def _primitive(name: str, form: Form) -> tuple[Primitive, Function]:
    """Returns a primitive that JAX can call, lower and map, and the function that binds it."""
    primitive = Primitive(name)
    function = functools.partial(_bind, primitive, form)
    compiled = jax.jit(function, static_argnums=2)

    def called(a: Array, b: Array, *, program: Any, sizes: Any) -> Array:
        # A kernel is only called by a program: compiled where all else is not, too.
        with jax.disable_jit(False):
            return compiled(a, b, sizes)

    primitive.def_impl(called)
    primitive.def_abstract_eval(lambda a, b, *, program, sizes: program.out_avals[0])
    mlir.register_lowering(
        primitive,
        mlir.lower_fun(
            lambda a, b, *, program, sizes: jaxpr_as_fun(program)(a, b), multiple_results=True
        ),
    )
    rows = [axes.split()[0] == "b" for axes in form.axes.replace("->", ",").split(",")]

    def mapped(arrays: Any, places: Any, *, program: Any, sizes: Any) -> tuple[Array, int]:
        (a, b), (place, other) = arrays, places
        if other is not None or rows != [True, False, True]:
            return jax.vmap(functools.partial(_with, form.xlas, sizes), in_axes=places)(a, b), 0
        # Examples of examples are examples.
        a = jnp.moveaxis(a, place, 0)
        result = function(a.reshape(-1, *a.shape[2:]), b, sizes)
        return result.reshape(*a.shape[:2], *result.shape[1:]), 0

    batching.primitive_batchers[primitive] = mapped
    return primitive, function
