"""What follows a convolution, done to its outputs before they are stored.

XLA calls a native function and then reads and writes all of its outputs once more, for the bias or
the normalisation, the shortcut and the rectifier. In a program that only predicts, native functions
do that as well. Models do not say so: it is found in the program that JAX traces of them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import (
    ClosedJaxpr,
    DebugInfo,
    Jaxpr,
    JaxprEqn,
    Literal,
    Var,
    jaxpr_as_fun,
)
from jaxtyping import Array, Float

from zoo.layers.tuned import convolution_native
from zoo.layers.tuned.devices import on_each_device, vary_alike
from zoo.layers.tuned.platform import with_native

Output = Float[Array, "batch new_height new_width features"]
# What an equation does to outputs, in the order in which a native function can do it: with a number
# of each feature, any number of times; with an array; and to rectify them.
_BY_FEATURE, _BY_ARRAY, _RECTIFY, _ELSE = range(4)
# What JAX wraps a rectifier in, and the parameter that has the program within.
_PROGRAMS = {"custom_jvp_call": "call_jaxpr", "jit": "jaxpr"}


def fuse(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function one that does what follows convolutions while their outputs are in a cache.

    To be compiled: ``jax.jit(fuse(model.apply))``. Outputs of a convolution by one of our own
    kernels, for a CPU, that nothing else reads may be added to or multiplied by numbers of each
    feature, such as a bias or a normalisation's, then added to an array, then rectified. It is the
    same arithmetic but for rounding, with the same derivatives, and nothing changes elsewhere.

    Args:
        function: of trees of arrays; all else, as ``train=False``, is bound to it before, by
            ``functools.partial``.
    """

    @functools.wraps(function)
    def in_fewer_passes(*args: Any, **kwargs: Any) -> Any:
        program, result = jax.make_jaxpr(function, return_shape=True)(*args, **kwargs)
        arguments, chains = jax.tree.leaves((args, kwargs)), _chains(program.jaxpr)
        values = (
            _evaluate(program, chains, arguments) if chains else jaxpr_as_fun(program)(*arguments)
        )
        return jax.tree.unflatten(jax.tree.structure(result), values)

    return in_fewer_passes


@dataclasses.dataclass(frozen=True)
class _Step:
    """An equation that a native function takes over.

    Attributes:
        equation: the equation in the program.
        place: which of its arguments are the outputs so far.
        does: one of the above.
    """

    equation: JaxprEqn
    place: int
    does: int

    @property
    def operands(self) -> list[Any]:
        """The other argument, if there is one."""
        return [atom for i, atom in enumerate(self.equation.invars) if i != self.place]

    def apply(self, y: Array, operands: Sequence[Array]) -> Array:
        """Returns the equation's result."""
        arguments = [*operands[: self.place], y, *operands[self.place :]]
        result: Array = _compute(self.equation, arguments)[0]
        return result


# A convolution and what its kernel can take over.
_Chain = tuple[JaxprEqn, list[_Step]]


def _evaluate(closed: ClosedJaxpr, chains: Sequence[_Chain], arguments: Sequence[Any]) -> list[Any]:
    program = closed.jaxpr
    inputs = (*program.constvars, *program.invars)
    values = dict(zip(inputs, (*closed.consts, *arguments), strict=True))

    def read(atoms: Sequence[Any]) -> list[Any]:
        return [atom.val if isinstance(atom, Literal) else values[atom] for atom in atoms]

    # A convolution is computed where the last step is, when all that the steps need is there.
    ends = {id(steps[-1].equation): (first, steps) for first, steps in chains}
    taken_over = {
        id(equation)
        for first, steps in chains
        for equation in (first, *(step.equation for step in steps[:-1]))
    }
    for equation in program.eqns:
        if id(equation) in taken_over:
            continue
        if id(equation) in ends:
            convolution, steps = ends[id(equation)]
            operands = [atom for step in steps for atom in step.operands]
            given = read([*convolution.invars, *operands])
            results: Sequence[Any] = [_in_one(convolution, steps)(*given)]
        else:
            results = _compute(equation, read(equation.invars))
        values.update(zip(equation.outvars, results, strict=True))
    return read(program.outvars)


def _compute(equation: JaxprEqn, arguments: Sequence[Any]) -> list[Any]:
    """Returns an equation's results, of all its arguments."""
    given = zip(equation.invars, arguments, strict=True)
    values = {atom: value for atom, value in given if not isinstance(atom, Literal)}
    name = DebugInfo("fuse", equation.primitive.name, None, None)
    program = Jaxpr((), list(values), equation.outvars, [equation], equation.effects, name)
    return list(jaxpr_as_fun(ClosedJaxpr(program, ()))(*values.values()))


