"""The peers' side: the same work in PyTorch."""

from types import ModuleType


def make_torchvision_importable() -> None:
    """Declares torchvision's operators to a build of PyTorch that lacks their compiled code.

    transformers and diffusers import torchvision too where it is installed: call this first.
    """
    import torch

    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            schema = f"torchvision::{operator}"
            torch.library.define(schema, "(Tensor dets, Tensor scores, float threshold) -> Tensor")


def torchvision_transforms() -> ModuleType:
    """Returns ``torchvision.transforms``."""
    make_torchvision_importable()
    from torchvision import transforms

    return transforms
