"""NASNet-A against timm, its cells' parameters against the closed forms, its poolings against their definition."""

import json

import pytest
import torch
from models.test_resnet import assert_same_as
from models.zoo import nano
from optional import peer
from torch import nn
from torch.nn import functional as F

from vtkernels.models import create_model
from vtkernels.models.nasnet import Cell, CellPlan, Halving, Pool


class TensorFlowAverage(nn.Module):
    """The mean over windows of 3 x 3 at every second pixel that leaves out what lies outside the image, pixel by pixel."""

    def forward(self, x):
        height, width = x.shape[2:]

        def windows(edge):
            count = -(-edge // 2)
            first = -(max((count - 1) * 2 + 3 - edge, 0) // 2)
            return [range(max(first + 2 * index, 0), min(first + 2 * index + 3, edge)) for index in range(count)]

        columns = windows(width)
        rows = [torch.stack([x[:, :, list(row)][..., list(column)].mean((2, 3)) for column in columns], -1) for row in windows(height)]
        return torch.stack(rows, -2)


def test_timm(tmp_path):
    timm = peer("timm")
    theirs = timm.models.nasnet.NASNetALarge(stem_size=16, num_features=24 * 8)
    # timm's own padded mean counts the zeros outside the image, which TensorFlow's, that the weights were trained with, does not
    for name, module in list(theirs.named_modules()):
        if type(module).__name__ == "AvgPool2dSame":
            parent, _, leaf = name.rpartition(".")
            setattr(theirs.get_submodule(parent), leaf, TensorFlowAverage())
    assert_same_as("nasnetalarge", theirs, tmp_path, size=(65, 96), filters=8, stem_channels=16)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(7, 8), (1, 4)])
def test_pools_leave_out_what_is_not_there(stride, size):
    x = torch.randn(2, 3, *size) - 5
    if stride == 2:
        torch.testing.assert_close(Pool("avg", 2)(x), TensorFlowAverage()(x))
    else:
        torch.testing.assert_close(Pool("avg", 1)(x), F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
        torch.testing.assert_close(Pool("max", 1)(x), F.max_pool2d(x, 3, 1, 1))
    assert Pool("max", stride)(x).shape[2:] == tuple(-(-edge // stride) for edge in size) and (Pool("max", stride)(x) < 0).all()


@pytest.mark.parametrize(
    ("filters", "prev", "channels", "normal", "reduction"),
    [
        (32, 32, 96, 20_032, 25_152),
        (32, 96, 192, 25_152, 30_272),
        (32, 192, 192, 28_224, 33_344),
        (336, 1008, 2016, 2_204_832, 2_258_592),
    ],
)
def test_parameters_of_a_cell(filters, prev, channels, normal, reduction):
    def count(reduces):
        return sum(parameter.numel() for parameter in Cell(filters, prev, channels, "same", reduces).parameters())

    assert count(False) == normal == 10 * filters**2 + 178 * filters + filters * (prev + channels)
    assert count(True) == reduction == 10 * filters**2 + 338 * filters + filters * (prev + channels)


def test_halving_reads_every_second_pixel():
    path, x = Halving(1, 1), torch.arange(20.0).view(1, 1, 4, 5)
    with torch.no_grad():
        path.conv.weight.fill_(1)
    assert path(x)[0, 0].tolist() == [[0, 2, 4], [10, 12, 14]]
    # the shifted path reads outside the image where the edge is odd
    assert path(F.pad(x, (-1, 1, -1, 1)))[0, 0].tolist() == [[6, 8, 0], [16, 18, 0]]


def test_penultimate_channels_and_drop_path():
    with torch.device("meta"):
        for name, channels in (("nasnetalarge", 4032), ("nasnetamobile", 1056), ("nasneta_cifar", 768)):
            assert create_model(name).head_width == channels
    model = nano("nasnet_nano", drop_path=0.5)
    rates = [module.drop_path.rate for module in model.modules() if isinstance(module, Cell)]
    assert rates == pytest.approx([0.5 * (index + 1) / 5 for index in range(5)])


def test_who_precedes_the_cell_after_a_reduction():
    """The last cell before the reduction, or with `skip_reduction_input` the one before that, which here is the stem."""
    for skip, channels in ((False, 6 * 8), (True, 8)):
        cell = nano("nasnet_nano", skip_reduction_input=skip).get_submodule("cell_1")
        assert cell.path_1.conv.in_channels == channels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "deep"}, "stem must be one of imagenet, cifar, got 'deep'"),
        ({"filters": 6, "stem": "imagenet"}, "filters must be a multiple of 4, which the smallest cell divides it by, got 6"),
        ({"repeats": 0}, "repeats must be positive, got 0"),
        ({"drop_path": 1.0}, r"rate must be in \[0, 1\), got 1.0"),
    ],
)
def test_impossible_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("nasnet_nano", **options)


def test_other_cells_take_the_place_of_the_published_ones():
    """One block each: its output alone goes on; an identity of stride 2 halves."""
    normal, reduction = CellPlan(((("sep3", "cur"), ("id", "prev")),), (0,)), CellPlan(((("max", "prev"), ("id", "cur")),), (0,))
    model = create_model("nasnet_nano", num_classes=3, normal=normal, reduction=reduction)
    assert [info.channels for info in model.maps_info] == [8, 16, 32]
    assert isinstance(model.reduction_cell_0.comb_iter_0_right, Halving)
    assert model(torch.randn(2, 3, 33, 30)).shape == (2, 3)
    # as they come out of a JSON file
    create_model("nasnet_nano", num_classes=3, **json.loads(json.dumps({"normal": normal, "reduction": reduction}))).load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"normal": CellPlan(((("sep9", "cur"), ("id", "prev")),), (0,))}, "sep9 of cur"),
        ({"normal": CellPlan(((("sep3", 0), ("id", "prev")),), (0,))}, "sep3 of 0"),
        ({"normal": CellPlan(((("sep3", "cur"), ("id", "prev")),), (1,))}, "put out blocks or prev"),
        ({"reduction": CellPlan(((("sep3", "cur"), ("id", "prev")),), ("prev", 0))}, "put out blocks alone"),
        ({"reduction": CellPlan(((("sep3", "cur"), ("id", "prev")),), (0,)), "stem": "imagenet"}, "separable convolutions alone"),
    ],
)
def test_impossible_cells_are_told(change, message):
    with pytest.raises(ValueError, match=message):
        create_model("nasnet_nano", **change)
