"""Class and distillation tokens, LayerScale, stochastic depth and norms of channels, element by element."""

import pytest
import torch
from torch import nn

import vtkernels as vt
from vtkernels.layers import ClassToken, DistillationToken, DropPath, LayerNorm2d, LayerScale, linear_rates, prepend_tokens


def tokens(batch=3, count=5, dim=4):
    return torch.randn(batch, count, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_class_token():
    layer, x = ClassToken(4).double(), tokens()
    y = layer(x)
    assert torch.equal(y[:, 1:], x)
    assert (y[:, :1] == layer.cls_token).all() and layer.cls_token.abs().max() > 0
    y[:, 0].sum().backward()
    # one token for all images
    assert (layer.cls_token.grad == 3).all()
    assert list(layer.state_dict()) == ["cls_token"]
    assert layer(x[:0]).shape == (0, 6, 4)


def test_distillation_token():
    front, layer, x = ClassToken(4).double(), DistillationToken(4).double(), tokens()
    y = layer(front(x))
    assert torch.equal(y, prepend_tokens(x, front.cls_token, layer.dist_token))
    assert torch.equal(y[:, 0], front.cls_token[0].expand(3, 4)) and torch.equal(y[:, 1], layer.dist_token[0].expand(3, 4))
    assert prepend_tokens(x) is x and prepend_tokens(x, None) is x
    with pytest.raises(ValueError, match=r"DistillationToken: x must start with the class token, got \[3, 0, 4\]; put ClassToken before this layer"):
        layer(x[:, :0])


def test_a_distilled_model_learns_from_its_teacher():
    """Two heads' logits in training, their mean in evaluation."""
    model = vt.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1, num_classes=4).train()
    model.distilled_training = True
    x, target = torch.randn(2, 3, 32, 32), torch.tensor([0, 3])
    heads = model(x)
    vt.losses.DeitDistillationLoss(vt.losses.LabelSmoothingCrossEntropy())(heads, target, torch.randn(2, 4)).backward()
    assert model.head.weight.grad.abs().sum() > 0 and model.head_dist.weight.grad.abs().sum() > 0
    model.zero_grad()
    torch.testing.assert_close(model.eval()(x), (heads[0] + heads[1]) / 2)


def test_layer_scale():
    layer, x = LayerScale(4, 0.1).double(), tokens()
    with torch.no_grad():
        layer.scale[2] = 3.0
    torch.testing.assert_close(layer(x), x * torch.tensor([0.1, 0.1, 3.0, 0.1], dtype=torch.float64), rtol=1e-7, atol=0)
    # of maps the channels come first
    maps = LayerScale(4, channels_first=True).double()
    torch.testing.assert_close(maps(x.transpose(1, 2)[..., None]), x.transpose(1, 2)[..., None] * 1e-5, rtol=1e-6, atol=0)


def test_stochastic_depth():
    layer, x = DropPath(0.25), torch.ones(4000, 3, 2)
    y = layer(x)
    # whole samples, and what is kept makes up for what is not
    assert set(y.flatten(1).unique(dim=0).flatten().tolist()) == {0.0, torch.tensor(1.0).div(0.75).item()}
    assert y.mean().item() == pytest.approx(1.0, abs=0.04)
    assert layer.eval()(x) is x and DropPath(0.0)(x) is x
    with pytest.raises(ValueError, match=r"DropPath: rate must be in \[0, 1\), got 1.0"):
        DropPath(1.0)


def test_rates_of_depth():
    rates = linear_rates(0.2, 12)
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.2) and rates[1] == pytest.approx(0.2 / 11)
    assert linear_rates(0.2, 1) == [0.0]


def test_norm_of_channels():
    x = tokens().transpose(1, 2)[..., None].expand(-1, -1, -1, 3)
    theirs, ours = nn.LayerNorm(4).double(), LayerNorm2d(4).double()
    with torch.no_grad():
        for norm in (theirs, ours):
            norm.weight.copy_(torch.arange(4))
    torch.testing.assert_close(ours(x), theirs(x.movedim(1, -1)).movedim(-1, 1))
