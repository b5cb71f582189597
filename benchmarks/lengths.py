"""The memory of a language model's training step against the length of its texts.

    python -m benchmarks.lengths

Nothing is trained: a step of one text is compiled for each length, and the compiler says how much
memory it needs besides its state. Writes a table to ``docs/performance.md``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import machine, tables
from zoo import training
from zoo.models import GPT
from zoo.tasks.language_modelling import LanguageModelling
from zoo.training.state import create_state
from zoo.training.step import make_train_step

DOCUMENT = machine.ROOT / "docs" / "performance.md"
LENGTHS = (1024, 4096, 8192)
FORMS = {
    "as it is": {},
    "`train.remat=dots`": {"remat": "dots"},
    "`train.remat=block`": {"remat": "block"},
}


def temporary_bytes(length: int, **form: Any) -> int:
    """Returns the memory of a step besides its state and batch, as its compiler plans it.

    Args:
        length: the tokens of the one text in its batch.
        **form: attributes of the model, which has the width, heads, depth and vocabulary of GPT-2
            with 124 million parameters, its layers in a loop.
    """
    model = GPT(context=length, dropout_rate=0.0, scan_layers=True, **form)
    task, optimizer = LanguageModelling(model), optax.adamw(1e-4)
    batch = {
        "tokens": jax.ShapeDtypeStruct((1, length), jnp.int32),
        "targets": jax.ShapeDtypeStruct((1, length), jnp.int32),
        "token_mask": jax.ShapeDtypeStruct((1, length), jnp.float32),
        "mask": jax.ShapeDtypeStruct((1,), jnp.float32),
    }

    def start(key: Any) -> Any:
        return create_state(task.init(key, jax.tree.map(jnp.zeros_like, batch)), optimizer, key)

    state = jax.eval_shape(start, jax.random.key(0))
    step: Any = training.jit(make_train_step(task.loss, optimizer), donate_argnums=0)
    made = step.lower(state, batch).compile().memory_analysis()
    return int(made.temp_size_in_bytes)


def as_markdown() -> str:
    """Returns the table: a line for each length, in GiB."""
    lines = []
    for length in LENGTHS:
        found = [temporary_bytes(length, **form) / 2**30 for form in FORMS.values()]
        lines.append((f"{length:,}", *(f"{gib:.2f}" for gib in found)))
    header = ("tokens", *(f"GiB, {name}" for name in FORMS))
    about = f"{machine.describe()['processor']}; jax {jax.__version__}"
    return f"{about}:\n\n{tables.markdown(header, lines)}\n"


if __name__ == "__main__":
    tables.write_between(DOCUMENT, "lengths", as_markdown())