def _chains(program: Jaxpr) -> list[_Chain]:
    """Returns convolutions by native functions, each with the steps that it can take over."""
    readers: dict[Var, JaxprEqn] = {}
    count: Counter[Var] = Counter()
    for equation in program.eqns:
        variables = [atom for atom in equation.invars if not isinstance(atom, Literal)]
        count.update(variables)
        readers.update(dict.fromkeys(variables, equation))
    count.update(atom for atom in program.outvars if not isinstance(atom, Literal))

    chains, taken = [], set[int]()
    for convolution in program.eqns:
        if convolution.primitive.name != convolution_native.NAME:
            continue
        steps: list[_Step] = []
        (outputs,) = convolution.outvars
        while count[outputs] == 1 and outputs in readers:
            equation = readers[outputs]
            place = equation.invars.index(outputs)
            step = _Step(equation, place, _what_it_does(equation, place))
            if id(equation) in taken or step.does == _ELSE or not _may_follow(step, steps):
                break
            steps.append(step)
            taken.add(id(equation))
            (outputs,) = equation.outvars
        if steps:
            chains.append((convolution, steps))
    return chains


def _may_follow(step: _Step, steps: Sequence[_Step]) -> bool:
    return not steps or step.does > steps[-1].does or step.does == steps[-1].does == _BY_FEATURE


def _what_it_does(equation: JaxprEqn, place: int) -> int:
    if _is_rectifier(equation):
        return _RECTIFY
    name = equation.primitive.name
    if name not in ("add", "mul", "sub") or (name == "sub" and place != 0):
        return _ELSE
    outputs: Any = equation.invars[place].aval
    operand: Any = equation.invars[1 - place].aval
    result: Any = equation.outvars[0].aval
    if operand.dtype != result.dtype or outputs.shape != result.shape:
        return _ELSE
    if operand.shape in ((), (1, 1, 1, result.shape[-1])):
        return _BY_FEATURE
    return _BY_ARRAY if name == "add" and operand.shape == result.shape else _ELSE


def _is_rectifier(equation: JaxprEqn) -> bool:
    if equation.primitive.name == "max":
        return any(isinstance(atom, Literal) and atom.val == 0 for atom in equation.invars)
    if equation.primitive.name not in _PROGRAMS:
        return False
    program: Any = equation.params[_PROGRAMS[equation.primitive.name]].jaxpr
    return (
        len(program.eqns) == len(program.invars) == 1
        and program.outvars == program.eqns[0].outvars
        and _is_rectifier(program.eqns[0])
    )


def _in_one(convolution: JaxprEqn, steps: Sequence[_Step]) -> Callable[..., Output]:
    """Returns the function of the images, the kernel and the steps' operands, in their order."""
    sizes = convolution.params["sizes"]
    rectify = steps[-1].does == _RECTIFY

    def plain(x: Array, kernel: Array, *operands: Array) -> Output:
        y: Output = _compute(convolution, (x, kernel))[0]
        left = list(operands)
        for step in steps:
            y = step.apply(y, [left.pop(0) for _ in step.operands])
        return y

    def native(x: Array, kernel: Array, *operands: Array) -> Output:
        features = kernel.shape[-1]
        scale, shift = jnp.ones(features, x.dtype), jnp.zeros(features, x.dtype)
        added: list[Array] = []
        # A rectifier, which is last, may have no operand.
        for step, operand in zip(steps, operands, strict=False):
            name = step.equation.primitive.name
            if step.does == _BY_ARRAY:
                added.append(operand)
            elif step.does == _BY_FEATURE and name == "mul":
                scale, shift = scale * operand.reshape(-1), shift * operand.reshape(-1)
            elif step.does == _BY_FEATURE:
                number = operand.reshape(-1)
                shift = shift - number if name == "sub" else shift + number

        def of_rows(x: Array, kernel: Array, *finish: Array) -> Output:
            return convolution_native.finished(x, kernel, finish, sizes, rectify=rectify)

        axes = ", b p q f" * len(added)
        divided = on_each_device(of_rows, f"b h w c, i j c f, f, f{axes} -> b p q f")
        result: Output = divided(*vary_alike(x, kernel, scale, shift, *added))
        return result

    function = jax.custom_jvp(functools.partial(with_native, native, plain))
    function.defjvp(functools.partial(jax.jvp, plain))
    return function
