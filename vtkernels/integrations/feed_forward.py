"""Linear layers and MLPs, on CPUs: there torch's BLAS may be far from what the machine can do. GPUs have theirs.

A model that goes to a GPU after it was accelerated computes these by its own code, also where that is compiled.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vtkernels.integrations.layers import rate
from vtkernels.integrations.rules import DROPOUT, LINEAR, Part, replaces
from vtkernels.ops.linear import linear, mlp

_NAMES = {
    "torch.nn.modules.activation:ReLU": "relu",
    "torch.nn.modules.activation:SiLU": "silu",
    "timm.layers.activations:GELU": "gelu",
    "timm.layers.activations:GELUTanh": "gelu_tanh",
    "timm.layers.activations:QuickGELU": "quick_gelu",
    "transformers.activations:GELUActivation": "gelu",
}
_GELU = "torch.nn.modules.activation:GELU"
_ACTIVATION = Part((_GELU, *_NAMES))
_IDENTITY = Part(("torch.nn.modules.linear:Identity",))


def activation_name(module: nn.Module) -> str | None:
    """What the ops call this activation."""
    name = f"{type(module).__module__}:{type(module).__qualname__}"
    if name == _GELU:
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    return _NAMES.get(name)


def rows(layer: nn.Linear, generator: torch.Generator) -> tuple[Any, ...]:
    return (torch.randn(5, layer.in_features, generator=generator, dtype=torch.float64),)


def refuse_device(layer: nn.Linear) -> str | None:
    device = layer.weight.device.type
    return None if device == "cpu" else f"it is on {device}, where torch's own Linear is as fast"


def refuse_mlp(first: nn.Linear, activation: nn.Module) -> str | None:
    if activation_name(activation) is None:
        return f"its activation is a {type(activation).__name__}, which the op does not know"
    return refuse_device(first)


def linear_sample(layer: nn.Linear) -> dict[str, Any]:
    return {"x": layer.weight.new_empty(1, layer.in_features), "weight": layer.weight, "bias": layer.bias}


def mlp_sample(first: nn.Linear, second: nn.Linear) -> dict[str, Any]:
    return {"x": first.weight.new_empty(1, first.in_features), "w1": first.weight, "b1": first.bias, "w2": second.weight, "b2": second.bias}


def two_layers(x: Tensor, first: nn.Linear, activation: nn.Module, second: nn.Linear, backend: str) -> Tensor:
    return mlp(x, first.weight, first.bias, second.weight, second.bias, activation=activation_name(activation), backend=backend)


@replaces("linear", parts={"": LINEAR}, sample=linear_sample, example=rows, refuses=refuse_device, variant=lambda layer: layer.bias is None)
def apply_linear(layer: nn.Linear, x: Tensor, *, backend: str) -> Tensor:
    if x.device.type != "cpu":
        return type(layer).forward(layer, x)
    return linear(x, layer.weight, layer.bias, backend=backend)


@replaces(
    "linear",
    parts={
        "": Part(("transformers.models.swinv2.modeling_swinv2:Swinv2Intermediate",), children=("dense", "intermediate_act_fn")),
        "dense": LINEAR,
        "intermediate_act_fn": _ACTIVATION,
    },
    sample=lambda half: linear_sample(half.dense),
    example=lambda half, generator: rows(half.dense, generator),
    refuses=lambda half: refuse_mlp(half.dense, half.intermediate_act_fn),
)
def huggingface_first_half(half: nn.Module, x: Tensor, *, backend: str) -> Tensor:
    if x.device.type != "cpu":
        return type(half).forward(half, x)
    return linear(x, half.dense.weight, half.dense.bias, activation=activation_name(half.intermediate_act_fn), backend=backend)


@replaces(
    "mlp",
    parts={
        "": Part(("timm.layers.mlp:Mlp",), children=("fc1", "act", "drop1", "norm", "fc2", "drop2")),
        "fc1": LINEAR,
        "act": _ACTIVATION,
        "drop1": DROPOUT,
        "norm": _IDENTITY,
        "fc2": LINEAR,
        "drop2": DROPOUT,
    },
    sample=lambda block: mlp_sample(block.fc1, block.fc2),
    example=lambda block, generator: rows(block.fc1, generator),
    refuses=lambda block: refuse_mlp(block.fc1, block.act),
)
def timm_mlp(block: nn.Module, x: Tensor, *, backend: str) -> Tensor:
    if rate(block.drop1) or x.device.type != "cpu":
        return type(block).forward(block, x)
    return block.drop2(two_layers(x, block.fc1, block.act, block.fc2, backend))


@replaces(
    "mlp",
    parts={
        "": Part(("*.swin_transformer:Mlp", "*.swin_transformer_v2:Mlp"), children=("fc1", "act", "fc2", "drop")),
        "fc1": LINEAR,
        "act": _ACTIVATION,
        "fc2": LINEAR,
        "drop": DROPOUT,
    },
    sample=lambda block: mlp_sample(block.fc1, block.fc2),
    example=lambda block, generator: rows(block.fc1, generator),
    refuses=lambda block: refuse_mlp(block.fc1, block.act),
)
def official_mlp(block: nn.Module, x: Tensor, *, backend: str) -> Tensor:
    if rate(block.drop) or x.device.type != "cpu":
        return type(block).forward(block, x)
    return two_layers(x, block.fc1, block.act, block.fc2, backend)


@replaces(
    "mlp",
    parts={
        "": Part(("torchvision.ops.misc:MLP",), children=("0", "1", "2", "3", "4")),
        "0": LINEAR,
        "1": _ACTIVATION,
        "2": DROPOUT,
        "3": LINEAR,
        "4": DROPOUT,
    },
    sample=lambda block: mlp_sample(block[0], block[3]),
    example=lambda block, generator: rows(block[0], generator),
    refuses=lambda block: refuse_mlp(block[0], block[1]),
)
def torchvision_mlp(block: nn.Sequential, x: Tensor, *, backend: str) -> Tensor:
    if rate(block[2]) or x.device.type != "cpu":
        return type(block).forward(block, x)
    return block[4](two_layers(x, block[0], block[1], block[3], backend))


@replaces(
    "mlp",
    parts={
        "": Part(("transformers.models.swin.modeling_swin:SwinMLP",), children=("activation_fn", "fc1", "fc2")),
        "activation_fn": _ACTIVATION,
        "fc1": LINEAR,
        "fc2": LINEAR,
    },
    sample=lambda block: mlp_sample(block.fc1, block.fc2),
    example=lambda block, generator: rows(block.fc1, generator),
    refuses=lambda block: refuse_mlp(block.fc1, block.activation_fn),
)
def huggingface_mlp(block: nn.Module, x: Tensor, *, backend: str) -> Tensor:
    if x.device.type != "cpu":
        return type(block).forward(block, x)
    return two_layers(x, block.fc1, block.activation_fn, block.fc2, backend)
