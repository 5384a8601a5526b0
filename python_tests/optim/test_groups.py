"""Which parameters are decayed, and how fast each layer learns."""

import pytest
import torch
from optional import peer
from torch import nn

import vtkernels as vt
from vtkernels.optim import (
    create_optimizer,
    decoupled_weight_decay,
    head_parameters,
    layer_scales,
    normalized_weight_decay,
    param_groups,
    swin_simmim_layers,
    trunk_and_head,
)

SWIN = {"depths": (2, 2), "width": 16, "heads": (2, 4), "num_classes": 5}


def swin():
    return vt.create_model("swin_nano_patch4_window4_32", **SWIN)


def named_groups(module, **options):
    """name -> group"""
    names = {id(param): name for name, param in module.named_parameters()}
    return {names[id(param)]: group for group in param_groups(module, **options) for param in group["params"]}


class Task(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.extra = model, nn.Linear(3, 2)


def test_matrices_are_decayed():
    groups = named_groups(swin(), weight_decay=0.05)
    for name, group in groups.items():
        table = name.endswith("relative_position_bias_table")
        assert (group["weight_decay"] == 0.05) == (name.endswith("weight") and "norm" not in name and not table), name
    assert any(name.endswith("relative_position_bias_table") for name in groups)
    assert len({id(group) for group in groups.values()}) == 2


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "cait_xxs24_224"])
def test_decayed_counts_are_timms(name):
    """timm's own rule on timm's model spares as many parameters."""
    peer("timm")
    from timm.optim import param_groups_weight_decay

    theirs = peer("timm").create_model(name, img_size=32 if "deit" in name else 224)
    ours = vt.create_model(name, img_size=32 if "deit" in name else 224)
    expected = param_groups_weight_decay(theirs, weight_decay=0.1, no_weight_decay_list=theirs.no_weight_decay())
    found = param_groups(ours, weight_decay=0.1)
    assert sorted((g["weight_decay"], len(g["params"])) for g in found) == sorted((g["weight_decay"], len(g["params"])) for g in expected)
    # and a foreign model is asked the same questions
    asked = param_groups(theirs, weight_decay=0.1)
    assert sorted((g["weight_decay"], len(g["params"])) for g in asked) == sorted((g["weight_decay"], len(g["params"])) for g in expected)


def test_kernels_and_all():
    model = vt.create_model("deit_tiny_patch16_224", img_size=32)
    everything = param_groups(model, weight_decay=0.1, decayed="all")
    assert [group["weight_decay"] for group in everything] == [0.1]
    assert len(everything[0]["params"]) == len(list(model.parameters()))
    model.table = nn.Parameter(torch.ones(2, 2))
    assert named_groups(model, weight_decay=0.1)["table"]["weight_decay"] == 0.1
    assert named_groups(model, weight_decay=0.1, decayed="kernels")["table"]["weight_decay"] == 0.0
    assert named_groups(model, weight_decay=0.1, no_decay=["table"])["table"]["weight_decay"] == 0.0
    assert named_groups(Task(model), weight_decay=0.1, no_decay=["table"])["model.table"]["weight_decay"] == 0.0


@pytest.mark.parametrize("wrap", [lambda task: task, torch.compile, lambda task: nn.Sequential(task)], ids=["plain", "compiled", "inside"])
def test_models_inside_are_found(wrap):
    task = wrap(Task(swin()))
    groups = named_groups(task, weight_decay=0.05, layer_decay=0.5)
    assert len(groups) == len(list(task.parameters()))
    for name, group in groups.items():
        if name.endswith("relative_position_bias_table"):
            assert group["weight_decay"] == 0.0
        if "patch_embed" in name:
            assert group["lr_scale"] == 0.5**5
        if ".head." in name or "extra" in name:
            assert group["lr_scale"] == 1.0


def test_frozen_and_shared_parameters():
    model = swin()
    model.patch_embed.requires_grad_(False)
    assert not any(name.startswith("patch_embed") for name in named_groups(model, weight_decay=0.1))
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="have parameters that require a gradient, got none; is everything frozen"):
        param_groups(model, weight_decay=0.1)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    groups = param_groups(tied, weight_decay=0.1)
    assert sorted(len(group["params"]) for group in groups) == [1, 2]


def test_layer_scales():
    assert layer_scales(4, 0.5) == [0.125, 0.25, 0.5, 1.0]
    assert layer_scales(4, 0.5, 0.3) == [0.3, 0.3, 0.5, 1.0]
    for scales in (layer_scales(14, 0.75), layer_scales(14, 0.75, 0.01)):
        assert scales[0] == pytest.approx(0.75**13)


