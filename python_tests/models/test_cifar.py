"""The networks for 32-pixel images, each against its definition written out from the names in its state dict."""

import pytest
import torch
from models.test_resnet import stirred
from models.zoo import images
from torch.nn import functional as F

from vtkernels.models import create_model


class Weights:
    """A state dict as functions: convolutions and norms by name."""

    def __init__(self, model):
        self.state = model.state_dict()

    def conv(self, x, name, stride=1, padding=0, groups=1):
        return F.conv2d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), stride, padding, groups=groups)

    def bn(self, x, name):
        mean, variance, weight, bias = (self.state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def linear(self, x, name):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def __contains__(self, name):
        return f"{name}.weight" in self.state


def allconv(w, x, padded):
    def unit(x, index, padding):
        x = w.bn(w.conv(x, f"features.{index}", 1, padding), f"features.{index + 1}")
        return x * (1.702 * x).sigmoid()

    for index in (0, 3, 6):
        x = unit(x, index, 1)
    x = F.max_pool2d(x, 2)
    for index in (11, 14, 17):
        x = unit(x, index, 1)
    x = unit(F.max_pool2d(x, 2), 22, 0)
    for index in (25, 28):
        x = unit(x, index, int(padded))
    assert x.shape[-1] == (10 if padded else 6)
    return w.linear(F.avg_pool2d(x, 8 if padded else 6).flatten(1), "classifier")


def wide_resnet(w, x, blocks):
    x = w.conv(x, "conv1", 1, 1)
    for group in (1, 2, 3):
        for index in range(blocks):
            name, stride = f"block{group}.layer.{index}", 2 if group > 1 and index == 0 else 1
            o = w.bn(x, f"{name}.bn1").relu()
            shortcut = w.conv(o, f"{name}.conv_shortcut", stride) if f"{name}.conv_shortcut" in w else x
            o = w.bn(w.conv(o, f"{name}.conv1", stride, 1), f"{name}.bn2").relu()
            x = shortcut + w.conv(o, f"{name}.conv2", 1, 1)
    return w.linear(F.avg_pool2d(w.bn(x, "bn1").relu(), 8).flatten(1), "fc")


def resnext(w, x, blocks, cardinality):
    x = w.bn(w.conv(x, "conv_1_3x3", 1, 1), "bn_1").relu()
    for stage in (1, 2, 3):
        for index in range(blocks):
            name, stride = f"stage_{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            y = w.bn(w.conv(x, f"{name}.conv_reduce"), f"{name}.bn_reduce").relu()
            y = w.bn(w.conv(y, f"{name}.conv_conv", stride, 1, cardinality), f"{name}.bn").relu()
            y = w.bn(w.conv(y, f"{name}.conv_expand"), f"{name}.bn_expand")
            if f"{name}.downsample.0" in w:
                x = w.bn(w.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x = (x + y).relu()
    return w.linear(F.avg_pool2d(x, 8).flatten(1), "classifier")


def densenet(w, x, layers, bottleneck):
    x = w.conv(x, "conv1", 1, 1)
    for block in (1, 2, 3):
        for index in range(layers):
            name = f"dense{block}.{index}"
            y = w.conv(w.bn(x, f"{name}.bn1").relu(), f"{name}.conv1", 1, 0 if bottleneck else 1)
            if bottleneck:
                y = w.conv(w.bn(y, f"{name}.bn2").relu(), f"{name}.conv2", 1, 1)
            x = torch.cat((x, y), 1)
        if block < 3:
            x = F.avg_pool2d(w.conv(w.bn(x, f"trans{block}.bn1").relu(), f"trans{block}.conv1"), 2)
    return w.linear(F.avg_pool2d(w.bn(x, "bn1").relu(), 8).flatten(1), "fc")


def resnet(w, x, blocks):
    x = w.bn(w.conv(x, "conv1", 1, 1), "bn1").relu()
    for stage in (1, 2, 3):
        for index in range(blocks):
            name, stride = f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            y = w.bn(w.conv(x, f"{name}.conv1", stride, 1), f"{name}.bn1").relu()
            y = w.bn(w.conv(y, f"{name}.conv2", 1, 1), f"{name}.bn2")
            if f"{name}.shortcut.0" in w:
                x = w.bn(w.conv(x, f"{name}.shortcut.0", stride), f"{name}.shortcut.1")
            elif stride == 2:
                zeros = torch.zeros_like(x[:, : x.shape[1] // 2, ::2, ::2])
                x = torch.cat((zeros, x[:, :, ::2, ::2], zeros), 1)
            x = (x + y).relu()
    return w.linear(F.avg_pool2d(x, 8).flatten(1), "fc")


@pytest.mark.parametrize(
    ("name", "options", "definition", "arguments"),
    [
        ("allconv", {}, allconv, (True,)),
        ("allconv_unpadded", {}, allconv, (False,)),
        ("wrn_40_2", {"depth": 16}, wide_resnet, (2,)),
        ("resnext29_4x32d", {"depth": 20}, resnext, (2, 4)),
        ("densenet_bc_100_12", {"depth": 22}, densenet, (3, True)),
        ("densenet_40_12", {"depth": 13}, densenet, (3, False)),
        ("resnet20", {}, resnet, (3,)),
        ("resnet20", {"shortcut": "project"}, resnet, (3,)),
    ],
    ids=["allconv", "unpadded", "wrn", "resnext", "densenet_bc", "densenet", "resnet", "resnet_b"],
)
def test_definition(name, options, definition, arguments):
    torch.manual_seed(0)
    model = stirred(create_model(name, num_classes=10, **options)).double().eval()
    x = images(2, dtype=torch.float64)
    torch.testing.assert_close(model(x), definition(Weights(model), x, *arguments), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("allconv", 1_427_044),
        ("wrn_40_2", 2_255_156),
        ("wrn_28_10", 36_536_884),
        ("resnext29_4x32d", 6_900_132),
        ("resnext29_32x4d", 4_868_004),
        ("resnext29_8x64d", 34_518_948),
        ("resnext29_16x64d", 68_247_460),
        ("densenet_bc_100_12", 800_032),
        ("densenet_40_12", 1_100_428),
    ],
)
def test_counts_with_100_classes(name, count):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in create_model(name, num_classes=100).parameters()) == count


def test_projected_shortcuts_cost_2752_parameters():
    counts = [sum(parameter.numel() for parameter in create_model("resnet20", num_classes=10, shortcut=kind).parameters()) for kind in ("pad", "project")]
    assert counts == [269_722, 269_722 + 2_752]


@pytest.mark.parametrize("name", ["allconv", "wrn_40_2", "resnext29_4x32d", "densenet_bc_100_12", "resnet56"])
def test_initial_values(name):
    torch.manual_seed(0)
    model = create_model(name, num_classes=100)
    for key, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 5000:
            expected = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.06), key
        elif isinstance(module, torch.nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all(), key
    head = model.get_submodule(model.classifiers[0])
    assert (head.bias == 0).all()
    expected = (2 if name.startswith("resnext") else 1 / 3) / head.in_features
    assert head.weight.std().item() == pytest.approx(expected**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wrn_nano", {"depth": 41}, "depth must be 6 n \\+ 4 for n >= 1 blocks a group, got 41; try 16, 28 or 40"),
        ("resnext29_nano", {"depth": 30}, "depth must be 9 n \\+ 2"),
        ("resnext29_nano", {"base_width": 1}, "base_width must be at least 64 / width = 4, got 1"),
        ("densenet_nano", {"depth": 41}, "depth must be 6 n \\+ 4 for n >= 1 layers a block, got 41; try 40"),
        ("densenet_nano", {"img_size": 2}, "img_size must be at least 4 pixels"),
        ("resnet8_nano", {"depth": 9}, "depth must be 6 n \\+ 2"),
        ("resnet8_nano", {"shortcut": "conv"}, "shortcut must be one of pad, project, got 'conv'"),
        ("allconv_nano", {"img_size": 8}, "img_size must be at least 12 pixels"),
    ],
)
def test_impossible_configurations(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **options)
