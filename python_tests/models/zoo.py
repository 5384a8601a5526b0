"""The models the tests walk over: every variant on the meta device, and the smallest of each family for real."""

import torch

from vtkernels.models import Model, create_model, list_models
from vtkernels.models._registry import _find

ALL = list_models()
# each family has a variant of a few thousand parameters on 32 pixels, which does everything the large ones do
NANO = [name for name in ALL if "_nano" in name and issubclass(_find(name)[0], Model)]


def nano(name: str, **options) -> Model:
    torch.manual_seed(0)
    return create_model(name, **{"num_classes": 10, **options})


def images(count: int = 2, size: int | tuple[int, int] = 32, channels: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)
