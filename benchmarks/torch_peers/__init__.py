"""The peers' side: the same work in PyTorch."""

from types import ModuleType


def torchvision_transforms() -> ModuleType:
    """Returns ``torchvision.transforms``, also beside a build of PyTorch without its operators."""
    import torch

    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            schema = f"torchvision::{operator}"
            torch.library.define(schema, "(Tensor dets, Tensor scores, float threshold) -> Tensor")
    from torchvision import transforms

    return transforms
