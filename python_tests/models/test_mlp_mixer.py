"""MLP-Mixer against timm and against the equations in the layout of the JAX files."""

import numpy as np
import pytest
import torch
from models.zoo import assert_same_function, images, nano
from optional import peer
from torch.nn import functional as F

from vtkernels.models import create_model


def test_timm(tmp_path):
    timm = peer("timm")
    theirs = timm.models.MlpMixer(patch_size=32, embed_dim=512, num_blocks=2)
    torch.nn.init.normal_(theirs.head.weight)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = create_model("mixer_s32_224", depth=2, checkpoint=tmp_path / "timm.pth")
    assert ours.load_report.complete and list(ours.state_dict()) == list(theirs.state_dict())
    assert_same_function(ours, theirs, images(2, 224))


@pytest.mark.parametrize(("name", "tensors"), [("mixer_s16_224", 102), ("mixer_b16_224", 150), ("mixer_l16_224", 294)])
def test_number_of_tensors(name, tensors):
    with torch.device("meta"):
        assert len(create_model(name).state_dict()) == tensors


def jax_logits(p, x):
    """The equations on the arrays of a JAX checkpoint, whose matrices stand on the right."""

    def mlp(x, name):
        hidden = F.gelu(x @ p[f"{name}/Dense_0/kernel"] + p[f"{name}/Dense_0/bias"], approximate="tanh")
        return hidden @ p[f"{name}/Dense_1/kernel"] + p[f"{name}/Dense_1/bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return x * p[f"{name}/scale"] + p[f"{name}/bias"]

    patches = x.unfold(2, 4, 4).unfold(3, 4, 4)
    x = (torch.einsum("bcrsij,ijcd->brsd", patches, p["stem/kernel"]) + p["stem/bias"]).flatten(1, 2)
    for block in ("MixerBlock_0", "MixerBlock_1"):
        x = x + mlp(norm(x, f"{block}/LayerNorm_0").mT, f"{block}/token_mixing").mT
        x = x + mlp(norm(x, f"{block}/LayerNorm_1"), f"{block}/channel_mixing")
    return norm(x, "pre_head_layer_norm").mean(1) @ p["head/kernel"] + p["head/bias"]


def test_jax_checkpoint(tmp_path):
    shapes = {"stem/kernel": (4, 4, 3, 64), "stem/bias": (64,), "head/kernel": (64, 10), "head/bias": (10,)}
    shapes |= {f"pre_head_layer_norm/{leaf}": (64,) for leaf in ("scale", "bias")}
    for block in ("MixerBlock_0", "MixerBlock_1"):
        shapes |= {f"{block}/LayerNorm_{index}/{leaf}": (64,) for index in (0, 1) for leaf in ("scale", "bias")}
        for mlp, width, hidden in (("token_mixing", 32, 32), ("channel_mixing", 64, 128)):
            shapes |= {f"{block}/{mlp}/Dense_0/kernel": (width, hidden), f"{block}/{mlp}/Dense_0/bias": (hidden,)}
            shapes |= {f"{block}/{mlp}/Dense_1/kernel": (hidden, width), f"{block}/{mlp}/Dense_1/bias": (width,)}
    generator = torch.Generator().manual_seed(0)
    arrays = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    np.savez(tmp_path / "mixer.npz", **{name: value.numpy() for name, value in arrays.items()})
    model = nano("mixer_nano4_32", img_size=(16, 32), activation="gelu_tanh", checkpoint=tmp_path / "mixer.npz").double().eval()
    assert model.load_report.complete
    x = images(2, (16, 32)).double()
    expected = jax_logits({name: value.double() for name, value in arrays.items()}, x)
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


def test_initial_values():
    torch.manual_seed(0)
    model = create_model("mixer_s16_224", depth=1)
    for name, parameter in model.named_parameters():
        if name.startswith("head") or name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            std = parameter[0].numel() ** -0.5
            assert parameter.std().item() == pytest.approx(std, rel=0.02), name
            assert parameter.abs().max() <= 2 * std / 0.8796, name


def test_impossible_configurations():
    with pytest.raises(ValueError, match=r"MixerConfig: img_size must be multiples of patch_size=4, got \(30, 30\); change img_size or patch_size"):
        create_model("mixer_nano4_32", img_size=30)
    with pytest.raises(ValueError, match="name must be one of gelu"):
        create_model("mixer_nano4_32", activation="tanh")
