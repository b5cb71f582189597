r"""ResNet-18 for small images (He et al. 2016), trained with SGD; and fine-tuned on photographs.

    python train.py --config configs/resnet.py
        5,000 training images of MNIST shipped with the package.
    python train.py --config configs/resnet.py:cifar10 --config.data.data_dir=DIR
        CIFAR-10, from a TFDS folder that `zoo prepare cifar10 --data_dir=DIR` makes.
    python train.py --config configs/resnet.py:finetune --config.init_from=FILE \
            --config.data.path=DIR
        published weights, on a folder with a folder of photographs for each class.

Not yet measured.
"""

from ml_collections import ConfigDict

from zoo.config import ConfigError, base


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; ``variant`` is empty, ``cifar10`` or ``finetune``."""
    if variant not in ("", "cifar10", "finetune"):
        raise ConfigError(
            f"configs/resnet.py:{variant}: the only variants are 'cifar10' and 'finetune'"
        )
    config = base(model="resnet18", task="classification")
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.schedule = "warmup_cosine"
    if variant == "finetune":
        config.model.num_classes = 0
        config.reset = "^fc/"
        config.data.name = "image_folder"
        config.data.transform = "imagenet"
        config.data.image_size = 224
        config.optimizer.learning_rate = 0.01
        config.optimizer.weight_decay = 1e-4
        config.optimizer.warmup_steps = 20
        config.train.batch_size = 32
        config.train.epochs = 5
        return config
    config.model.num_classes = 10
    config.model.stem = "cifar"
    config.data.name = variant or "mnist_subset"
    config.data.transform = "cifar" if variant else "seed"
    config.data.image_size = 32
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 5e-4
    config.optimizer.warmup_steps = 100
    config.train.batch_size = 128
    config.train.epochs = 10 if variant else 3
    if variant:
        config.data.validation_fraction = 0.02
    return config
