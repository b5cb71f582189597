"""Low ranks of ``zoo.training.lora`` in the format of the library ``peft``."""

import collections
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from zoo.errors import UserError
from zoo.weights.tables import Entry, Table
from zoo.weights.transforms import AS_IT_IS, LINEAR_TRANSPOSED


def peft_adapter(
    additions: Mapping[str, Any], table: Table, *, alpha: float, dropout: float, base: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the content of ``adapter_model.safetensors`` and of ``adapter_config.json``.

    Where the reference has several of our kernels in one, such as query, key and value, the ranks
    of those that have some stand side by side in one addition of the sum of their ranks.

    Args:
        additions: what ``zoo.training.lora.init`` made, after any training.
        table: the table of the model for transformers.
        alpha: see ``zoo.training.lora.Lora``.
        dropout: see ``Lora``.
        base: the path or name of the weights that the ranks are added to.

    Raises:
        UserError: a kernel's values have another order there.
    """
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(additions)
    }
    entries: dict[str, list[Entry]] = collections.defaultdict(list)
    for entry in table:
        if entry.role == "parameter" and f"{entry.ours}/a" in flat:
            entries[entry.reference.removesuffix(".weight")].append(entry)
    arrays, ranks, inputs_first = {}, {}, False
    for module, of_module in entries.items():
        lowered, raised = [], []
        for entry in of_module:
            if entry.transform not in (AS_IT_IS, LINEAR_TRANSPOSED):
                raise UserError(
                    f"{entry.ours} has another order of values in transformers, where its addition "
                    "may have no low rank: export without --lora"
                )
            inputs_first = entry.transform is AS_IT_IS
            a, b = (flat[f"{entry.ours}/{name}"] for name in "ab")
            if entry.layer is not None:
                a, b = a[entry.layer], b[entry.layer]
            lowered.append(a)
            if entry.part is not None:
                whole = np.zeros((len(b), entry.part.of, b.shape[1]), b.dtype)
                whole[:, entry.part.index] = b
                b = whole.reshape(len(b), -1)
            raised.append(b)
        name = f"base_model.model.{module}"
        arrays[f"{name}.lora_A.weight"] = np.concatenate(lowered, axis=1).T
        arrays[f"{name}.lora_B.weight"] = np.concatenate(raised, axis=0).T
        # peft multiplies by alpha / rank, so that alpha grows with the rank.
        ranks[module] = (arrays[f"{name}.lora_A.weight"].shape[0], alpha * len(of_module))
    ((rank, of_rank), _), *_ = collections.Counter(ranks.values()).most_common(1)
    others = {module: found for module, found in ranks.items() if found != (rank, of_rank)}
    return arrays, {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": of_rank,
        "rank_pattern": {module: found[0] for module, found in others.items()},
        "alpha_pattern": {module: found[1] for module, found in others.items()},
        "target_modules": sorted(entries),
        "lora_dropout": dropout,
        "fan_in_fan_out": inputs_first,
        "bias": "none",
        "inference_mode": True,
    }
