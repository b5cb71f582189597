"""Whether a run can work at all, found before its first array is made.

Shapes are traced and bytes are counted; nothing is computed.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from zoo import building, process
from zoo.errors import UserError
from zoo.storage import amount
from zoo.training.layout import Layout


@dataclasses.dataclass(frozen=True)
class Given:
    """What a user gave, for messages.

    Attributes:
        fields: the fields of the config, by path; empty for a run of one's own code.
        names: the user's name of each setting.
    """

    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def shown(self, setting: str, value: Any) -> str:
        """Returns a setting as the user writes it, such as ``train.batch_size=64``."""
        return f"{self.names.get(setting, setting)}={value}"

    def largest(self, *sections: str, most: int = 3, least: int = 16) -> str:
        """Returns the fields of some sections that hold the largest numbers, from ``least`` on."""
        found = [
            (max(numbers), f"{path}={value}")
            for path, value in self.fields.items()
            if path.partition(".")[0] in sections
            and (numbers := _numbers(value))
            and max(numbers) >= least
        ]
        return ", ".join(shown for _, shown in sorted(found, reverse=True)[:most])


class TooLarge(UserError):
    """A run that needs more memory than there is."""


def laid_out(parts: building.Parts, mesh: Mesh, given: Given) -> tuple[Layout, list[str]]:
    """Returns what ``building.layout_of`` does.

    Raises:
        UserError: shapes do not fit together; the message names fields that may be the reason.
    """
    try:
        return building.layout_of(parts, mesh)
    except Exception as error:
        raise _explained(error, given) from error


def check(parts: building.Parts, layout: Layout, given: Given) -> None:
    """Refuses a run whose parts do not fit together, or whose arrays do not fit into the memory.

    The counted bytes are those that every run needs: its state, the gradient, and the batches that
    are made ahead. What the layers keep for the gradient comes on top.

    Args:
        parts: the parts of the run.
        layout: where its arrays will lie.
        given: what the user gave.

    Raises:
        UserError: shapes do not fit together; the message names fields that may be the reason.
        TooLarge: the memory is too small; the message says what needs how much.
    """
    settings, dataset = parts.settings, parts.dataset
    try:
        batch = building.train_shapes(parts)
        splits = [split for split in ("validation", "test") if split in dataset.sizes]
        evaluated = [
            building.eval_shapes(dataset, split, settings.eval_batch_size) for split in splits[:1]
        ]
    except MemoryError as error:
        raise TooLarge(
            f"a single example of {dataset.name!r} does not fit into the memory: lower "
            f"{given.largest('data', least=1)}"
        ) from error
    try:
        state = building.state_shapes(parts)
    except Exception as error:
        raise _explained(error, given) from error
    # The gradient lies where the parameters do.
    on_one = layout.bytes_per_device(state) + layout.bytes_per_device(state.params)
    rows = _bytes(batch)
    ahead = min(settings.prefetch, parts.lengths.steps)
    on_cpu = layout.mesh.devices.flat[0].platform == "cpu"
    # Devices of a CPU share its memory, and each keeps its part of the state.
    copies = layout.devices if on_cpu else 1
    needs = {
        f"the state and its gradient{_because(given.largest('model'))}": copies * on_one,
        f"{ahead + 1} batches of training ({given.shown('batch_size', settings.batch_size)}, "
        f"{given.shown('prefetch', settings.prefetch)}"
        f"{_also(given.largest('data', most=1))})": (ahead + 1) * rows,
    }
    for shapes in evaluated:
        name = f"a batch of evaluation ({given.shown('eval_batch_size', settings.eval_batch_size)})"
        needs[name] = _bytes(shapes)
    _hold_against(needs, process.memory_bytes(), "this machine has")
    if not on_cpu:
        limit = (layout.mesh.devices.flat[0].memory_stats() or {}).get("bytes_limit")
        if limit:
            on_device = {
                name: need if "state" in name else need // (ahead + 1) // layout.row_parts
                for name, need in needs.items()
            }
            _hold_against(on_device, limit, "a device has")
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        jax.eval_shape(parts.task.loss, state.params, state.model_state, batch, key)
        for shapes in evaluated:
            for function in (parts.task.evaluate, parts.task.predict):
                jax.eval_shape(function, state.eval_params, state.model_state, shapes, key)
    except Exception as error:
        raise _explained(error, given) from error


def check_compiled(compiled: Any, parts: building.Parts, given: Given) -> None:
    """Refuses a compiled step that needs more memory than there is, where the compiler says so.

    Raises:
        TooLarge: the memory is too small.
    """
    made = compiled.memory_analysis()
    if made is None:
        return
    # The state lies in the memory already, and the result takes its place. Devices of a CPU share
    # its memory.
    needed = made.temp_size_in_bytes * building.mesh_of(parts.settings).size
    if jax.default_backend() == "cpu" and needed > process.memory_bytes():
        raise TooLarge(f"a step needs another {amount(needed)}; {used_up(parts, given)}")


def used_up(parts: building.Parts, given: Given) -> TooLarge:
    """Returns the error for a run whose memory was used up while it was compiled or computed."""
    settings = parts.settings
    return TooLarge(
        "the memory is used up: "
        f"{amount(process.memory_bytes())} are free on this machine now, and the state of the run "
        f"takes {amount(building.state_bytes(parts))}; the rest is what the layers keep of a "
        f"batch. Lower {given.shown('batch_size', settings.batch_size)} or "
        f"{given.shown('eval_batch_size', settings.eval_batch_size)}, raise "
        f"{given.shown('accumulate', settings.accumulate)}, or take a smaller model"
        f"{_because(given.largest('model'))}"
    )


def is_memory(error: BaseException) -> bool:
    """Returns whether an exception says that the memory is used up."""
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    )


def _hold_against(needs: Mapping[str, int], available: int, who: str) -> None:
    """Raises TooLarge if what is needed is more than what is available."""
    needed = sum(needs.values())
    if needed <= available:
        return
    shares = sorted(needs.items(), key=lambda item: -item[1])
    what = "; ".join(f"{amount(need)} for {name}" for name, need in shares)
    raise TooLarge(
        f"the run needs at least {amount(needed)} of memory, and {who} {amount(available)} free: "
        f"{what}. Lower the fields of the largest"
    )


def _explained(error: Exception, given: Given) -> Exception:
    """Returns the error for shapes that do not fit together, with the fields that may be why.

    Errors of a user's own code are returned as they are, since they say where the code is wrong.
    """
    if isinstance(error, UserError) or not given.fields:
        return error
    pairs = [
        f"model.{name}={value} and data.{name}={other}"
        for path, value in given.fields.items()
        for section, _, name in [path.partition(".")]
        if section == "model" and isinstance(value, int)
        if (other := given.fields.get(f"data.{name}", value)) != value
    ]
    if is_memory(error) or isinstance(error, OverflowError):
        why = f"are too large for arrays: lower {given.largest('model', 'data')}"
    elif pairs:
        why = f"do not fit together: {'; '.join(pairs)} differ. Make them equal"
    else:
        why = (
            "do not fit together; the largest sizes are "
            f"{given.largest('model', 'data', 'task', most=6, least=1)}. Change one of them"
        )
    first = " ".join(str(error).split())
    return UserError(f"the fields of the config {why} ({type(error).__name__}: {first[:300]})")


def _numbers(value: Any) -> list[float]:
    values: Sequence[Any] = value if isinstance(value, tuple) else (value,)
    return [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]


def _bytes(tree: Any) -> int:
    """Returns the bytes of arrays or shapes; whole numbers of Python do not overflow."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _because(words: str) -> str:
    return f" ({words})" if words else ""


def _also(words: str) -> str:
    return f", {words}" if words else ""
