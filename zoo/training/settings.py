"""The settings of a run, whatever its task."""

import dataclasses

from zoo import fields


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a run that ``zoo.fit`` and a config share.

    Attributes:
        seed: the seed of all random numbers, between 0 and 2**32 - 1.
        precision: ``float32``, ``tf32`` or ``bfloat16``; see ``zoo.training.precision``.
        batch_size: the number of rows of the global batch.
        accumulate: the number of parts in which a batch is computed, one after another, to save
            memory.
        ema_decay: the largest decay of the moving average of the parameters, which is evaluated in
            their place; 0 keeps no average.
        eval_batch_size: the number of rows of the global batch in evaluation.
        log_every: the number of steps between two records.
        eval_every: the number of steps between two evaluations; 0 evaluates at the end of every
            epoch.
        save_every: the number of steps between two checkpoints.
        keep: the number of latest checkpoints to keep.
        workers: the number of processes that make batches; 0 uses a thread.
        prefetch: the number of batches made ahead.
        devices: the number of devices over which a batch alone is divided. It and the three that
            follow are the axes of the mesh (``zoo.training.layout.make_mesh``); one of them may be
            -1, which takes all devices that the others leave.
        fsdp: the number of devices over which a batch and the parameters are divided.
        tensor: the number of devices over which the widths inside the layers are divided.
        sequence: the number of devices over which the positions of sequences are divided.
        profile_steps: the steps of which a profile is written, as ``first:end`` in the manner of a
            slice: ``10:15`` takes the steps 10 to 14; empty for none.
    """

    seed: int = 0
    precision: str = "float32"
    batch_size: int = 64
    accumulate: int = 1
    ema_decay: float = 0.0
    eval_batch_size: int = 256
    log_every: int = 10
    eval_every: int = 0
    save_every: int = 100
    keep: int = 2
    workers: int = 0
    prefetch: int = 4
    devices: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    profile_steps: str = ""

    def check(self, names: dict[str, str] | None = None) -> None:
        """Raises ConfigError for a value out of range.

        Args:
            names: the user's name of an attribute, if it is another one.
        """
        for name, rule in RULES.items():
            value = getattr(self, name)
            if not rule.allows(value):
                shown = (names or {}).get(name, name)
                raise fields.ConfigError(f"{shown}={value!r} must be {rule.words}")
        if self.batch_size % self.accumulate:
            shown_size, shown_parts = (
                (names or {}).get(name, name) for name in ("batch_size", "accumulate")
            )
            raise fields.ConfigError(
                f"{shown_size}={self.batch_size} is not a multiple of "
                f"{shown_parts}={self.accumulate}: change one of them"
            )


_DEVICES = fields.Rule(
    "-1 (all devices that are left) or at least 1", lambda value: value == -1 or value > 0
)

RULES: fields.Rules = {
    "seed": fields.Rule("between 0 and 2**32 - 1", lambda value: 0 <= value < 2**32),
    "precision": fields.choice("float32", "tf32", "bfloat16"),
    "batch_size": fields.at_least(1),
    "accumulate": fields.at_least(1),
    "ema_decay": fields.FRACTION,
    "eval_batch_size": fields.at_least(1),
    "log_every": fields.at_least(1),
    "eval_every": fields.at_least(0),
    "save_every": fields.at_least(1),
    "keep": fields.at_least(1),
    "workers": fields.between(0, 1024),
    "prefetch": fields.at_least(1),
    "devices": _DEVICES,
    "fsdp": _DEVICES,
    "tensor": _DEVICES,
    "sequence": _DEVICES,
    "profile_steps": fields.Rule(
        "first:end as in a slice, such as 10:15, with 0 < first < end; empty for no profile",
        lambda value: value == "" or _is_slice(value),
    ),
}


def _is_slice(value: str) -> bool:
    first, _, end = value.partition(":")
    return first.isdecimal() and end.isdecimal() and 0 < int(first) < int(end)


# The config field of each setting.
CONFIG_FIELDS = {
    "seed": "seed",
    "precision": "precision",
    "batch_size": "train.batch_size",
    "accumulate": "train.accumulate",
    "ema_decay": "train.ema_decay",
    "eval_batch_size": "train.eval_batch_size",
    "log_every": "train.log_every",
    "eval_every": "train.eval_every",
    "save_every": "checkpoint.every",
    "keep": "checkpoint.keep",
    "workers": "data.workers",
    "prefetch": "data.prefetch",
    "devices": "mesh.data",
    "fsdp": "mesh.fsdp",
    "tensor": "mesh.tensor",
    "sequence": "mesh.sequence",
    "profile_steps": "train.profile_steps",
}
