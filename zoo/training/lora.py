"""LoRA: low-rank additions to frozen kernels (Hu et al. 2021), as functions of parameter trees.

A kernel ``W`` of a linear layer becomes ``W + alpha / rank * A B`` (section 4.1), where ``A`` has
the shape [in, rank] and ``B`` [rank, out]. Only ``A`` and ``B`` are trained. They stand in a tree
of their own, at the kernel's path: ``block_0/attention/query/kernel/a`` and ``.../b``. A kernel
that stacks those of several layers, [layer, in, out], has an ``A`` and a ``B`` for each.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, UInt32

from zoo import fields
from zoo.errors import UserError

Params = Mapping[str, Any]
# The name, in the model state, of the parameters that the additions are made to.
BASE = "lora_base"


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which kernels are added to, and how; the section ``lora`` of a config.

    Attributes:
        rank: the rank of the additions; 0 trains all parameters instead.
        alpha: the additions are multiplied by ``alpha / rank``.
        targets: a regular expression; the kernels whose path, such as
            ``block_0/attention/query/kernel``, has a match are added to. The default are the
            queries and values of attention, as in the paper.
        dropout: share of a kernel's inputs whose additions are left out in a step of training. In
            one step they are the same inputs for all rows and positions.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: str = r"(query|value)/kernel$"
    dropout: float = 0.0


FIELDS = fields.of(
    Lora,
    {
        "rank": fields.at_least(0),
        "alpha": fields.ABOVE_ZERO,
        "targets": fields.PATTERN,
        "dropout": fields.FRACTION,
    },
)


def targets(params: Params, pattern: str) -> list[str]:
    """Returns the paths of the kernels that a regular expression finds.

    Args:
        params: parameters or their shapes.
        pattern: see ``Lora.targets``.

    Raises:
        UserError: it finds none, or parameters that are no kernels of linear layers. The message
            has the kinds of kernels that there are.
    """
    flat = _flatten(params)
    able = [path for path, leaf in flat.items() if _is_kernel(path, leaf)]
    kinds = ", ".join(sorted({re.sub(r"\d+", "*", path) for path in able})) or "none"
    found = [path for path in flat if re.search(pattern, path)]
    if not found:
        raise UserError(
            f"lora.targets={pattern!r} matches no parameter, so nothing would be trained: the "
            f"kernels are {kinds}"
        )
    if wrong := [path for path in found if path not in able]:
        raise UserError(
            f"lora.targets={pattern!r} matches {wrong[0]} {flat[wrong[0]].shape}, which is no "
            f"kernel of a linear layer: the kernels are {kinds}"
        )
    return found


def init(key: PRNGKeyArray, params: Params, pattern: str, rank: int) -> dict[str, Any]:
    """Returns the additions with which training begins: they add nothing, since ``B`` is zero.

    ``A`` is uniform within ``1 / sqrt(in)``, as PEFT's is.

    Args:
        key: the random key.
        params: parameters or their shapes.
        pattern: see ``targets``.
        rank: see ``Lora``; at least 1.

    Raises:
        UserError: see ``targets``.
    """
    flat, additions = _flatten(params), {}
    for number, path in enumerate(targets(params, pattern)):
        *layers, inputs, outputs = flat[path].shape
        dtype = flat[path].dtype
        shape, bound = (*layers, inputs, rank), inputs**-0.5
        one = jax.random.fold_in(key, number)
        additions[f"{path}/a"] = jax.random.uniform(one, shape, dtype, -bound, bound)
        additions[f"{path}/b"] = jnp.zeros((*layers, rank, outputs), dtype)
    return _nested(additions)


def merged(params: Params, additions: Params, alpha: float) -> dict[str, Any]:
    """Returns parameters with additions, in the parameters' types.

    Args:
        params: the frozen parameters.
        additions: what ``init`` made, after any training.
        alpha: see ``Lora``.
    """
    flat, added = _flatten(params), _flatten(additions)
    made = dict(flat)
    for path in [name.removesuffix("/a") for name in added if name.endswith("/a")]:
        a, b = added[f"{path}/a"], added[f"{path}/b"]
        addition = jnp.matmul(a, b) * jnp.asarray(alpha / a.shape[-1], a.dtype)
        made[path] = flat[path] + addition.astype(flat[path].dtype)
    return _nested(made)


def dropped(key: PRNGKeyArray, additions: Params, rate: float) -> dict[str, Any]:
    """Returns additions without those of some inputs; the others are larger by as much.

    Args:
        key: the random key.
        additions: what ``init`` made, after any training.
        rate: see ``Lora.dropout``.
    """
    flat = _flatten(additions)
    for number, path in enumerate(sorted(name for name in flat if name.endswith("/a"))):
        a = flat[path]
        kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - rate, a.shape[:-1])
        flat[path] = a * (kept / (1 - rate)).astype(a.dtype)[..., None]
    return _nested(flat)


def digest(params: Params) -> dict[str, Any]:
    """Returns two numbers for each parameter, which differ where any of its values differs.

    They are computed on the devices, wherever the parameters lie. A checkpoint has them in place of
    the parameters, and so knows to which ones its additions belong.
    """
    # A sum of 32-bit numbers wraps in every order alike, so a division changes nothing.
    return jax.tree.map(jax.jit(_digest), dict(params))


def check_base(saved: Params, here: Params) -> None:
    """Raises UserError, which names a parameter, unless two digests are the same.

    Args:
        saved: the digest in a checkpoint.
        here: that of the parameters which ``init_from`` gave.
    """
    before, after = _flatten(saved), _flatten(here)
    other = [
        path
        for path in sorted({**before, **after})
        if path not in before
        or path not in after
        or jax.device_get(before[path]).tolist() != jax.device_get(after[path]).tolist()
    ]
    if other:
        more = f" and {len(other) - 1} more of {len(after)}" if len(other) > 1 else ""
        raise UserError(
            "the weights of init_from are not those that the run's low ranks were trained with: "
            f"{other[0]}{more} changed. Bring back the former weights, or begin anew with --restart"
        )


def _digest(leaf: Array) -> UInt32[Array, " 2"]:
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[leaf.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(leaf, kind).astype(jnp.uint32).reshape(-1)
    place = jnp.arange(bits.size, dtype=jnp.uint32)
    sums = []
    # The steps between multiplications are those of MurmurHash3's last mixing.
    for seed in (0x9E3779B1, 0x85EBCA77):
        mixed = (bits ^ (place * jnp.uint32(seed))) * jnp.uint32(0xCC9E2D51)
        mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
        mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
        sums.append((mixed ^ (mixed >> 16)).sum(dtype=jnp.uint32))
    return jnp.stack(sums)


def _is_kernel(path: str, leaf: Any) -> bool:
    return path.rpartition("/")[2] == "kernel" and len(leaf.shape) in (2, 3)


def _flatten(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = value
    return tree
