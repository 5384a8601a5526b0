"""ViTAEv2 against its equations, its published names and counts."""

import pytest
import torch
from models import cells
from models.cells import attention, batch_norm, conv, linear, mlp, norm, tokens
from models.zoo import images, nano
from torch.nn import functional as F

from vtkernels.models import create_model, load_checkpoint

# of the smallest variant
DEPTHS, HEADS, REDUCTION_HEADS, GROUPS = (1, 1, 2, 1), (1, 2, 2, 4), (1, 1, 2, 4), (1, 4, 8, 16)


def numel(module):
    return sum(parameter.numel() for parameter in module.parameters())


def branch(p, name, x, groups, strides=(1, 1, 1)):
    x = F.silu(batch_norm(p, f"{name}.1", conv(p, f"{name}.0", x, strides[0], groups)))
    x = F.silu(batch_norm(p, f"{name}.4", conv(p, f"{name}.3", x, strides[1], groups)))
    return conv(p, f"{name}.6", x, strides[2], groups)


def window_attention(p, name, x, grid, heads):
    """Zeros around the normalised map, half of them before it, and no mask."""
    rows, columns = grid
    top, left = (-rows % 7) // 2, (-columns % 7) // 2
    padded = x.new_zeros(x.shape[0], rows + -rows % 7, columns + -columns % 7, x.shape[2])
    padded[:, top : top + rows, left : left + columns] = x.unflatten(1, grid)
    mixed = torch.zeros(*padded.shape[:3], p[f"{name}.proj.weight"].shape[0], dtype=x.dtype)
    for i in range(0, padded.shape[1], 7):
        for j in range(0, padded.shape[2], 7):
            window = attention(p, name, padded[:, i : i + 7, j : j + 7].flatten(1, 2), heads)
            mixed[:, i : i + 7, j : j + 7] = window.unflatten(1, (7, 7))
    return mixed[:, top : top + rows, left : left + columns].flatten(1, 2)


def reduction_cell(p, name, x, layer, grid):
    heads = REDUCTION_HEADS[layer]
    pyramid = norm(p, f"{name}.attn.norm1", cells.pyramid(p, f"{name}.PRM", x, layer), 1e-5)
    inner = f"{name}.attn.attn"
    y = window_attention(p, inner, pyramid, grid, heads) if layer < 2 else attention(p, inner, pyramid, heads, shortcut=True)
    y = y + tokens(branch(p, f"{name}.PCM", x, GROUPS[layer], (2, cells.RATIOS[layer] // 2, 1)))
    return y + mlp(p, f"{name}.attn.mlp", norm(p, f"{name}.attn.norm2", y, 1e-5))


def normal_cell(p, name, x, layer, grid):
    y = tokens(branch(p, f"{name}.PCM", x.mT.unflatten(2, grid), GROUPS[layer]))
    normed = norm(p, f"{name}.norm1", x, 1e-6)
    x = x + (window_attention(p, f"{name}.attn", normed, grid, HEADS[layer]) if layer < 2 else attention(p, f"{name}.attn", normed, HEADS[layer]))
    x = x + y
    return x + mlp(p, f"{name}.mlp", norm(p, f"{name}.norm2", x, 1e-6))


@pytest.mark.parametrize("size", [(32, 32), (60, 68)], ids=str)
def test_whole_model(size):
    model, p = cells.randomise(nano("vitaev2_nano_32"))
    images_in = x = images(2, size).double()
    for layer in range(4):
        grid = tuple(-(-edge // cells.RATIOS[layer]) for edge in x.shape[2:])
        x = reduction_cell(p, f"layers.{layer}.RC", x, layer, grid)
        for cell in range(DEPTHS[layer]):
            x = normal_cell(p, f"layers.{layer}.NC.{cell}", x, layer, grid)
        x = x.mT.unflatten(2, grid)
    torch.testing.assert_close(model(images_in), linear(p, "head", x.mean((2, 3))), rtol=1e-9, atol=1e-9)


def test_window_weights_are_those_of_forward():
    model, p = cells.randomise(nano("vitaev2_nano_32"))
    attn = model.layers[1].NC[0].attn
    x = torch.randn(2, 8 * 15, 16, dtype=torch.float64)
    weights = attn.attention_weights(x, (8, 15))
    assert weights.shape == (2 * 2 * 3, 2, 49, 49)
    v = attn.padded_qkv(x, (8, 15))[0].chunk(3, -1)[2]
    v = v.unflatten(2, (3, 7)).unflatten(1, (2, 7)).transpose(2, 3).flatten(3, 4).flatten(0, 2).unflatten(-1, (2, 8)).transpose(1, 2)
    mixed = (weights @ v).transpose(1, 2).flatten(2).view(2, 2, 3, 7, 7, 16).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    torch.testing.assert_close(attn.proj(mixed[:, 3:11, 3:18].flatten(1, 2)), attn(x, (8, 15)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("vitaev2_small", [(176_256, 382_784), (244_800, 241_792), (709_632, 876_800), (2_795_520, 3_326_464)]),
        ("vitaev2_48m", [(234_912, 859_872), (402_432, 541_248), (1_594_368, 1_967_232), (6_285_312, 7_473_408)]),
        ("vitaev2_base", [(452_064, 1_527_424), (779_232, 959_744), (2_832_384, 3_492_352), (11_169_792, 13_276_160)]),
    ],
)
def test_counts_of_the_pieces(name, pieces):
    with torch.device("meta"):
        model = create_model(name)
    assert [(numel(layer.RC), numel(layer.NC[0])) for layer in model.layers] == pieces


def test_official_names(tmp_path):
    model = nano("vitaev2_nano_32")
    state = model.state_dict()
    index = torch.zeros(49, 49, dtype=torch.long)
    windowed = [f"layers.{layer}.{cell}" for layer in (0, 1) for cell in ("RC.attn.attn", "NC.0.attn")]
    official = state | {f"{name}.relative_position_index": index for name in windowed}
    torch.save({"state_dict_ema": {f"module.{name}": value for name, value in official.items()}}, tmp_path / "official.pth")
    assert load_checkpoint(nano("vitaev2_nano_32"), tmp_path / "official.pth").complete
    assert {"layers.0.RC.attn.attn.qkv.bias", "layers.1.RC.attn.mlp.fc1.weight", "layers.2.RC.attn.attn.qkv.weight", "layers.3.RC.PCM.6.bias"} < set(state)
    assert "layers.2.RC.attn.attn.qkv.bias" not in state
    with torch.device("meta"):
        small = create_model("vitaev2_small")
    # the official files hold an index in each of six window attentions besides
    assert len(small.state_dict()) + 6 == 532


def test_stochastic_depth_grows_over_all_cells():
    model = nano("vitaev2_nano_32", drop_path=0.4)
    rates = [cell.drop_path.rate for layer in model.layers for cell in layer.NC]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (1, 1)}, r"be of one length, 4 at most, got \[4, 4, 2, 4, 4, 4, 4\]"),
        ({"heads": (1, 3, 2, 4)}, "heads must divide token_widths, got 3 heads for 16 channels"),
        ({"groups": (1, 5, 8, 16)}, "groups must divide all of 16, 32, got 5"),
        ({"reduction_groups": (2, 4, 8, 16)}, "groups must divide all of 3, 8, 16, got 2"),
    ],
)
def test_impossible_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("vitaev2_nano_32", **options)
