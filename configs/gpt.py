"""A small GPT on the characters of Shakespeare's plays, after nanoGPT's recipe for a CPU.

    python train.py --config configs/gpt.py
    python train.py --config configs/gpt.py:nanogpt
        the recipe unchanged

The model has 4 layers of width 128 and reads 64 characters; it trains for 2,000 steps of 12
windows. The default doubles the recipe's learning rate and evaluates a moving average of the
parameters. nanoGPT validates on the last 10 % of the text, which are the splits validation and test
here:

    zoo evaluate --workdir runs/gpt --split validation+test

Expected, on two cores: 3 minutes to 1.81 nats a character on validation+test (mean of seeds 0
and 1). `:nanogpt` reaches 1.90 (mean of seeds 0 to 2); the same recipe written in PyTorch reached
1.91.

The other variants are large models:

    python train.py --config configs/gpt.py:124m --config.data.name=text --config.data.path=FILE

`:124m` and `:350m` have the shapes of GPT-2 and GPT-2 medium, and read their published weights.
`:1b`, `:7b` and `:70b` are Llamas of published shapes: Llama 3.2 1B with a context of 8192 and
positions that are not stretched, as before it was extended, and Llama 2's 7B and 70B, the latter
with eight heads of keys for its 64 heads of queries. Their blocks are scanned and rematerialised.
All keep float32 parameters and compute in bfloat16. A batch is half a million to four million
tokens; give `--config.train.accumulate` to a machine that cannot hold it. The text in the package
is far too short for them, and none of them has been trained here.
"""

from typing import Any

from ml_collections import ConfigDict

from zoo.config import ConfigError, base

# Learning rates and, within a factor of two, tokens of a batch are those of GPT-3's table 2.1; the
# steps read 20 tokens for each parameter.
LARGE: dict[str, dict[str, Any]] = {
    "124m": {
        "name": "gpt",
        "model": {},
        "learning_rate": 6e-4,
        "train": {"batch_size": 512, "accumulate": 1, "steps": 4_750, "remat": "none"},
    },
    "350m": {
        "name": "gpt",
        "model": {"features": 1024, "num_layers": 24, "num_heads": 16},
        "learning_rate": 3e-4,
        "train": {"batch_size": 512, "accumulate": 1, "steps": 13_500, "remat": "none"},
    },
    "1b": {
        "name": "llama_1b",
        "model": {"context": 8192, "rope_scaling": "default", "scan_layers": True},
        "learning_rate": 2e-4,
        "train": {"batch_size": 128, "accumulate": 1, "steps": 23_600, "remat": "block"},
    },
    "7b": {
        "name": "llama2_7b",
        "model": {"scan_layers": True},
        "learning_rate": 1.2e-4,
        "train": {"batch_size": 512, "accumulate": 1, "steps": 64_300, "remat": "block"},
    },
    "70b": {
        "name": "llama2_70b",
        "model": {"scan_layers": True},
        "learning_rate": 6e-5,
        "train": {"batch_size": 1024, "accumulate": 1, "steps": 328_900, "remat": "block"},
    },
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; ``variant`` is empty, ``nanogpt`` or the size of a large model."""
    if variant in LARGE:
        return _large(variant)
    if variant not in ("", "nanogpt"):
        known = ", ".join(["nanogpt", *LARGE])
        raise ConfigError(f"configs/gpt.py:{variant}: the variants are {known}")
    config = base(model="gpt", task="language_modelling")
    config.model.vocab_size = 0
    config.model.context = 64
    config.model.num_layers = 4
    config.model.num_heads = 4
    config.model.features = 128
    config.model.dropout_rate = 0.0
    config.model.use_bias = False
    config.data.name = "tiny_shakespeare"
    config.data.context = 64
    config.data.stride = 1
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3 if variant else 2e-3
    config.optimizer.schedule = "warmup_cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.end_value = 1e-4
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 0.1
    config.optimizer.decay_exclude = "scale|bias"
    config.optimizer.clip_norm = 1.0
    config.train.batch_size = 12
    config.train.steps = 2000
    config.train.ema_decay = 0.0 if variant else 0.99
    config.train.log_every = 50
    config.train.eval_every = 500
    config.train.eval_batch_size = 64
    config.checkpoint.every = 500
    return config


def _large(variant: str) -> ConfigDict:
    large = LARGE[variant]
    config = base(model=large["name"], task="language_modelling")
    config.model.update(large["model"])
    if large["name"] == "gpt":
        config.model.dropout_rate = 0.0
    config.data.name = "tiny_shakespeare"
    config.data.context = config.model.context
    config.data.stride = 1
    config.precision = "bfloat16"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = large["learning_rate"]
    config.optimizer.schedule = "warmup_cosine"
    config.optimizer.warmup_steps = 700 if variant == "124m" else 2000
    config.optimizer.end_value = large["learning_rate"] / 10
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.optimizer.decay_exclude = "scale|bias"
    config.optimizer.clip_norm = 1.0
    config.train.update(large["train"])
    config.train.eval_every = 1000
    config.train.eval_batch_size = 32
    config.checkpoint.every = 1000
    return config
