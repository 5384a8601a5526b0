"""Multiply-accumulates of the convolutional models, which depend on every stride, and their parameters with few classes."""

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


@pytest.mark.parametrize(
    ("name", "ten", "hundred"),
    [
        ("resnet18", 11_181_642, 11_227_812),
        ("resnet34", 21_289_802, 21_335_972),
        ("resnet50", 23_528_522, 23_712_932),
        ("resnet101", 42_520_650, 42_705_060),
        ("seresnet50", 26_059_514, 26_243_924),
        ("efficientnet_b0", 4_020_358, 4_135_648),
        ("mobilenetv1_100", 3_217_226, 3_309_476),
    ],
)
def test_parameters_with_few_classes(name, ten, hundred):
    with torch.device("meta"):
        counts = [sum(parameter.numel() for parameter in create_model(name, num_classes=classes).parameters()) for classes in (10, 100)]
    assert counts == [ten, hundred]
