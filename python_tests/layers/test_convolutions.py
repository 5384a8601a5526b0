"""Layers of convolutional networks against torch's own and against the formulas, element by element."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vtkernels.layers import (
    DepthwiseSeparableConv,
    GroupNorm,
    MeanOnlyBatchNorm2d,
    SeparableConv2d,
    SqueezeExcite,
    StdConv2d,
    WeightNormConv2d,
    WeightNormLinear,
)


def maps(count=2, channels=8, size=(5, 7)):
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_squeeze_excite():
    layer, x = SqueezeExcite(8, 2, names=("conv_reduce", "conv_expand")).double(), maps()
    weights = {name: value.flatten(1) if value.dim() == 4 else value for name, value in layer.state_dict().items()}
    hidden = (x.flatten(2).mean(2) @ weights["conv_reduce.weight"].T + weights["conv_reduce.bias"]).clamp(min=0)
    factors = 1 / (1 + torch.exp(-(hidden @ weights["conv_expand.weight"].T + weights["conv_expand.bias"])))
    torch.testing.assert_close(layer(x), x * factors[:, :, None, None], rtol=1e-12, atol=1e-12)
    # tokens are the pixels of a map
    torch.testing.assert_close(layer(x.flatten(2).mT), layer(x).flatten(2).mT, rtol=1e-12, atol=1e-12)


def test_standardised_filters():
    layer = StdConv2d(8, 6, 3, padding=1, std_eps=1e-10).double()
    with torch.no_grad():
        layer.weight.mul_(5).add_(2)
    filters = layer.standardised().flatten(1)
    torch.testing.assert_close(filters.mean(1), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(filters.var(1, correction=0), torch.ones(6, dtype=torch.float64), rtol=1e-8, atol=0)
    torch.testing.assert_close(layer(maps()), F.conv2d(maps(), filters.view_as(layer.weight), layer.bias, padding=1))
    # a filter of one value has no direction: it stays zero, in half precision too
    with torch.no_grad():
        layer.weight.fill_(3)
    assert (layer.half().standardised() == 0).all()


@pytest.mark.parametrize("linear", [False, True])
def test_weight_normalisation_is_that_of_torch(linear):
    layer, theirs = (WeightNormLinear(8, 6), nn.Linear(8, 6)) if linear else (WeightNormConv2d(8, 6, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1))
    layer, theirs, x = layer.double(), theirs.double(), maps().flatten(2).mT if linear else maps()
    layer.set_filters(theirs.weight.detach())
    layer.bias = theirs.bias
    torch.testing.assert_close(layer(x), theirs(x), rtol=1e-12, atol=1e-12)
    theirs = nn.utils.parametrizations.weight_norm(theirs)
    for module in (layer, theirs):
        module(x).square().sum().backward()
    torch.testing.assert_close(layer.weight_g.grad, theirs.parametrizations.weight.original0.grad)
    torch.testing.assert_close(layer.weight_v.grad, theirs.parametrizations.weight.original1.grad)
    # the gradient of the direction is orthogonal to it
    inner = (layer.weight_v.grad * layer.weight_v).flatten(1).sum(1)
    torch.testing.assert_close(inner, torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("linear", [False, True])
def test_weight_normalisation_fits_a_batch(linear):
    layer = (WeightNormLinear(8, 6) if linear else WeightNormConv2d(8, 6, 3, padding=1)).double()
    x = (maps().flatten(2).mT if linear else maps()) * 5 + 2
    direction = layer.weight_v.detach().clone()
    y = layer.fit(x).flatten(0, 1) if linear else layer.fit(x).movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(y.mean(0), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(y.var(0, correction=0), torch.ones(6, dtype=torch.float64))
    assert torch.equal(layer.weight_v, direction)
    # y = phi(w x + b), with the length in g alone
    if linear:
        by_hand = torch.tanh(x @ (layer.weight_g * direction / direction.norm(dim=1, keepdim=True)).T + layer.bias)
        torch.testing.assert_close(torch.tanh(layer(x)), by_hand)
    with pytest.raises(ValueError, match=f"{type(layer).__name__}: x must make every output vary, got 6 outputs that do not; give a batch of data"):
        layer.fit(torch.zeros_like(x))
    with pytest.raises(ValueError, match="WeightNormLinear: bias must be there to centre the outputs, got None; build the layer with bias=True"):
        WeightNormLinear(8, 6, bias=False).fit(x)


def test_mean_only_batch_normalisation():
    layer, x = MeanOnlyBatchNorm2d(8).double(), maps() + 3
    with torch.no_grad():
        layer.bias.fill_(0.5)
    y = layer(x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.full((8,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(y.var((0, 2, 3)), x.var((0, 2, 3)))
    torch.testing.assert_close(layer.running_mean, 0.1 * x.mean((0, 2, 3)))
    # an empty batch has no mean
    assert layer(x[:0]).shape == (0, 8, 5, 7) and layer.running_mean.isfinite().all()
    torch.testing.assert_close(layer.eval()(x), x - layer.running_mean[:, None, None] + 0.5)


def test_group_normalisation():
    x = maps()
    group = x[1, 4:6]
    expected = (group - group.mean()) / (group.var(correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(GroupNorm(8, 4).double()(x)[1, 4:6], expected)
    with pytest.raises(ValueError, match="GroupNorm: channels must be a multiple of groups=32, got 48; choose fewer groups"):
        GroupNorm(48)


def test_depthwise_separable():
    layer, x = SeparableConv2d(8, 6, 5, stride=2).double(), maps(size=(7, 9))
    kernels, mixing = layer.depthwise_conv2d.weight, layer.pointwise_conv2d.weight[:, :, 0, 0]
    full = torch.einsum("oc,chw->ochw", mixing, kernels[:, 0])
    torch.testing.assert_close(layer(x), F.conv2d(x, full, stride=2, padding=2))
    assert layer(x).shape == (2, 6, 4, 5)
    assert parameters(DepthwiseSeparableConv(32, 64)) == 2_528
    assert parameters(DepthwiseSeparableConv(512, 512)) == 268_800
    block = DepthwiseSeparableConv(8, 6, act="relu").double()
    x = maps()
    depthwise = F.relu(block.bn1(block.conv_dw(x)))
    torch.testing.assert_close(block(x), F.relu(block.bn2(block.conv_pw(depthwise))))
