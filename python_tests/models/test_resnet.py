"""ResNets against timm and torchvision, and their initial values."""

import pytest
import torch
from models.zoo import assert_same_function, images, nano
from optional import peer
from torch import nn

from vtkernels.models import create_model


def stirred(model):
    """Weights under which every part of a network shows in its logits: no branch at zero, norms with statistics of their own."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.0, generator=generator)
                module.bias.uniform_(-0.1, 0.1, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1, generator=generator)
            module.running_var.uniform_(0.8, 1.2, generator=generator)
    return model


def assert_same_as(name, theirs, tmp_path, size=64, **options):
    stirred(theirs)
    torch.save(theirs.state_dict(), tmp_path / "peer.pth")
    ours = create_model(name, checkpoint=tmp_path / "peer.pth", **options)
    assert ours.load_report.complete, ours.load_report
    assert_same_function(ours, theirs, images(2, size))


@pytest.mark.parametrize("name", ["resnet18", "resnet50_gn", "seresnet18", "seresnet50", "legacy_seresnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_timm(name, tmp_path):
    depths = (1, 2, 1, 1)
    assert_same_as(name, peer("timm").create_model(name, layers=depths), tmp_path, depths=depths)


def test_doubled_width(tmp_path):
    timm = peer("timm")
    theirs = timm.models.resnet.ResNet(timm.models.resnet.Bottleneck, [1, 2, 1, 1], channels=(128, 256, 512, 1024))
    # timm's stem keeps its 64 channels
    theirs.conv1, theirs.bn1 = nn.Conv2d(3, 128, 7, 2, 3, bias=False), nn.BatchNorm2d(128)
    theirs.layer1[0].conv1 = nn.Conv2d(128, 128, 1, bias=False)
    theirs.layer1[0].downsample[0] = nn.Conv2d(128, 512, 1, bias=False)
    assert_same_as("resnet50x2", theirs, tmp_path, depths=(1, 2, 1, 1))


def test_torchvision(tmp_path):
    assert_same_as("resnet50", peer("torchvision").models.resnet50(), tmp_path, size=(64, 96))


def test_weight_normalisation_of_torch(tmp_path):
    """The names of both of torch's forms are understood."""
    model = nano("resnet_nano_wn")
    state = model.state_dict()
    old = {f"module.{name}": value for name, value in state.items()}
    new = {
        name.replace("weight_g", "parametrizations.weight.original0").replace("weight_v", "parametrizations.weight.original1"): value
        for name, value in state.items()
    }
    assert any("original0" in name for name in new)
    for content in (old, new):
        torch.save(content, tmp_path / "weights.pth")
        assert create_model("resnet_nano_wn", num_classes=10, checkpoint=tmp_path / "weights.pth").load_report.complete


@pytest.mark.parametrize("name", ["resnet18_cifar", "resnet34_cifar", "resnet50_cifar"])
def test_cifar_stem(name):
    with torch.device("meta"):
        model = create_model(name, num_classes=100)
        counts = {"resnet18_cifar": 11_220_132, "resnet34_cifar": 21_328_292, "resnet50_cifar": 23_705_252}
        assert sum(parameter.numel() for parameter in model.parameters()) == counts[name]
        assert [list(found.shape[2:]) for found in model.forward_maps(torch.empty(1, 3, 32, 48))] == [[32, 48], [16, 24], [8, 12], [4, 6]]


def test_initial_values():
    torch.manual_seed(0)
    model = create_model("resnet50", depths=(1, 1, 1, 1))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] ** 2 * module.out_channels
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03), name
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == (0 if name.endswith("bn3") else 1)).all() and (module.bias == 0).all(), name
    assert model.fc.weight.abs().max() <= 2048**-0.5 and model.fc.weight.std().item() == pytest.approx((1 / 2048 / 3) ** 0.5, rel=0.02)
    full = create_model("resnet18", zero_init_last=False)
    assert all((module.weight == 1).all() for module in full.modules() if isinstance(module, nn.BatchNorm2d))
    # blocks start as their shortcuts in the form without batch statistics too, whose direction is the initial filter
    normalised = create_model("resnet_nano_wn")
    block = normalised.layer1[0]
    assert (block.conv2.weight_g == 0).all()
    torch.testing.assert_close(block.conv1.filters(), block.conv1.weight_v)
    assert normalised.no_weight_decay() == {name for name in normalised.state_dict() if name.endswith("weight_g")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "layer"}, "norm must be one of batch, group, mean, got 'layer'"),
        ({"conv": "fast"}, "conv must be one of plain, standardised, normalised, got 'fast'"),
        ({"stem": "deep"}, "stem must be one of imagenet, caffe, cifar, got 'deep'"),
        ({"norm": "mean"}, "conv must be 'normalised' where norm='mean'"),
        ({"norm": "group", "groups": 3}, "channels must be a multiple of groups=3, got 8"),
        ({"bottleneck": True, "cardinality": 3}, "inner_ratio must give a multiple of cardinality=3 channels, got 8"),
    ],
)
def test_impossible_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("resnet_nano", **options)
