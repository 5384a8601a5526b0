"""ViTAE against its equations, its published names and counts."""

import pytest
import torch
from models import cells
from models.cells import attention, batch_norm, conv, linear, mlp, norm, tokens
from models.zoo import images, nano
from torch.nn import functional as F

from vtkernels.models import create_model


def numel(module):
    return sum(parameter.numel() for parameter in module.parameters())


def reduction_cell(p, name, x, layer):
    pyramid = cells.pyramid(p, f"{name}.PRM", x, layer)
    if layer == 2:
        return pyramid
    y = F.silu(conv(p, f"{name}.PCM.0", x, 2, 1))
    y = F.silu(batch_norm(p, f"{name}.PCM.3", conv(p, f"{name}.PCM.2", y, 2 if layer == 0 else 1, 1)))
    y = F.silu(conv(p, f"{name}.PCM.5", y, 1, 1))
    y = cells.performer(p, f"{name}.attn", pyramid) + tokens(y)
    return y + mlp(p, f"{name}.attn.mlp", norm(p, f"{name}.attn.norm2", y, 1e-5), "0", "2")


def normal_cell(p, name, x, grid, heads, groups, prefix, deep):
    y = x[:, prefix:].mT.unflatten(2, grid)
    y = F.silu(batch_norm(p, f"{name}.PCM.1", conv(p, f"{name}.PCM.0", y, 1, groups)))
    y = conv(p, f"{name}.PCM.3", y, 1, groups)
    if deep:
        y = F.silu(conv(p, f"{name}.PCM.6", F.silu(batch_norm(p, f"{name}.PCM.4", y)), 1, groups))
    x = x + attention(p, f"{name}.attn", norm(p, f"{name}.norm1", x, 1e-6), heads)
    x = x + F.pad(tokens(y), (0, 0, prefix, 0))
    return x + mlp(p, f"{name}.mlp", norm(p, f"{name}.norm2", x, 1e-6))


@pytest.mark.parametrize("size", [(32, 32), (36, 60)], ids=str)
def test_pyramid(size):
    model, p = cells.randomise(nano("vitae_nano_32"))
    images_in = x = images(2, size).double()
    for layer in range(3):
        grid = tuple(-(-edge // cells.RATIOS[layer]) for edge in x.shape[2:])
        x = reduction_cell(p, f"layers.{layer}.RC", x, layer)
        for cell in range(2 if layer == 2 else 0):
            x = normal_cell(p, f"layers.2.NC.{cell}", x, grid, heads=4, groups=16, prefix=0, deep=True)
        x = x.mT.unflatten(2, grid)
    torch.testing.assert_close(model(images_in), linear(p, "head", x.mean((2, 3))), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(32, 32), (16, 40)], ids=str)
def test_plain(size):
    model, p = cells.randomise(nano("vitae_plain_nano_patch4_32", img_size=size))
    images_in = images(2, size).double()
    name = "layers.0.RC"
    x = tokens(F.conv2d(images_in, p[f"{name}.PRM.proj.weight"], p[f"{name}.PRM.proj.bias"], 4))
    x = torch.cat((p[f"{name}.cls_token"].expand(2, 1, 64), x), 1) + p[f"{name}.pos_embed"]
    for cell in range(2):
        x = normal_cell(p, f"layers.2.NC.{cell}", x, (size[0] // 4, size[1] // 4), heads=2, groups=16, prefix=1, deep=False)
    expected = linear(p, "head", norm(p, "fc_norm", x[:, 1:].mean(1), 1e-6))
    torch.testing.assert_close(model(images_in), expected, rtol=1e-9, atol=1e-9)


def test_counts_of_the_pieces():
    with torch.device("meta"):
        tiny, small, plain = (create_model(name) for name in ("vitae_tiny", "vitae_small", "vitae_base"))
    assert [numel(layer.RC) for layer in tiny.layers] == [178_176, 273_792, 147_712]
    assert [numel(layer.RC) for layer in small.layers] == [239_392, 610_816, 663_936]
    assert numel(tiny.layers[2].NC[0]) == 575_744 and numel(small.layers[2].NC[0]) == 1_580_928
    assert len(tiny.state_dict()) == 264 and len(small.state_dict()) == 460
    frozen = {model: sum(p.numel() for p in model.parameters() if not p.requires_grad) for model in (tiny, small, plain)}
    assert list(frozen.values()) == [4_096, 23_040, 0]
    names = {"layers.1.RC.attn.w", "layers.1.RC.attn.kqv.bias", "layers.0.RC.PCM.3.running_var", "layers.2.RC.PRM.convs.1.0.weight"}
    assert names | {"layers.2.NC.0.PCM.6.weight", "layers.2.NC.0.attn.qkv.bias", "layers.0.RC.attn.mlp.2.bias"} <= set(tiny.state_dict())
    assert {"layers.0.RC.PRM.proj.weight", "layers.2.NC.11.PCM.3.bias", "fc_norm.weight"} <= set(plain.state_dict())


def test_native_small_images():
    for name, trainable in (("vitae_tiny", 4_628_362), ("vitae_small", 23_627_946)):
        with torch.device("meta"):
            model = create_model(name, num_classes=10, img_size=32)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable
    model = nano("vitae_nano_32").eval()
    assert [tuple(found.shape[2:]) for found in model.forward_maps(images())] == [(8, 8), (4, 4), (2, 2)]


def test_positions_follow_the_image(tmp_path):
    torch.save(nano("vitae_plain_nano_patch4_32").state_dict(), tmp_path / "weights.pth")
    model = nano("vitae_plain_nano_patch4_32", img_size=(32, 64), checkpoint=tmp_path / "weights.pth")
    assert model.load_report.resized == ["layers.0.RC.pos_embed"] and model.load_report.complete


def test_attention_layers():
    names = list(nano("vitae_nano_32").eval().attention_maps(images()))
    assert names == ["layers.0.RC.attn", "layers.1.RC.attn", "layers.2.NC.0.attn", "layers.2.NC.1.attn"]


@pytest.mark.parametrize("name", ["vitae_tiny", "vitae_base"])
def test_initial_values(name):
    torch.manual_seed(0)
    model = create_model(name, depth=1)
    for module_name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.03), module_name
            assert module.bias is None or (module.bias == 0).all(), module_name
        elif isinstance(module, torch.nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            assert module.weight.abs().max() <= bound and module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03), module_name
    if name == "vitae_tiny":
        w = model.layers[0].RC.attn.w
        torch.testing.assert_close(w @ w.T, 32 * torch.eye(32), rtol=1e-4, atol=1e-3)
    else:
        assert not model.layers[0].RC.pos_embed.any() and not model.layers[0].RC.cls_token.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 24}, "groups must divide all of 64, 128, got 24"),
        ({"token_widths": (16, 16, 48)}, "token_widths must end with 64, all channels of the last pyramid, got 48"),
        ({"heads": 3}, "dim must be a multiple of num_heads=3, got 64"),
    ],
)
def test_impossible_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("vitae_nano_32", **options)


def test_sizes_the_branches_disagree_on():
    with pytest.raises(ValueError, match=r"rows and columns that are multiples of 4, got \(33, 32\); pad or resize them"):
        nano("vitae_nano_32")(images(2, (33, 32)))
