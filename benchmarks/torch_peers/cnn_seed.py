"""The seed's training script in PyTorch, on the images that this package ships.

    python -m benchmarks.torch_peers.cnn_seed
    python -m benchmarks.torch_peers.cnn_seed --tuned-allocator    with our settings of malloc
    python -m benchmarks.torch_peers.cnn_seed --data-dir DIR --epochs 1    on all of MNIST, in TFDS

The network, the transforms, the loaders, the optimizer and the loop are the seed's own choices.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import classification_report, confusion_matrix
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from benchmarks.torch_peers import torchvision_transforms
from zoo.data import open_source
from zoo.process import tune_allocator

BATCH_SIZE = 64
EPOCHS = 5
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-4  # added to the gradient
IMAGE_SIZE = 48
MEAN = (0.1307,) * 3
STD = (0.3081,) * 3


class SeedNet(nn.Module):
    """The seed's network: images with three channels, by default of 48x48, to logits."""

    def __init__(
        self, num_classes: int = 32, dropout_rate: float = 0.5, image_size: int = 48
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3, padding=1)
        self.conv3 = nn.Conv2d(64, 128, kernel_size=3, padding=1)
        self.pool = nn.MaxPool2d(kernel_size=2, stride=2)
        self.fc1 = nn.Linear(128 * (image_size // 4) ** 2, 512)
        self.fc2 = nn.Linear(512, num_classes)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits [batch, classes] for images [batch, channels, height, width]."""
        x = F.relu(self.conv1(x))
        x = self.pool(F.relu(self.conv2(x)))
        x = self.pool(F.relu(self.conv3(x)))
        x = self.dropout(torch.flatten(x, 1))
        x = self.dropout(F.relu(self.fc1(x)))
        return self.fc2(x)


class Digits(Dataset):
    """Images of one split as PIL images, transformed one by one when asked for."""

    def __init__(self, split: str, data_dir: str, *, augment: bool) -> None:
        name = "mnist" if data_dir else "mnist_subset"
        source = open_source(name, split, data_dir=data_dir or None)
        examples = [source[index] for index in range(len(source))]
        self.images = [example["image"][..., 0] for example in examples]
        self.labels = [int(example["label"]) for example in examples]
        transforms = torchvision_transforms()
        augmentation = [
            transforms.RandomRotation(10),
            transforms.ColorJitter(brightness=0.2, contrast=0.2),
        ]
        self.transform = transforms.Compose(
            [
                transforms.Resize((IMAGE_SIZE, IMAGE_SIZE)),
                transforms.Grayscale(num_output_channels=3),
                *(augmentation if augment else []),
                transforms.ToTensor(),
                transforms.Normalize(mean=MEAN, std=STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def make_optimizer(model: nn.Module, *, fused: bool | None = None) -> torch.optim.Optimizer:
    """Returns the seed's optimizer; ``fused``: in one kernel, None: as PyTorch chooses."""
    return torch.optim.Adam(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=fused
    )


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor
) -> tuple[float, int]:
    """Makes one update; returns the mean loss and the number of correct predictions before it."""
    logits = model(images)
    loss = F.cross_entropy(logits, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), int((logits.argmax(dim=1) == labels).sum().item())


def run_script(epochs: int, data_dir: str) -> None:
    """Trains, then prints loss, accuracy, report and confusion matrix."""
    train_set = Digits("train", data_dir, augment=True)
    test_set = Digits("test", data_dir, augment=False)
    train_loader = DataLoader(train_set, batch_size=BATCH_SIZE, shuffle=True)
    test_loader = DataLoader(test_set, batch_size=256, shuffle=False)
    model = SeedNet(num_classes=10)
    optimizer = make_optimizer(model)
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        model.train()
        loss_sum, correct, total = 0.0, 0, 0
        for images, labels in tqdm(train_loader, desc=f"Epoch {epoch}", leave=False):
            loss, hits = train_step(model, optimizer, images, labels)
            loss_sum += loss * len(labels)
            correct += hits
            total += len(labels)
        accuracy = 100 * correct / total
        print(
            f"[Epoch {epoch}] loss = {loss_sum / total:.4f} | accuracy = {accuracy:.2f}% | "
            f"{time.perf_counter() - start:.0f} s"
        )

    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(images) for images, _ in test_loader])
    labels = torch.tensor(test_set.labels)
    predictions = logits.argmax(dim=1)
    print(f"Test loss: {F.cross_entropy(logits, labels).item():.4f}")
    print(f"Test accuracy: {100 * (predictions == labels).float().mean().item():.2f}%")
    print(classification_report(labels, predictions, zero_division=0))
    print(confusion_matrix(labels, predictions))


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torch_peers.cnn_seed")
    parser.add_argument("--tuned-allocator", action="store_true", help="malloc keeps its memory")
    parser.add_argument("--data-dir", default="", help="TFDS folder: all of MNIST")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    if options.tuned_allocator:
        # PyTorch has computed nothing yet: all that a step asks for is asked after this.
        print(tune_allocator())
    torch.manual_seed(0)
    run_script(options.epochs, options.data_dir)


if __name__ == "__main__":
    main()