def test_layer_decay():
    groups = named_groups(vt.create_model("deit_tiny_patch16_224", img_size=32), weight_decay=0.05, lr=0.1, layer_decay=0.75)
    # embeddings, 12 blocks, head
    assert groups["pos_embed"]["lr_scale"] == groups["patch_embed.proj.weight"]["lr_scale"] == pytest.approx(0.75**13)
    assert groups["blocks.0.mlp.fc1.weight"]["lr_scale"] == pytest.approx(0.75**12)
    assert groups["blocks.11.mlp.fc1.weight"]["lr_scale"] == 0.75
    assert groups["head.weight"]["lr_scale"] == 1.0
    for group in groups.values():
        assert group["lr"] == 0.1 * group["lr_scale"]


def test_swin_after_simmim():
    """Block i of stage s has number (depths before) + i + 1, a merging that of the last block before it."""
    model = swin()
    layers = swin_simmim_layers(model)
    assert len(layers) == 2 + 2 + 2
    assert sorted(name for layer in layers for name in layer) == sorted(name for name, _ in model.named_parameters())
    number = {name: index for index, layer in enumerate(layers) for name in layer}
    assert number["patch_embed.proj.weight"] == 0
    assert number["layers.0.blocks.1.mlp.fc1.weight"] == number["layers.1.downsample.reduction.weight"] == number["layers.1.downsample.norm.weight"] == 2
    assert number["layers.1.blocks.0.mlp.fc1.weight"] == 3
    assert number["norm.weight"] == number["head.fc.weight"] == 5
    groups = named_groups(Task(model), weight_decay=0.05, layer_decay=0.8, layers=swin_simmim_layers)
    assert groups["model.layers.1.downsample.reduction.weight"]["lr_scale"] == pytest.approx(0.8**3)
    default = named_groups(Task(model), weight_decay=0.05, layer_decay=0.8)
    assert default["model.layers.1.downsample.reduction.weight"]["lr_scale"] == pytest.approx(0.8**2)


def test_the_trunk_may_learn_more_slowly_than_its_head():
    model = swin()
    assert trunk_and_head(model)[1] == ["head.fc.weight", "head.fc.bias"]
    groups = named_groups(Task(model), weight_decay=0.05, lr=0.05, layer_decay=0.01, layers=trunk_and_head)
    # a loss of its own learns as fast as the head
    rates = {name: group["lr"] for name, group in groups.items() if name.startswith("model.")}
    assert rates.pop("model.head.fc.weight") == rates.pop("model.head.fc.bias") == 0.05
    assert set(rates.values()) == {0.01 * 0.05}


def test_an_optimizer_takes_them():
    model = swin()
    optimizer = create_optimizer("adamw", param_groups(model, weight_decay=0.05, layer_decay=0.5), lr=1.0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5**power for power in range(6)}
    assert {group["lr"] for group in optimizer.param_groups} == {group["lr_scale"] for group in optimizer.param_groups}


def test_head_parameters():
    task = Task(swin())
    assert head_parameters(task) == {id(param) for param in task.model.head.parameters()}
    assert head_parameters(nn.Linear(2, 2)) == set()


def test_weight_decay_of_other_conventions():
    # big_vision: 0.001 beside a rate of 0.003
    assert decoupled_weight_decay(1e-3, 3e-3) == pytest.approx(1 / 3)
    assert normalized_weight_decay(0.05, batch_size=128, samples=50_000, epochs=100) == pytest.approx(0.05 * (128 / 5e6) ** 0.5)
    with pytest.raises(ValueError, match="lr must be positive, got 0"):
        decoupled_weight_decay(1e-3, 0)
    with pytest.raises(ValueError, match="be positive, got .128, 0, 100."):
        normalized_weight_decay(0.05, batch_size=128, samples=0, epochs=100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decayed": "some"}, "decayed must be .*, got 'some'"),
        ({"layer_decay": 1.5}, "layer_decay must be above 0 and at most 1, got 1.5"),
        ({"weight_decay": float("nan")}, "weight_decay must be at least 0"),
        ({"layer_decay": 0.5}, r"module must have layer_groups\(\), got Linear; give layers="),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(ValueError, match=message):
        param_groups(nn.Linear(2, 2), **{"weight_decay": 0.1, **options})
