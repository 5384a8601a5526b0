"""The parts of ViTAE's cells, written out from their equations on tensors by name. Batch normalisation is that of evaluation."""

import math

import torch
from torch.nn import functional as F

RATIOS = (4, 2, 2, 2)
DILATIONS = ((1, 2, 3, 4), (1, 2, 3), (1, 2), (1, 2))


def tokens(x):
    return x.flatten(2).mT


def linear(p, name, x):
    return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))


def norm(p, name, x, eps):
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], eps)


def mlp(p, name, x, first="fc1", second="fc2"):
    return linear(p, f"{name}.{second}", F.gelu(linear(p, f"{name}.{first}", x)))


def conv(p, name, x, stride, groups):
    return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], stride, 1, 1, groups)


def batch_norm(p, name, x):
    mean, variance, weight, bias = (p[f"{name}.{leaf}"][:, None, None] for leaf in ("running_mean", "running_var", "weight", "bias"))
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def pyramid(p, name, x, layer):
    kernel, ratio, maps = (7 if layer == 0 else 3), RATIOS[layer], []
    for index, dilation in enumerate(DILATIONS[layer]):
        padding = math.ceil(((kernel - 1) * dilation + 1 - ratio) / 2)
        weight, bias = p[f"{name}.convs.{index}.0.weight"], p[f"{name}.convs.{index}.0.bias"]
        maps.append(F.gelu(F.conv2d(x, weight, bias, ratio, padding, dilation)))
    return tokens(torch.cat(maps, 1))


def attention(p, name, x, heads, shortcut=False):
    q, k, v = linear(p, f"{name}.qkv", x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = ((q @ k.mT) / q.shape[-1] ** 0.5).softmax(-1) @ v
    out = linear(p, f"{name}.proj", mixed.transpose(1, 2).flatten(2))
    return out + v.transpose(1, 2).flatten(2) if shortcut else out


def performer(p, name, x):
    """Keys, queries and values in this order; the values are the shortcut."""
    k, q, v = linear(p, f"{name}.kqv", norm(p, f"{name}.norm1", x, 1e-5)).chunk(3, -1)
    w = p[f"{name}.w"]
    fq, fk = (torch.exp(t @ w.T - t.square().sum(-1, keepdim=True) / 2) / w.shape[0] ** 0.5 for t in (q, k))
    y = fq @ (fk.mT @ v) / (fq @ fk.sum(1)[:, :, None] + 1e-8)
    return v + linear(p, f"{name}.proj", y)


def randomise(model):
    """Weights, biases and statistics of a size that makes every term count."""
    torch.manual_seed(2)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2.0)
        elif value.is_floating_point():
            # wide fan-ins would drown everything in the first layer
            value.copy_(torch.randn(value.shape) * (0.3 if value.dim() == 1 else 0.7 * value[0].numel() ** -0.5))
    return model.double().eval(), {name: value.double() for name, value in model.state_dict().items()}
