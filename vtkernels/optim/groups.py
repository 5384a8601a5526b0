"""Parameter groups: what is decayed, and how fast each layer learns."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from vtkernels._core import check

# names of parameters, layer after layer from the input to the head
Layers = list[list[str]]


def param_groups(
    module: nn.Module,
    *,
    weight_decay: float,
    lr: float | None = None,
    decayed: str = "matrices",
    no_decay: Iterable[str] = (),
    layer_decay: float = 1.0,
    min_scale: float = 0.0,
    layers: Callable[[nn.Module], Layers] | None = None,
) -> list[dict[str, Any]]:
    """Groups for an optimizer: what requires a gradient, by weight decay and by layer.

    The module may hold the model anywhere (a task, DistributedDataParallel, torch.compile): the models' own `no_weight_decay` and
    `layer_groups` are looked up inside. Parameters beside the model, such as the head of an auxiliary loss, learn as its head does.

    Args:
        module: what is trained.
        weight_decay: of the decayed parameters; others have 0.
        lr: given to each group, times its `lr_scale`. None: left to the optimizer.
        decayed: "matrices": two dimensions and more, no biases, and none that the model names. "kernels": of these, only those called
            `weight` (big_vision). "all": everything, as some codes do.
        no_decay: more names, or ends of names behind a dot, without decay.
        layer_decay: rate of each layer over the next one's, 1 at the head. Groups then carry `lr_scale`, which schedules multiply by.
        min_scale: no layer's scale is below.
        layers: model -> names layer by layer; the model's `layer_groups()` by default. See `swin_simmim_layers` and `trunk_and_head`.
    """
    if decayed not in ("matrices", "kernels", "all"):
        check.fail("param_groups", "decayed", 'be "matrices", "kernels" or "all"', repr(decayed))
    if not 0 < layer_decay <= 1:
        check.fail("param_groups", "layer_decay", "be above 0 and at most 1", layer_decay, "0.75 is usual")
    if not weight_decay >= 0:
        check.fail("param_groups", "weight_decay", "be at least 0", weight_decay)
    named = names_of(module)
    params = {id(p): p for p in module.parameters() if p.requires_grad}
    if not params:
        check.fail("param_groups", "module", "have parameters that require a gradient", "none", "is everything frozen?")
    spared = _spared(module) | set(no_decay)
    scales = _scales(module, layer_decay, min_scale, layers)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for key, param in params.items():
        decay = weight_decay if decayed == "all" or _is_decayed(named[key], param, spared, decayed) else 0.0
        scale = scales.get(named[key][0], 1.0)
        group = groups.setdefault((decay, scale), {"params": [], "weight_decay": decay})
        group["params"].append(param)
        if layer_decay != 1:
            group["lr_scale"] = scale
        if lr is not None:
            group["lr"] = lr * scale
    return list(groups.values())


def layer_scales(num_layers: int, decay: float, min_scale: float = 0.0) -> list[float]:
    """Factors of the learning rate from the embeddings to the head, which has 1."""
    return [max(min_scale, decay ** (num_layers - 1 - layer)) for layer in range(num_layers)]


def decoupled_weight_decay(weight_decay: float, lr: float) -> float:
    """For torch's AdamW and our SGDW, which multiply by the learning rate: the decay of codes that multiply by the schedule alone.

    These are Loshchilov and Hutter's and big_vision's; `lr` is the base rate.
    """
    if not lr > 0:
        check.fail("decoupled_weight_decay", "lr", "be positive", lr)
    return weight_decay / lr


def normalized_weight_decay(weight_decay: float, *, batch_size: int, samples: int, epochs: float) -> float:
    """The decay for a run of this length, from one that suits runs of any (Loshchilov and Hutter): times sqrt(batch / (samples * epochs))."""
    if min(batch_size, samples, epochs) <= 0:
        check.fail("normalized_weight_decay", "batch_size, samples and epochs", "be positive", (batch_size, samples, epochs))
    return weight_decay * math.sqrt(batch_size / (samples * epochs))


def swin_simmim_layers(model: nn.Module) -> Layers:
    """Layers of a Swin as SimMIM's fine-tuning counts them: a patch merging belongs to the last block before it."""
    layers = [list(names) for names in model.layer_groups()]
    for before, after in zip(layers, layers[1:], strict=False):
        merging = [name for name in after if re.match(r"layers\.\d+\.downsample\.", name)]
        before.extend(merging)
        after[:] = [name for name in after if name not in merging]
    return layers


def trunk_and_head(model: nn.Module) -> Layers:
    """Two layers: everything that was trained elsewhere, and the new classifier, whose rate is 1 / `layer_decay` times that."""
    head = head_parameters(model)
    return [[name for name, param in model.named_parameters() if (id(param) in head) == of_head] for of_head in (False, True)]


def names_of(module: nn.Module) -> dict[int, list[str]]:
    """By id of each parameter its names, of which a shared one has several."""
    names: dict[int, list[str]] = {}
    for name, param in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(param), []).append(name)
    return names


def head_parameters(module: nn.Module) -> set[int]:
    """Ids of the parameters of the models' final layers."""
    found = set()
    for _, owner in _owners(module, "classifiers"):
        for name in owner.classifiers:
            found |= {id(param) for param in owner.get_submodule(name).parameters()}
    return found


def _owners(module: nn.Module, attribute: str) -> list[tuple[str, nn.Module]]:
    """Modules inside that have the attribute themselves, with the prefix of their parameters' names."""
    # a compiled module passes on what it is asked for, but names its parameters otherwise
    found = [(name, inner) for name, inner in module.named_modules() if hasattr(type(inner), attribute)]
    return [(name + "." if name else "", inner) for name, inner in found]


def _spared(module: nn.Module) -> set[str]:
    spared = {prefix + name for prefix, owner in _owners(module, "no_weight_decay") for name in owner.no_weight_decay()}
    for prefix, owner in _owners(module, "no_weight_decay_keywords"):
        keywords = owner.no_weight_decay_keywords()
        spared |= {prefix + name for name, _ in owner.named_parameters() if any(keyword in name for keyword in keywords)}
    return spared


def _is_decayed(names: list[str], param: nn.Parameter, spared: set[str], decayed: str) -> bool:
    for name in names:
        if name in spared or any(name.endswith("." + end) for end in spared) or name.rpartition(".")[2] == "bias":
            return False
    return param.ndim > 1 and (decayed != "kernels" or any(name.rpartition(".")[2] == "weight" for name in names))


def _scales(module: nn.Module, decay: float, min_scale: float, layers: Callable[[nn.Module], Layers] | None) -> dict[str, float]:
    if decay == 1:
        return {}
    owners = _owners(module, "layer_groups")
    if not owners and layers is None:
        check.fail("param_groups", "module", "have layer_groups()", type(module).__name__, "give layers=: model -> names layer by layer")
    scales: dict[str, float] = {}
    for prefix, owner in owners or [("", module)]:
        # a model inside a model: the outer one knows its layers
        if any(name.startswith(prefix) for name in scales):
            continue
        names = (layers or type(owner).layer_groups)(owner)
        for group, scale in zip(names, layer_scales(len(names), decay, min_scale), strict=True):
            scales |= {prefix + name: scale for name in group}
    return scales
