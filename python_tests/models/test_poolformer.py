"""PoolFormer against timm, whose head is another, and the MetaFormers against their equations."""

import math

import pytest
import torch
from models.zoo import assert_same_function, images, nano
from optional import peer
from torch.nn import functional as F

from vtkernels.models import create_model


def official_names(state, positions=()):
    """timm's names turned into the official ones; stages in `positions` have a position map before their blocks."""
    rows = {}
    for stage in range(4):
        if stage:
            rows[f"stages.{stage}.downsample.conv"] = f"network.{len(rows)}.proj"
        if stage in positions:
            rows[f"stages.{stage}.pos_embed"] = f"network.{len(rows)}.pos_embed"
        rows[f"stages.{stage}.blocks"] = f"network.{len(rows)}"
    rows |= {"stem.conv": "patch_embed.proj", "head.norm": "norm", "head.fc": "head"}
    rows |= {f"layer_scale{index}.scale": f"layer_scale_{index}" for index in (1, 2)}
    renamed = {}
    for name, value in state.items():
        for ours, official in rows.items():
            name = name.replace(ours, official)
        renamed[name] = value
    return renamed


def timm_poolformer():
    model = peer("timm").create_model("poolformer_s12")
    for name, parameter in model.named_parameters():
        if "scale" in name or parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.0)
    return model


def authors_head(theirs, x):
    features = theirs.forward_features(x)
    norm, fc = theirs.head.norm, theirs.head.fc
    return fc(F.group_norm(features, 1, norm.weight, norm.bias, 1e-5).mean((2, 3)))


@pytest.mark.parametrize("official", [False, True], ids=["timm", "official"])
def test_timm(official, tmp_path):
    theirs = timm_poolformer().eval()
    state = official_names(theirs.state_dict()) if official else theirs.state_dict()
    if official:
        assert {"patch_embed.proj.weight", "network.5.proj.bias", "network.4.5.layer_scale_2", "network.6.1.mlp.fc2.weight", "norm.weight"} < set(state)
    torch.save(state, tmp_path / "weights.pth")
    x = images(1, (96, 64))
    ours = create_model("poolformer_s12", checkpoint=tmp_path / "weights.pth", pool_first=True)
    assert ours.load_report.complete and set(ours.state_dict()) == set(theirs.state_dict())
    assert_same_function(ours, theirs, x)
    ours = create_model("poolformer_s12", checkpoint=tmp_path / "weights.pth").double().eval()
    torch.testing.assert_close(ours(x.double()), authors_head(theirs, x.double()), rtol=1e-9, atol=1e-9)


def literal_logits(p, x, mixers, depths):
    """The ablations, from the equations: channel norms, and mixers as sums over pixels."""

    def norm(x, name):
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]

    def pool(x, name):
        total, count = F.pad(x, (1, 1, 1, 1)), F.pad(torch.ones_like(x), (1, 1, 1, 1))
        sums = [sum(t[..., i : i + x.shape[2], j : j + x.shape[3]] for i in range(3) for j in range(3)) for t in (total, count)]
        return sums[0] / sums[1] - x

    def attention(x, name):
        q, k, v = torch.einsum("bcn,oc->bon", x.flatten(2), p[f"{name}.qkv.weight"]).unflatten(1, (3, -1, 32)).unbind(1)
        weights = (torch.einsum("bhdn,bhdm->bhnm", q, k) / math.sqrt(32)).softmax(-1)
        out = torch.einsum("bhnm,bhdm->bhdn", weights, v).flatten(1, 2)
        return (torch.einsum("bcn,oc->bon", out, p[f"{name}.proj.weight"]) + p[f"{name}.proj.bias"][:, None]).view_as(x)

    def spatial_fc(x, name):
        return torch.einsum("bcn,mn->bcm", x.flatten(2), p[f"{name}.fc.weight"]).view_as(x)

    functions = {"identity": lambda x, name: x, "pool": pool, "attention": attention, "spatial_fc": spatial_fc}

    x = F.conv2d(x, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], stride=2, padding=3)
    row = 0
    for stage, (mixer, depth) in enumerate(zip(mixers, depths, strict=True)):
        if stage:
            x = F.conv2d(x, p[f"network.{row}.proj.weight"], p[f"network.{row}.proj.bias"], stride=2, padding=1)
            row += 1
        if mixer == "attention":
            x = x + p[f"network.{row}.pos_embed"]
            row += 1
        for name in (f"network.{row}.{block}" for block in range(depth)):
            mixed = functions[mixer](norm(x, f"{name}.norm1"), f"{name}.token_mixer")
            x = x + p[f"{name}.layer_scale_1"][:, None, None] * mixed
            hidden = F.gelu(F.conv2d(norm(x, f"{name}.norm2"), p[f"{name}.mlp.fc1.weight"], p[f"{name}.mlp.fc1.bias"]))
            x = x + p[f"{name}.layer_scale_2"][:, None, None] * F.conv2d(hidden, p[f"{name}.mlp.fc2.weight"], p[f"{name}.mlp.fc2.bias"])
        row += 1
    return norm(x, "norm").mean((2, 3)) @ p["head.weight"].T + p["head.bias"]


