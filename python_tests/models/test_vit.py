"""ViT and DeiT against timm and torchvision, weights of other codes, and initial values."""

import numpy as np
import pytest
import torch
from models.zoo import assert_same_function, images, nano
from optional import peer
from torch.nn import functional as F

from vtkernels.models import create_model, load_checkpoint

SMALL = {"img_size": 64, "depth": 2}


@pytest.mark.parametrize(
    ("name", "choices", "shared"),
    [
        ("vit_tiny_patch16_224", [{}, {}], {}),
        ("vit_tiny_patch16_224", [{"pooling": "mean_then_norm", "class_token": False}, {"global_pool": "avg", "class_token": False}], SMALL),
        ("vit_tiny_patch16_224", [{"pooling": "norm_then_mean"}, {"global_pool": "avg", "fc_norm": False}], SMALL),
        ("deit_base_distilled_patch16_384", [{}, {}], SMALL),
        ("deit3_small_patch16_224", [{}, {"init_values": 1.0}], SMALL),
    ],
    ids=["real", "mean_then_norm", "norm_then_mean", "distilled", "deit3"],
)
def test_timm(name, choices, shared, tmp_path):
    # the same choice has another name in timm
    our_choice, their_choice = choices
    theirs = peer("timm").create_model(name, **their_choice, **shared)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = create_model(name, checkpoint=tmp_path / "timm.pth", **our_choice, **shared)
    assert ours.load_report.complete
    assert_same_function(ours, theirs, images(1, ours.config.size))


def test_constant_drop_path_and_its_names():
    blocks = create_model("deit3_small_patch16_224", drop_path=0.3, **SMALL).blocks
    assert [block.drop_path.rate for block in blocks] == [0.3, 0.3]
    with pytest.raises(ValueError, match="drop_path_rule must be one of linear, constant, got 'rising'"):
        create_model("deit3_small_patch16_224", drop_path_rule="rising", **SMALL)


def test_attention_maps_are_those_of_timm():
    theirs = peer("timm").create_model("deit_tiny_distilled_patch16_224", **SMALL).double().eval()
    ours = create_model("deit_tiny_distilled_patch16_224", **SMALL).double().eval()
    ours.load_state_dict(theirs.state_dict())
    seen = []
    for block in theirs.blocks:
        # the fused kernel does not show its weights
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = images(2, 64, dtype=torch.float64)
    theirs(x)
    found = ours.attention_maps(x)
    assert list(found) == ["blocks.0.attn", "blocks.1.attn"]
    for weights, expected in zip(found.values(), seen, strict=True):
        torch.testing.assert_close(weights, expected, rtol=1e-9, atol=1e-12)
    # the first two tokens are those of class and distillation
    torch.testing.assert_close(ours.get_attention(x, 0), seen[0][:, :, 0, 2:].reshape(2, 3, 4, 4), rtol=1e-9, atol=1e-12)


def test_torchvision(tmp_path):
    torchvision = peer("torchvision")
    theirs = torchvision.models.VisionTransformer(image_size=64, patch_size=16, num_layers=2, num_heads=3, hidden_dim=192, mlp_dim=768)
    torch.nn.init.normal_(theirs.heads.head.weight)
    torch.save(theirs.state_dict(), tmp_path / "torchvision.pth")
    ours = create_model("vit_tiny_patch16_224", img_size=64, depth=2)
    assert load_checkpoint(ours, tmp_path / "torchvision.pth").complete
    assert_same_function(ours, theirs, images(2, 64))


