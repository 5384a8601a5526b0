"""Compact Transformers against their equations written out, under the official names."""

import pytest
import torch
from models.zoo import images, nano
from torch.nn import functional as F

from vtkernels.models import create_model, load_checkpoint

SIZES = {"width": 64, "depth": 2, "heads": 2, "num_classes": 10}


def official_weights(tokens, convs, class_token, pool, width=64, hidden=64, depth=2):
    """Random ones; `convs` lists the shapes of the tokenizer's convolutions."""
    shapes = {f"tokenizer.conv_layers.{index}.0.weight": shape for index, shape in enumerate(convs)}
    if not pool:
        shapes["tokenizer.conv_layers.0.0.bias"] = (width,)
    shapes["classifier.positional_emb"] = (1, tokens + class_token, width)
    shapes |= (
        {"classifier.class_emb": (1, 1, width)} if class_token else {"classifier.attention_pool.weight": (1, width), "classifier.attention_pool.bias": (1,)}
    )
    for index in range(depth):
        root = f"classifier.blocks.{index}"
        shapes |= {f"{root}.{norm}.{kind}": (width,) for norm in ("pre_norm", "norm1") for kind in ("weight", "bias")}
        shapes |= {f"{root}.self_attn.qkv.weight": (3 * width, width), f"{root}.self_attn.proj.weight": (width, width), f"{root}.self_attn.proj.bias": (width,)}
        shapes |= {f"{root}.linear1.weight": (hidden, width), f"{root}.linear1.bias": (hidden,)}
        shapes |= {f"{root}.linear2.weight": (width, hidden), f"{root}.linear2.bias": (width,)}
    shapes |= {"classifier.norm.weight": (width,), "classifier.norm.bias": (width,), "classifier.fc.weight": (10, width), "classifier.fc.bias": (10,)}
    torch.manual_seed(0)
    return {name: 0.2 * torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def official_logits(w, x, stride, padding, pool, depth=2, heads=2):
    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    for index in range(sum(name.startswith("tokenizer") and name.endswith("weight") for name in w)):
        name = f"tokenizer.conv_layers.{index}.0"
        x = F.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), stride, padding)
        x = F.max_pool2d(F.relu(x), 3, 2, 1) if pool else x
    x = x.flatten(2).mT
    if "classifier.class_emb" in w:
        x = torch.cat((w["classifier.class_emb"].expand(len(x), 1, -1), x), 1)
    x = x + w["classifier.positional_emb"]
    for index in range(depth):
        root = f"classifier.blocks.{index}"
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in linear(norm(x, f"{root}.pre_norm"), f"{root}.self_attn.qkv").chunk(3, -1))
        mixed = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = norm(x + linear(mixed.transpose(1, 2).flatten(2), f"{root}.self_attn.proj"), f"{root}.norm1")
        x = x + linear(F.gelu(linear(x, f"{root}.linear1")), f"{root}.linear2")
    x = norm(x, "classifier.norm")
    if "classifier.class_emb" in w:
        return linear(x[:, 0], "classifier.fc")
    importance = linear(x, "classifier.attention_pool").softmax(1)
    return linear((importance * x).sum(1), "classifier.fc")


@pytest.mark.parametrize(
    ("name", "size", "tokens", "convs", "conv"),
    [
        ("vit_lite_7_4_32", 32, 64, [(64, 3, 4, 4)], (4, 0)),
        ("cvt_7_4_32", 32, 64, [(64, 3, 4, 4)], (4, 0)),
        ("cct_7_3x1_32", 32, 256, [(64, 3, 3, 3)], (1, 1)),
        ("cct_7_7x2_224", (32, 64), 8, [(64, 3, 7, 7), (64, 64, 7, 7)], (2, 3)),
        ("cct_7_3x2_32", (30, 21), 48, [(64, 3, 3, 3), (64, 64, 3, 3)], (1, 1)),
    ],
)
def test_official_weights(name, size, tokens, convs, conv, tmp_path):
    class_token, pool = name.startswith("vit"), name.startswith("cct")
    weights = official_weights(tokens, convs, class_token, pool)
    torch.save(weights, tmp_path / "official.pth")
    model = create_model(name, img_size=size, mlp_ratio=1.0, **SIZES).double().eval()
    assert load_checkpoint(model, tmp_path / "official.pth").complete
    x = images(2, size, dtype=torch.float64)
    torch.testing.assert_close(model(x), official_logits(weights, x, *conv, pool), rtol=1e-9, atol=1e-9)
    assert model.num_patches == tokens and model.maps_info[0].reduction == {"cct_7_7x2_224": 16, "cct_7_3x1_32": 2}.get(name, 4)


def test_a_hundred_classes():
    with torch.device("meta"):
        model = create_model("cct_7_3x1_32", num_classes=100)
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_783_269


def test_class_token_of_vit_lite():
    model = create_model("vit_lite_7_4_32", **SIZES).eval()
    assert model.get_attention(images()).shape == (2, 2, 8, 8)


def test_sine_positions_are_fixed_and_made_for_the_image(tmp_path):
    model = nano("cct_nano_3x2_32", positions="sine")
    assert not model.pos_embed.requires_grad
    assert torch.equal(model.pos_embed[0, 0, :4], torch.tensor([0.0, 1.0, 0.0, 1.0]))
    torch.save(model.state_dict(), tmp_path / "sine.pth")
    other = create_model("cct_nano_3x2_32", num_classes=10, positions="sine", img_size=(32, 64), checkpoint=tmp_path / "sine.pth")
    assert other.load_report.complete
    torch.testing.assert_close(other.pos_embed[:, :64], model.pos_embed)


def test_initial_values():
    torch.manual_seed(0)
    model = create_model("cct_7_3x2_32", depth=2)
    assert model.pos_embed.std().item() == pytest.approx(0.2, rel=0.02)
    # He's normal: 2 / fan-in
    assert model.patch_embed.convs[1].weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.02) and (model.head.bias == 0).all()
    assert (create_model("vit_lite_6_4_32", depth=1).cls_token == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "mean"}, "pooling must be one of sequence, token, got 'mean'"),
        ({"positions": "none"}, "positions must be one of learned, sine, got 'none'"),
        ({"kernel_size": 4}, "kernel_size must be odd, got 4"),
        ({"conv_layers": 0, "img_size": 30}, r"img_size must be multiples of patch_size=4, got \(30, 30\)"),
    ],
)
def test_impossible_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        nano("cct_nano_3x2_32", **options)
