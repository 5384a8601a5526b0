"""The models the tests walk over: every variant on the meta device, and the smallest of each family for real."""

import os

import torch
from torch import nn

from vtkernels.models import Model, create_model, list_models
from vtkernels.models._registry import _find

# the whole of what is too slow for every run
FULL = os.environ.get("CI") == "true" or os.environ.get("VTKERNELS_FULL") == "1"
ALL = list_models()
# each family has a variant of a few thousand parameters on 32 pixels, which does everything the large ones do
NANO = [name for name in ALL if "_nano" in name and issubclass(_find(name)[0], Model)]


def nano(name: str, **options) -> Model:
    torch.manual_seed(0)
    model = create_model(name, **{"num_classes": 10, **options})
    # heads that start at zero would make any two models agree
    for head in getattr(model, "classifiers", ()):
        layer = model.get_submodule(head)
        if isinstance(layer, nn.Linear) and "checkpoint" not in options and not layer.weight.any():
            nn.init.trunc_normal_(layer.weight, std=0.02)
    return model


def images(count: int = 2, size: int | tuple[int, int] = 32, channels: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def assert_same_function(ours: nn.Module, theirs: nn.Module, x: torch.Tensor) -> None:
    """Equal logits in evaluation, in single and in double precision."""
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.double()(x.double()), theirs.double()(x.double()), rtol=1e-9, atol=1e-9)
