"""Libraries to compare with, which may be missing."""

import importlib
import os
from types import ModuleType

import pytest
import torch


def peer(name: str) -> ModuleType:
    """A library to compare with. Where it is missing the test is skipped; CI must have them all."""
    try:
        complete_torchvision()
        return importlib.import_module(name)
    except Exception as error:
        message = f"the peer {name} cannot be imported: {error}"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(message)
        pytest.skip(message)


# the operators torchvision's Python gives shape functions to, whether its C++ extension defined them or not
_TORCHVISION_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_torchvision_library = []


def complete_torchvision() -> None:
    """Let a torchvision whose C++ extension does not fit this torch be imported (timm imports it too): no model needs the extension."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error) or _torchvision_library:
            raise
        _torchvision_library.append(torch.library.Library("torchvision", "FRAGMENT"))
        for schema in _TORCHVISION_SCHEMAS:
            _torchvision_library[0].define(schema)
        importlib.import_module("torchvision")
