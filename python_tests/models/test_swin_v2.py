"""SwinV2 against timm and torchvision, and its initial values."""

import pytest
import torch
from models.zoo import assert_same_function, images
from optional import peer
from oracles import random_parameters

from vtkernels.models import create_model, load_checkpoint
from vtkernels.models.swin_v2 import SwinTransformerV2


def timm_swin(**options):
    timm = peer("timm")
    options = {"embed_dim": 24, "depths": (2, 2), "num_heads": (3, 6), "window_size": 4, "num_classes": 10, **options}
    return random_parameters(timm.models.swin_transformer_v2.SwinTransformerV2(**options))


def loaded(theirs, path, **options):
    torch.save(theirs.state_dict(), path / "peer.pth")
    ours = create_model("swinv2_nano_window4_32", num_classes=10, width=24, heads=(3, 6), **options)
    assert load_checkpoint(ours, path / "peer.pth").complete
    return ours


@pytest.mark.parametrize("size", [(32, 64), (52, 36), (44, 68), (8, 24)], ids=str)
def test_timm(size, tmp_path):
    """Divided by the windows and not, and smaller than a window, down to windows of one token."""
    theirs = timm_swin(img_size=size)
    assert_same_function(loaded(theirs, tmp_path, img_size=size), theirs, images(2, size))


def test_timm_with_a_larger_window_than_in_its_pretraining(tmp_path):
    theirs = timm_swin(img_size=64, window_size=8, pretrained_window_sizes=(4, 2))
    ours = loaded(theirs, tmp_path, img_size=64, window=8, pretrained_windows=(4, 2))
    assert_same_function(ours, theirs, images(1, 64))


def test_timm_swinv2_tiny(tmp_path):
    theirs = peer("timm").create_model("swinv2_tiny_window16_256", num_classes=10, depths=(2, 1, 1, 1))
    for module in theirs.modules():
        # at the start every block is the identity
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.ones_(module.weight)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = create_model("swinv2_tiny_window16_256", num_classes=10, depths=(2, 1, 1, 1), checkpoint=tmp_path / "timm.pth")
    assert ours.load_report.complete
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(images(1, 256)), theirs(images(1, 256)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (44, 68)], ids=str)
def test_torchvision(size, tmp_path):
    swin = peer("torchvision").models.swin_transformer
    theirs = swin.SwinTransformer(
        [4, 4], 24, [2, 2], [3, 6], [4, 4], stochastic_depth_prob=0.0, num_classes=10,
        block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2,
    )  # fmt: skip
    ours = loaded(random_parameters(theirs), tmp_path, img_size=size, shift_first=False)
    assert_same_function(ours, theirs, images(2, size))


def test_official_names():
    ours = create_model("swinv2_nano_window4_32")
    state = {name.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc", "head"): value for name, value in ours.state_dict().items()}
    for buffer in ("relative_coords_table", "relative_position_index"):
        state[f"layers.0.blocks.0.attn.{buffer}"] = torch.zeros(1)
    assert SwinTransformerV2.convert_state(state).keys() == ours.state_dict().keys()


def test_attention_maps_are_those_of_timm(tmp_path):
    theirs = timm_swin(img_size=(32, 52)).double().eval()
    ours = loaded(theirs, tmp_path, img_size=(32, 52)).double().eval()
    expected = []
    for name, module in theirs.named_modules():
        if name.endswith("attn"):
            module.softmax.register_forward_hook(lambda _, __, weights: expected.append(weights))
    x = images(2, (32, 52), dtype=torch.float64)
    theirs(x)
    for found, weights in zip(ours.attention_maps(x).values(), expected, strict=True):
        torch.testing.assert_close(found, weights, rtol=1e-9, atol=1e-12)


def test_initial_values():
    torch.manual_seed(0)
    model = create_model("swinv2_tiny_window8_256", depths=(1, 1), heads=(3, 6))
    for name, parameter in model.named_parameters():
        if name.endswith("logit_scale"):
            torch.testing.assert_close(parameter, torch.full_like(parameter, 10.0).log())
        elif name.endswith("bias") and "patch_embed.proj" not in name:
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == (0.0 if ".blocks." in name else 1.0)).all(), name
        elif "patch_embed" not in name:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
    assert "layers.0.blocks.0.attn.cpb_mlp.0.weight" in model.no_weight_decay()
    assert "layers.0.blocks.0.attn.logit_scale" in model.no_weight_decay()


def test_impossible_configuration():
    with pytest.raises(ValueError, match=r"pretrained_windows must be empty or give 2 stages, got \(4,\)"):
        create_model("swinv2_nano_window4_32", pretrained_windows=(4,))
