"""From English spelling to pronunciation with the original encoder-decoder transformer.

    python train.py --config configs/transformer.py
    zoo predict --workdir runs/transformer colonel queue

It trains on the CMU Pronouncing Dictionary, whose words are divided over the splits, with the
paper's label smoothing and learning-rate schedule. `sequence_error` is the word error rate and
`token_error` the phoneme error rate; any pronunciation that the dictionary lists counts as right.

Expected, on two cores: 7 minutes to a word error rate of 35.9 % and a phoneme error rate of 8.9 %
(seed 0). There is no dropout: three passes over the words are too few to learn them by heart.
"""

from ml_collections import ConfigDict

from zoo.config import ConfigError, base


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; there are no variants."""
    if variant:
        raise ConfigError(f"configs/transformer.py:{variant}: there are no variants")
    config = base(model="transformer", task="sequence_to_sequence")
    config.model.source_vocab_size = 0
    config.model.target_vocab_size = 0
    config.model.features = 128
    config.model.num_heads = 4
    config.model.num_encoder_layers = 3
    config.model.num_decoder_layers = 2
    config.model.feedforward_features = 384
    config.model.dropout_rate = 0.0
    config.task.label_smoothing = 0.1
    config.data.name = "cmudict"
    config.data.max_source_length = 16
    config.data.max_target_length = 16
    config.optimizer.name = "adam"
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-9
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = "inverse_sqrt"
    config.optimizer.warmup_steps = 500
    config.train.batch_size = 128
    config.train.steps = 2800
    config.train.log_every = 50
    config.train.eval_every = 1000
    config.train.eval_batch_size = 256
    config.train.ema_decay = 0.999
    config.checkpoint.every = 200
    return config
