"""What all tests share: peers that may be missing, and a clean torch."""

import importlib
import os
from types import ModuleType

import pytest
import torch


def peer(name: str) -> ModuleType:
    """A library to compare with. Where it is missing the test is skipped; CI must have them all."""
    try:
        if name.startswith("torchvision"):
            _declare_torchvision_operators()
        return importlib.import_module(name)
    except Exception as error:
        message = f"the peer {name} cannot be imported: {error}"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(message)
        pytest.skip(message)


# what torchvision's Python registers shape functions for; a build without its C++ extension does not define them
_TORCHVISION_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries = []


def _declare_torchvision_operators() -> None:
    """Let a torchvision whose C++ extension does not fit this torch be imported: its models do not need the extension."""
    for name, schema in _TORCHVISION_SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(schema)
            _libraries.append(library)


@pytest.fixture
def timm_swin() -> ModuleType:
    return peer("timm.models.swin_transformer")


@pytest.fixture
def timm_swin_v2() -> ModuleType:
    return peer("timm.models.swin_transformer_v2")


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