def jax_file(path, width=64, depth=2, heads=2, patch=4, scheme="flax", class_token=True):
    """Random weights under the names and layouts of the JAX codes."""
    random = np.random.default_rng(0)
    tokens = 64 + class_token
    attention, second, mlp = (1, 2, 3) if scheme == "flax" else (0, 1, 0)
    shapes = {"embedding/kernel": (patch, patch, 3, width), "embedding/bias": (width,), "head/kernel": (width, 10), "head/bias": (10,)}
    shapes["Transformer/posembed_input/pos_embedding" if scheme == "flax" else "pos_embedding"] = (1, tokens, width)
    shapes |= {"cls": (1, 1, width)} if class_token else {}
    norms = {"Transformer/encoder_norm": width}
    for block in range(depth):
        root = f"Transformer/encoderblock_{block}"
        norms |= {f"{root}/LayerNorm_0": width, f"{root}/LayerNorm_{second}": width}
        for part in ("query", "key", "value"):
            name = f"{root}/MultiHeadDotProductAttention_{attention}/{part}"
            shapes |= {f"{name}/kernel": (width, heads, width // heads), f"{name}/bias": (heads, width // heads)}
        name = f"{root}/MultiHeadDotProductAttention_{attention}/out"
        shapes |= {f"{name}/kernel": (heads, width // heads, width), f"{name}/bias": (width,)}
        for index, (inputs, outputs) in enumerate(((width, 4 * width), (4 * width, width))):
            shapes |= {f"{root}/MlpBlock_{mlp}/Dense_{index}/kernel": (inputs, outputs), f"{root}/MlpBlock_{mlp}/Dense_{index}/bias": (outputs,)}
    for name, size in norms.items():
        shapes |= {f"{name}/scale": (size,), f"{name}/bias": (size,)}
    arrays = {name: (0.2 * random.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    if scheme == "flax":
        arrays["pre_logits/kernel"] = np.zeros((width, width), np.float32)
    prefix = "opt/target/" if scheme == "flax" else "params/"
    np.savez(path, **{prefix + name: value for name, value in arrays.items()})


@pytest.mark.parametrize(("scheme", "class_token"), [("flax", True), ("big_vision", False)])
def test_jax_files(scheme, class_token, tmp_path):
    transformer = peer("timm.models.vision_transformer")
    jax_file(tmp_path / "jax.npz", scheme=scheme, class_token=class_token)
    shape = {"img_size": 32, "patch_size": 4, "num_classes": 10, "class_token": class_token}
    pooled = {} if class_token else {"global_pool": "avg", "fc_norm": False}
    theirs = transformer.VisionTransformer(embed_dim=64, depth=2, num_heads=2, **shape, **pooled)
    theirs.load_pretrained(str(tmp_path / "jax.npz"))
    ours = nano("vit_nano_patch4_32", class_token=class_token, pooling="token" if class_token else "norm_then_mean")
    assert load_checkpoint(ours, tmp_path / "jax.npz").complete
    assert_same_function(ours, theirs, images(2))


def test_big_vision_gives_the_class_token_no_position(tmp_path):
    jax_file(tmp_path / "jax.npz", scheme="big_vision", class_token=False)
    with np.load(tmp_path / "jax.npz") as arrays:
        np.savez(tmp_path / "class.npz", **arrays, **{"params/cls": np.ones((1, 1, 64), np.float32)})
    ours = nano("vit_nano_patch4_32")
    assert load_checkpoint(ours, tmp_path / "class.npz").complete
    assert (ours.pos_embed[:, 0] == 0).all() and (ours.pos_embed[:, 1:] != 0).all() and (ours.cls_token == 1).all()


def test_lucidrains(tmp_path):
    """The ViT of the dense-relative-localisation code, written out."""
    torch.manual_seed(0)
    width, heads, depth = 64, 2, 2
    shapes = {"to_patch_embedding.1.weight": (width, 48), "to_patch_embedding.1.bias": (width,)}
    shapes |= {"pos_embedding": (1, 65, width), "cls_token": (1, 1, width), "mlp_head.1.weight": (10, width), "mlp_head.1.bias": (10,)}
    norms = ["mlp_head.0", *(f"transformer.layers.{i}.{j}.norm" for i in range(depth) for j in (0, 1))]
    shapes |= {f"{name}.{kind}": (width,) for name in norms for kind in ("weight", "bias")}
    for i in range(depth):
        root = f"transformer.layers.{i}"
        shapes |= {f"{root}.0.fn.to_qkv.weight": (3 * width, width), f"{root}.0.fn.to_out.0.weight": (width, width), f"{root}.0.fn.to_out.0.bias": (width,)}
        shapes |= {f"{root}.1.fn.net.0.weight": (4 * width, width), f"{root}.1.fn.net.0.bias": (4 * width,)}
        shapes |= {f"{root}.1.fn.net.3.weight": (width, 4 * width), f"{root}.1.fn.net.3.bias": (width,)}
    w = {name: 0.2 * torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    torch.save(w, tmp_path / "vit.pth")
    sizes = {"img_size": 32, "patch_size": 4, "width": width, "depth": depth, "heads": heads, "num_classes": 10}
    ours = create_model("vit_drloc_base_patch16_224", **sizes).double().eval()
    assert load_checkpoint(ours, tmp_path / "vit.pth").complete

    def norm(x, name):
        return F.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    x = images(2, dtype=torch.float64)
    # rows and columns of patches; in a patch the channel runs fastest
    tokens = x.reshape(2, 3, 8, 4, 8, 4).permute(0, 2, 4, 3, 5, 1).reshape(2, 64, 48) @ w["to_patch_embedding.1.weight"].T + w["to_patch_embedding.1.bias"]
    h = torch.cat((w["cls_token"].expand(2, 1, width), tokens), 1) + w["pos_embedding"]
    for i in range(depth):
        root = f"transformer.layers.{i}"
        q, k, v = (norm(h, f"{root}.0.norm") @ w[f"{root}.0.fn.to_qkv.weight"].T).split(width, -1)
        mixed = []
        for head in range(heads):
            own = slice(head * 32, (head + 1) * 32)
            mixed.append((q[..., own] @ k[..., own].mT / 32**0.5).softmax(-1) @ v[..., own])
        h = h + F.linear(torch.cat(mixed, -1), w[f"{root}.0.fn.to_out.0.weight"], w[f"{root}.0.fn.to_out.0.bias"])
        hidden = F.gelu(F.linear(norm(h, f"{root}.1.norm"), w[f"{root}.1.fn.net.0.weight"], w[f"{root}.1.fn.net.0.bias"]))
        h = h + F.linear(hidden, w[f"{root}.1.fn.net.3.weight"], w[f"{root}.1.fn.net.3.bias"])
    logits = F.linear(norm(h[:, 0], "mlp_head.0"), w["mlp_head.1.weight"], w["mlp_head.1.bias"])
    torch.testing.assert_close(ours(x), logits, rtol=1e-9, atol=1e-9)


def test_initial_values():
    torch.manual_seed(0)
    model = create_model("vit_small_patch16_224", depth=2)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and "patch_embed" not in name:
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif "patch_embed" not in name and parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.02), name
    assert model.cls_token.std().item() == pytest.approx(1e-6, rel=0.2)
    deit = create_model("deit_small_distilled_patch16_224", depth=2)
    assert deit.cls_token.std().item() == pytest.approx(0.02, rel=0.2) and deit.dist_token.std().item() == pytest.approx(0.02, rel=0.2)
    # torch's default for a convolution of fan-in 768: uniform within 1 / sqrt(768)
    weight = model.patch_embed.proj.weight
    assert weight.std().item() == pytest.approx((1 / 768 / 3) ** 0.5, rel=0.02) and weight.abs().max() <= 768**-0.5


def test_initial_values_as_in_jax():
    torch.manual_seed(0)
    model = create_model("vit_small_patch16_224", depth=2, init="jax", num_classes=0)
    model.reset_classifier(1000)
    fans = {"attn.qkv": 2 * 384, "attn.proj": 2 * 384, "mlp.fc1": 5 * 384, "mlp.fc2": 5 * 384}
    for key, fan in fans.items():
        weight, bias = model.get_parameter(f"blocks.1.{key}.weight"), model.get_parameter(f"blocks.1.{key}.bias")
        bound = (6 / fan) ** 0.5
        assert 0.999 * bound < weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01), key
        if "mlp" in key:
            assert bias.std().item() == pytest.approx(1e-6, rel=0.1)
        else:
            assert (bias == 0).all()
    assert model.patch_embed.proj.weight.std().item() == pytest.approx(768**-0.5, rel=0.01)
    assert (model.patch_embed.proj.bias == 0).all() and (model.cls_token == 0).all()
    assert (model.head.weight == 0).all() and (model.head.bias == 0).all()
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.02)


def test_initial_values_of_torch():
    torch.manual_seed(0)
    model = create_model("vit_drloc_base_patch16_224", depth=1)
    assert model.pos_embed.std().item() == pytest.approx(1, rel=0.01) and model.cls_token.std().item() == pytest.approx(1, rel=0.1)
    for layer in (model.blocks[0].attn.qkv, model.head):
        assert layer.weight.abs().max() <= 768**-0.5 and layer.weight.std().item() == pytest.approx((768 * 3) ** -0.5, rel=0.01)
    assert [module.p for module in (model.pos_drop, model.blocks[0].attn.proj_drop, model.blocks[0].mlp.drop)] == [0.0, 0.1, 0.1]


def test_distilled_logits():
    model = create_model("vit_nano_patch4_32", num_classes=10, distilled=True)
    model.distilled_training = True
    taught, distilled = model(images())
    torch.testing.assert_close(model.eval()(images()), (taught + distilled) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"img_size": 30}, r"img_size must be multiples of patch_size=4, got \(30, 30\)"),
        ({"pooling": "max"}, "pooling must be one of token, norm_then_mean, mean_then_norm, got 'max'"),
        ({"init": "zeros"}, "init must be one of timm, deit, jax, torch, xavier, got 'zeros'"),
        ({"patch_size": 0}, "img_size must be multiples of patch_size=0"),
        ({"distilled": True, "pooling": "norm_then_mean"}, "distilled must come with a class token and pooling='token'"),
        ({"class_token": False}, "pooling must average the patches where there is no class token"),
        ({"activation": "tanh"}, "name must be one of gelu, gelu_tanh, quick_gelu, relu, relu6, silu, got 'tanh'"),
        ({"heads": 3}, "dim must be a multiple of num_heads=3, got 64"),
        ({"heads": 0}, "dim must be a multiple of num_heads=0, got 64"),
        ({"drop_path": 1.5}, r"rate must be in \[0, 1\), got"),
    ],
)
def test_impossible_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("vit_nano_patch4_32", **options)
