"""FNet's mixing against Fourier matrices, its block against transformers' parts, its frame against the published counts."""

import math

import pytest
import torch
from models.zoo import images, nano
from optional import peer
from torch.nn import functional as F

from vtkernels.models import create_model
from vtkernels.models.fnet import FourierMix


def fourier_matrix(count):
    """Cosine and sine parts of the discrete transform, scaled to be orthonormal."""
    angle = 2 * math.pi / count * torch.outer(torch.arange(count), torch.arange(count)).double()
    return angle.cos() / count**0.5, angle.sin() / count**0.5


def test_mixing_is_a_product_of_matrices():
    x = torch.randn(2, 10, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (token_cos, token_sin), (channel_cos, channel_sin) = fourier_matrix(10), fourier_matrix(12)
    expected = token_cos @ x @ channel_cos - token_sin @ x @ channel_sin
    mixed = FourierMix()(x)
    torch.testing.assert_close(mixed, expected, rtol=1e-9, atol=1e-9)
    # half of the output is redundant
    mirrored = mixed.roll((-1, -1), (1, 2)).flip(1, 2)
    torch.testing.assert_close(mirrored, mixed, rtol=1e-9, atol=1e-9)
    # over a grid of 2 x 5 the real part has four terms
    row, column = fourier_matrix(2), fourier_matrix(5)
    expected = torch.zeros_like(x)
    for sines, sign in (((), 1), ((0, 1), -1), ((0, 2), -1), ((1, 2), -1)):
        parts = [matrices[axis in sines] for axis, matrices in enumerate((row, column, (channel_cos, channel_sin)))]
        expected += sign * torch.einsum("brcd,rs,ce,df->bsef", x.view(2, 2, 5, 12), *parts).flatten(1, 2)
    torch.testing.assert_close(FourierMix((2, 5))(x), expected, rtol=1e-9, atol=1e-9)


def test_scale():
    x = torch.randn(1, 196, 384, generator=torch.Generator().manual_seed(0))
    assert FourierMix()(x).std().item() == pytest.approx(0.5**0.5, rel=0.01)
    unscaled = FourierMix()(x) * (196 * 384) ** 0.5
    assert unscaled.std().item() == pytest.approx(193.9, rel=0.01)


def test_transformers():
    fourier = peer("transformers.models.fnet.modeling_fnet")
    theirs = fourier.FNetBasicFourierTransform(peer("transformers").FNetConfig(hidden_size=12, use_tpu_fourier_optimizations=False))
    x = torch.randn(2, 10, 12, dtype=torch.float64)
    torch.testing.assert_close(FourierMix()(x) * 120**0.5, theirs(x)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    x = torch.randn(2, 10, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    mixed = FourierMix()(x)
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed, FourierMix()(x.double()).to(dtype), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"class_token": False}, {"class_token": False, "planar": True}, {"positions": False}], ids=str)
def test_whole_model(options):
    model = nano("fnet_nano_patch4_32", img_size=(32, 64), **options).double().eval()
    p = {name: torch.nn.init.normal_(value, std=0.3) for name, value in model.state_dict().items()}
    x = images(2, (32, 64)).double()

    def norm(x, name):
        return F.layer_norm(x, (64,), p[f"{name}.weight"], p[f"{name}.bias"], 1e-6)

    def mix(x):
        spatial = x.unflatten(1, (8, 16)) if options.get("planar") else x
        spectrum = torch.fft.fft(spatial, dim=-1)
        for axis in range(1, spatial.dim() - 1):
            spectrum = torch.fft.fft(spectrum, dim=axis)
        return (spectrum.real / (x.shape[1] * x.shape[2]) ** 0.5).view_as(x)

    tokens = F.conv2d(x, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], stride=4).flatten(2).mT
    if options.get("class_token", True):
        tokens = torch.cat((p["cls_token"].expand(2, 1, 64), tokens), 1)
    if options.get("positions", True):
        tokens = tokens + p["pos_embed"]
    for block in ("blocks.0", "blocks.1"):
        tokens = tokens + mix(norm(tokens, f"{block}.norm1"))
        hidden = F.gelu(F.linear(norm(tokens, f"{block}.norm2"), p[f"{block}.mlp.fc1.weight"], p[f"{block}.mlp.fc1.bias"]))
        tokens = tokens + F.linear(hidden, p[f"{block}.mlp.fc2.weight"], p[f"{block}.mlp.fc2.bias"])
    pooled = norm(tokens, "norm")[:, 0] if options.get("class_token", True) else norm(tokens, "norm").mean(1)
    torch.testing.assert_close(model(x), F.linear(pooled, p["head.weight"], p["head.bias"]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "classes", "options", "parameters"),
    [
        ("fnet_tiny_patch16_gap_224", 1000, {"positions": False}, 3_900_712),
        ("fnet_small_patch16_gap_224", 1000, {"positions": False}, 14_878_312),
        ("fnet_base_patch16_gap_224", 1000, {"positions": False}, 58_067_176),
        ("fnet_tiny_patch4_32", 100, {}, 3_601_444),
        ("fnet_tiny_patch4_gap_32", 10, {"positions": False}, 3_571_402),
        ("fnet_small_patch4_gap_32", 100, {"positions": False}, 14_255_332),
        ("fnet_small_patch4_gap_32", 10, {"positions": False, "planar": True}, 14_220_682),
    ],
)
def test_number_of_parameters(name, classes, options, parameters):
    with torch.device("meta"):
        model = create_model(name, num_classes=classes, **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_positions_follow_the_image(tmp_path):
    torch.save(nano("fnet_nano_patch4_32").state_dict(), tmp_path / "weights.pth")
    model = nano("fnet_nano_patch4_32", img_size=(32, 64), checkpoint=tmp_path / "weights.pth")
    assert model.load_report.resized == ["pos_embed"] and model.load_report.complete


def test_initial_values():
    torch.manual_seed(0)
    for name, parameter in create_model("fnet_small_patch16_224", depth=1).named_parameters():
        if name.startswith("patch_embed"):
            assert parameter.abs().max() <= 768**-0.5
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.02), name


def test_impossible_configurations():
    with pytest.raises(ValueError, match="FNetConfig: class_token must be False with planar=True, got True; a class token has no place"):
        create_model("fnet_nano_patch4_32", planar=True)
    with pytest.raises(ValueError, match=r"FNetConfig: img_size must be multiples of patch_size=4"):
        create_model("fnet_nano_patch4_32", img_size=18)
