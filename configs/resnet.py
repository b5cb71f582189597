r"""ResNet-18 for small images (He et al. 2016), trained with SGD; and fine-tuned on photographs.

    python train.py --config configs/resnet.py
        5,000 training images of MNIST shipped with the package.
    python train.py --config configs/resnet.py:cifar10 --config.data.data_dir=DIR
        CIFAR-10, from a TFDS folder that `zoo prepare cifar10 --data_dir=DIR` makes. Its 30 epochs
        are meant for an accelerator; two cores take half an hour for each.
    python train.py --config configs/resnet.py:cifar10_30min --config.data.data_dir=DIR
        The same for half an hour on two cores, in which no image is seen twice.
    python train.py --config configs/resnet.py:finetune --config.init_from=FILE \
            --config.data.path=DIR
        Published weights, on a folder that has a folder of photographs for each class.

Expected, on two cores (seed 0): 16 minutes to an accuracy of 96.8 % on the digits, measured while
other work ran; `:cifar10_30min` takes 28 minutes to 56.2 % on CIFAR-10's test split, measured on a
copy of the data set made from JPEG images (docs/resnet_cifar10.png).
"""

from ml_collections import ConfigDict

from zoo.config import ConfigError, base

VARIANTS = ("cifar10", "cifar10_30min", "finetune")


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; ``variant`` is empty or one of ``VARIANTS``."""
    if variant and variant not in VARIANTS:
        raise ConfigError(
            f"configs/resnet.py:{variant}: no such variant; there are {', '.join(VARIANTS)}"
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
    config.data.name = "cifar10" if variant else "mnist_subset"
    config.data.transform = "cifar" if variant else "seed"
    config.data.image_size = 32
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 5e-4
    config.optimizer.warmup_steps = 100
    config.train.batch_size = 128
    config.train.epochs = 30 if variant else 3
    if variant:
        config.data.validation_fraction = 0.02
    if variant == "cifar10_30min":
        config.optimizer.learning_rate = 0.05
        config.train.batch_size = 64
        config.train.steps = 700
        config.train.eval_every = 140
    return config
