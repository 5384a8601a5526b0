"""What all tests share: peers that may be missing, and a clean torch."""

import importlib
import os
from types import ModuleType

import pytest
import torch


def peer(name: str) -> ModuleType:
    """A library to compare with. Where it is missing the test is skipped; CI must have them all."""
    try:
        _complete_torchvision()
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


def _complete_torchvision() -> None:
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


@pytest.fixture
def timm_swin() -> ModuleType:
    return peer("timm.models.swin_transformer")


@pytest.fixture
def timm_swin_v2() -> ModuleType:
    return peer("timm.models.swin_transformer_v2")


@pytest.fixture
def timm_cait() -> ModuleType:
    return peer("timm.models.cait")


@pytest.fixture
def torchvision_swin() -> ModuleType:
    return peer("torchvision.models.swin_transformer")


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler():
    """Compiled functions of other tests forgotten, before and after."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
