"""Multiply-accumulates of the convolutional models: what strides and resolutions leave no doubt about."""

import pytest
import torch
from models.zoo import ALL
from torch.utils.flop_counter import FlopCounterMode

from vtkernels.models import create_model, model_info
from vtkernels.models._conv_net import ConvNet
from vtkernels.models._registry import _find

COUNTED = [name for name in ALL if issubclass(_find(name)[0], ConvNet) and model_info(name).gmacs is not None]


@pytest.mark.parametrize("name", COUNTED)
def test_multiply_accumulates(name):
    info = model_info(name)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = create_model(name, num_classes=info.classes).eval()
        model(torch.empty(1, 3, *model.config.size))
    # published counts differ in whether they include poolings, norms and the standardisation of filters
    assert counter.get_total_flops() / 2e9 == pytest.approx(info.gmacs, rel=0.04)