@pytest.mark.parametrize("size", [(32, 32), (33, 46)], ids=str)
def test_every_mixer(size, tmp_path):
    model = nano("metaformer_nano_32", img_size=size).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = official_names(model.state_dict(), positions=(2,))
    torch.save(state, tmp_path / "official.pth")
    x = images(2, size).double()
    expected = literal_logits(state, x, ("identity", "pool", "attention", "spatial_fc"), (1, 1, 2, 1))
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)
    again = nano("metaformer_nano_32", img_size=size, checkpoint=tmp_path / "official.pth").double().eval()
    assert again.load_report.complete
    torch.testing.assert_close(again(x), expected, rtol=1e-5, atol=1e-5)
    weights = model.attention_maps(x)
    rows, columns = model.stage_grid(2, size)
    assert [value.shape for value in weights.values()] == [(2, 1, rows * columns, rows * columns)] * 2
    assert all(torch.allclose(value.sum(-1), torch.ones((), dtype=torch.float64)) for value in weights.values())


def test_positions_follow_the_image(tmp_path):
    torch.save(nano("metaformer_nano_32", mixers=("pool", "pool", "attention", "attention")).state_dict(), tmp_path / "weights.pth")
    model = nano("metaformer_nano_32", mixers=("pool", "pool", "attention", "attention"), img_size=(32, 64), checkpoint=tmp_path / "weights.pth")
    assert model.load_report.resized == ["stages.2.pos_embed"] and model.load_report.complete
    assert model.no_weight_decay() == {"stages.2.pos_embed"}


def test_initial_values():
    torch.manual_seed(0)
    model = create_model("metaformer_pppa_s12_224", depths=(1, 1, 1, 1))
    for name, parameter in model.named_parameters():
        if "scale" in name:
            assert (parameter == 1e-5).all(), name
        elif ".conv." in name:
            fan_in = model.get_submodule(name.rpartition(".")[0]).weight[0].numel()
            assert parameter.abs().max() <= fan_in**-0.5, name
            assert parameter.dim() == 1 or parameter.std().item() == pytest.approx((1 / fan_in / 3) ** 0.5, rel=0.03), name
        elif "norm" in name:
            assert (parameter == name.endswith("weight")).all(), name
        elif name.endswith(("bias", "pos_embed")):
            assert (parameter == 0).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.03), name


def test_pooling_a_single_pixel_gives_zero():
    model = create_model("poolformer_s12", num_classes=10)
    assert (model.stages[3].blocks[0].token_mixer(images(2, 1)) == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixers": ("pool", "max", "pool", "pool")}, "mixers must be of pool, identity, attention, spatial_fc, got max"),
        ({"norm": "batch"}, "norm must be one of group, channel, got 'batch'"),
        ({"stem_stride": 3}, "stem_stride must be 1, 2 or 4, got 3"),
        ({"depths": (1, 1)}, "depths, widths and mixers must be of one length"),
        ({"mixers": ("attention",) * 4}, "widths must be multiples of head_dim=32 in stages of attention, got 8"),
    ],
)
def test_impossible_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("poolformer_nano_32", **options)
