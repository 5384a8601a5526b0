"""What all tests share: peers as fixtures, and a clean torch."""

import os
from types import ModuleType

import pytest
import torch
from optional import peer

# side by side with other workers, more threads than cores would only wait for each other
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))


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


@pytest.fixture(autouse=True)
def _nothing_is_measured(monkeypatch) -> None:
    """Which backend `auto` takes must not depend on how busy the machine is."""
    monkeypatch.setenv("VTKERNELS_MEASURE", "0")
