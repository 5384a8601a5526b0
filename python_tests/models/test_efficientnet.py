"""EfficientNets and MobileNetV1 against timm and torchvision, their scaling and initial values."""

import pytest
import torch
from models.test_resnet import assert_same_as
from optional import peer

from vtkernels.layers import Conv2dSame, SqueezeExcite
from vtkernels.models import create_model, model_config


@pytest.mark.parametrize("name", ["efficientnet_b0", "tf_efficientnet_b0", "efficientnet_b2", "mobilenetv1_100"])
def test_timm(name, tmp_path):
    assert_same_as(name, peer("timm").create_model(name), tmp_path, size=(65, 96))


def test_torchvision(tmp_path):
    assert_same_as("efficientnet_b1", peer("torchvision").models.efficientnet_b1(), tmp_path)


def test_asymmetric_padding():
    layer = Conv2dSame(1, 1, 3, stride=2, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1)
    # of 4 columns, the last window hangs over on the right alone; of 3, both edges are padded
    columns = torch.tensor([1.0, 10, 100, 1000]).expand(1, 1, 3, 4)
    assert layer(columns)[0, 0].tolist() == [[2 * 111, 2 * 1100], [2 * 111, 2 * 1100]]


@pytest.mark.parametrize(
    ("size", "stem", "channels", "repeats", "head"),
    [
        ("b0", 32, (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1), 1280),
        ("b1", 32, (16, 24, 40, 80, 112, 192, 320), (2, 3, 3, 4, 4, 5, 2), 1280),
        ("b2", 32, (16, 24, 48, 88, 120, 208, 352), (2, 3, 3, 4, 4, 5, 2), 1408),
        ("b3", 40, (24, 32, 48, 96, 136, 232, 384), (2, 3, 3, 5, 5, 6, 2), 1536),
        ("b4", 48, (24, 32, 56, 112, 160, 272, 448), (2, 4, 4, 6, 6, 8, 2), 1792),
        ("b5", 48, (24, 40, 64, 128, 176, 304, 512), (3, 5, 5, 7, 7, 9, 3), 2048),
        ("b6", 56, (32, 40, 72, 144, 200, 344, 576), (3, 6, 6, 8, 8, 11, 3), 2304),
        ("b7", 64, (32, 48, 80, 160, 224, 384, 640), (4, 7, 7, 10, 10, 13, 4), 2560),
    ],
)
def test_compound_scaling(size, stem, channels, repeats, head):
    config = model_config(f"efficientnet_{size}")
    assert config.channels(config.stem) == stem and config.channels(config.head) == head
    assert tuple(config.channels(stage.channels) for stage in config.stages) == channels
    assert tuple(config.repeats(stage) for stage in config.stages) == repeats


def test_stochastic_depth_grows_with_the_block():
    model = create_model("efficientnet_b0")
    rates = [block.drop_path.rate for stage in model.blocks for block in stage]
    assert rates == pytest.approx([0.2 * index / 16 for index in range(16)])
    # the squeeze is to a quarter of the block's input: 16 channels, expanded to 96
    assert model.blocks[1][0].se.conv_reduce.weight.shape == (4, 96, 1, 1)


@pytest.mark.parametrize(("name", "norm"), [("efficientnet_b0", (1e-5, 0.1)), ("tf_efficientnet_b0", (1e-3, 0.01))])
def test_batch_normalisation(name, norm):
    with torch.device("meta"):
        model = create_model(name)
    assert {(module.eps, module.momentum) for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {norm}


def test_initial_values():
    torch.manual_seed(0)
    for name in ("efficientnet_b0", "mobilenetv1_100"):
        model = create_model(name)
        for key, module in model.named_modules():
            if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 4000:
                expected = (2 / (module.kernel_size[0] ** 2 * module.out_channels / module.groups)) ** 0.5
                assert module.weight.std().item() == pytest.approx(expected, rel=0.06), key
            if isinstance(module, SqueezeExcite):
                assert (module.conv_reduce.bias == 0).all() and (module.conv_expand.bias == 0).all()
        head = model.classifier
        assert head.weight.abs().max() <= 1000**-0.5 and head.weight.std().item() == pytest.approx((1 / 1000 / 3) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("efficientnet_nano", {"width": 0}, "width must be positive, got 0"),
        ("efficientnet_nano", {"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
        ("mobilenetv1_nano", {"repeats": (1, 2)}, r"repeats must have one number for each of 3 stages, got \(1, 2\)"),
        ("mobilenetv1_nano", {"activation": "relu7"}, "name must be one of"),
    ],
)
def test_impossible_configurations(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **options)
