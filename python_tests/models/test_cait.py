"""CaiT against timm: logits, attention weights, names; its initial values and rates."""

import pytest
import torch
from models.zoo import assert_same_function, images, nano
from optional import peer

import vtkernels as vt
from vtkernels.models import create_model, load_checkpoint

NANO = "cait_nano_patch4_32"


def timm_nano():
    # values of the size that training gives the scales, so that every branch is seen
    return peer("timm.models.cait").Cait(img_size=32, patch_size=4, num_classes=10, embed_dim=64, depth=2, num_heads=2, init_values=0.5)


def test_timm(tmp_path):
    theirs = timm_nano().eval()
    # as in the official files
    torch.save({"model": {f"module.{name}": value for name, value in theirs.state_dict().items()}}, tmp_path / "cait.pth")
    ours = nano(NANO).eval()
    assert load_checkpoint(ours, tmp_path / "cait.pth").complete
    assert set(ours.state_dict()) == set(theirs.state_dict())
    assert_same_function(ours, theirs, images(2))


def test_attention_maps_are_those_of_timm():
    theirs = timm_nano().double().eval()
    ours = nano(NANO).double().eval()
    ours.load_state_dict(theirs.state_dict())
    seen = {}
    for name, module in theirs.named_modules():
        if name.endswith("attn"):
            # the fused kernel of class attention does not show its weights
            module.fused_attn = False
            module.attn_drop.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0]))
    x = images(2, dtype=torch.float64)
    theirs(x)
    found = ours.attention_maps(x)
    assert list(found) == list(seen) == ["blocks.0.attn", "blocks.1.attn", "blocks_token_only.0.attn", "blocks_token_only.1.attn"]
    for name, weights in found.items():
        torch.testing.assert_close(weights, seen[name], rtol=1e-9, atol=1e-12)
    for layer in (-1, 0):
        token = seen[f"blocks_token_only.{layer % 2}.attn"]
        torch.testing.assert_close(ours.get_attention(x, layer), token[:, :, 0, 1:].reshape(2, 2, 8, 8), rtol=1e-9, atol=1e-12)


def test_weights_explain_the_output():
    """The modules' own weights, put in front of their values, give what the fused ops give."""
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    trunk = vt.nn.TalkingHeadsAttention(12, 3, qkv_bias=True).double()
    value = trunk.qkv(x)[..., 24:].unflatten(-1, (3, 4)).transpose(1, 2)
    torch.testing.assert_close(trunk.proj((trunk.attention_weights(x) @ value).transpose(1, 2).flatten(2)), trunk(x))
    token = vt.nn.ClassAttention(12, 3, qkv_bias=True).double()
    value = token.v(x).unflatten(-1, (3, 4)).transpose(1, 2)
    torch.testing.assert_close(token.proj((token.attention_weights(x) @ value).transpose(1, 2).flatten(2)), token(x))


def test_positions_follow_the_image(tmp_path):
    state = nano(NANO).state_dict()
    torch.save(state, tmp_path / "cait.pth")
    model = create_model(NANO, num_classes=10, img_size=(48, 32), checkpoint=tmp_path / "cait.pth")
    assert model.load_report.resized == ["pos_embed"] and model.load_report.complete
    assert model.pos_embed.shape == (1, 12 * 8, 64)


@pytest.mark.parametrize(("size", "scale"), [("xxs36_224", 1e-5), ("s24_224", 1e-5), ("s36_384", 1e-6), ("m48_448", 1e-6)])
def test_published_settings(size, scale):
    with torch.device("meta"):
        model = create_model(f"cait_{size}")
    assert len(model.state_dict()) == {24: 476, 36: 692, 48: 908}[model.config.depth]
    assert model.config.layer_scale == scale and model.config.width == 48 * model.config.heads
    rates = {block.drop_path.rate for block in model.blocks}
    assert rates == {model.config.drop_path} and {block.drop_path.rate for block in model.blocks_token_only} == {0.0}


def test_initial_values():
    torch.manual_seed(0)
    model = create_model("cait_xxs24_224", depth=2)
    for name, parameter in model.named_parameters():
        if "gamma" in name:
            assert (parameter == 1e-5).all(), name
        elif "norm" in name and name.endswith("weight"):
            assert (parameter == 1).all(), name
        elif "patch_embed" in name:
            assert parameter.abs().max() <= 768**-0.5
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.02 if parameter.numel() > 20_000 else 0.5), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"img_size": 30}, r"img_size must be multiples of patch_size=4, got \(30, 30\)"),
        ({"heads": 3}, "dim must be a multiple of num_heads=3, got 64"),
        ({"class_depth": 0}, "class_depth must be at least 1, got 0"),
    ],
)
def test_impossible_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        create_model(NANO, **options)
