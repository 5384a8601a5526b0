"""What all tests share: peers as fixtures, and a clean torch."""

from types import ModuleType

import pytest
import torch
from optional import peer


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
