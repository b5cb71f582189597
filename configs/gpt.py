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
"""

from ml_collections import ConfigDict

from zoo.config import ConfigError, base


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; ``variant`` is empty or ``nanogpt``."""
    if variant not in ("", "nanogpt"):
        raise ConfigError(f"configs/gpt.py:{variant}: the only variant is 'nanogpt'")
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
