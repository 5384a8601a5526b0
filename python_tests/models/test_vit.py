"""ViT and DeiT against timm and torchvision, and their initial values."""

import pytest
import torch
from models.zoo import assert_same_function, images
from optional import peer

from vtkernels.models import create_model, load_checkpoint


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"pooling": "mean_then_norm", "class_token": False}),
        ("deit_tiny_distilled_patch16_224", {}),
    ],
    ids=["vit", "mean", "distilled"],
)
def test_timm(name, options, tmp_path):
    timm = peer("timm")
    # timm's names for the same choices
    theirs = timm.create_model(name, **({"global_pool": "avg", "class_token": False} if options else {}))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = create_model(name, checkpoint=tmp_path / "timm.pth", **options)
    assert ours.load_report.complete
    assert_same_function(ours, theirs, images(2, 224))


def test_torchvision(tmp_path):
    torchvision = peer("torchvision")
    theirs = torchvision.models.VisionTransformer(image_size=64, patch_size=16, num_layers=2, num_heads=3, hidden_dim=192, mlp_dim=768)
    torch.nn.init.normal_(theirs.heads.head.weight)
    torch.save(theirs.state_dict(), tmp_path / "torchvision.pth")
    ours = create_model("vit_tiny_patch16_224", img_size=64, depth=2)
    assert load_checkpoint(ours, tmp_path / "torchvision.pth").complete
    assert_same_function(ours, theirs, images(2, 64))


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
    # torch's default for a convolution of fan-in 768: uniform within 1 / sqrt(768)
    weight = model.patch_embed.proj.weight
    assert weight.std().item() == pytest.approx((1 / 768 / 3) ** 0.5, rel=0.02) and weight.abs().max() <= 768**-0.5


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
        ({"class_token": False}, "pooling must average the patches where there is no class token"),
        ({"activation": "tanh"}, "name must be one of gelu, gelu_tanh, quick_gelu, relu, relu6, silu, got 'tanh'"),
        ({"heads": 3}, "dim must be a multiple of num_heads=3, got 64"),
        ({"drop_path": 1.5}, r"rate must be in \[0, 1\), got"),
    ],
)
def test_impossible_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("vit_nano_patch4_32", **options)
