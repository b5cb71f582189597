"""The libraries that tests compare against; absent ones skip a test, but fail it in CI."""

import importlib
import os
from types import ModuleType
from typing import NoReturn

import pytest

from benchmarks.torch_peers import make_torchvision_importable


def peer(name: str) -> ModuleType:
    """Imports a peer; where it is absent the test skips with the reason, in CI it fails."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        absent(
            f"the peer {name!r} is not installed ({error}): run ./test.sh, or see CONTRIBUTING.md"
        )


def absent(reason: str) -> NoReturn:
    """Skips a test for what is not installed; in CI it fails."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def torch() -> ModuleType:
    """PyTorch."""
    return peer("torch")


def torchvision() -> ModuleType:
    """torchvision beside a CPU build of PyTorch that lacks its compiled operators."""
    torch()
    make_torchvision_importable()
    return peer("torchvision")


def transformers() -> ModuleType:
    """Hugging Face transformers, which imports torchvision where that is installed."""
    torchvision()
    return peer("transformers")


def diffusers() -> ModuleType:
    """diffusers, which imports transformers where that is installed."""
    torchvision()
    return peer("diffusers")


def timm() -> ModuleType:
    """timm, which imports torchvision."""
    torchvision()
    return peer("timm")
