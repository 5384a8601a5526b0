"""ResMLP against timm, with weights in the official names too."""

import pytest
import torch
from models.zoo import assert_same_function, images
from optional import peer

from vtkernels.models import create_model, model_config

# timm's names, and the official ones
OFFICIAL = (("stem.", "patch_embed."), ("linear_tokens", "attn"), ("mlp_channels", "mlp"), ("ls1", "gamma_1"), ("ls2", "gamma_2"))


def timm_resmlp():
    mixers = peer("timm").models.mlp_mixer
    model = mixers.MlpMixer(embed_dim=384, num_blocks=2, mlp_ratio=4, block_layer=mixers.ResBlock, norm_layer=mixers.Affine)
    for name, parameter in model.named_parameters():
        if name.startswith("head") or ".ls" in name or "alpha" in name or "beta" in name:
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("official", [False, True], ids=["timm", "official"])
def test_timm(official, tmp_path):
    theirs = timm_resmlp()
    state = dict(theirs.state_dict())
    if official:
        for timm_name, official_name in OFFICIAL:
            state = {name.replace(timm_name, official_name): value for name, value in state.items()}
        state = {name: value.flatten() if name.endswith(("alpha", "beta")) else value for name, value in state.items()}
        assert {"patch_embed.proj.weight", "blocks.0.gamma_1", "blocks.1.norm2.beta", "blocks.0.attn.bias", "blocks.0.mlp.fc1.weight"} < set(state)
    torch.save({"model": state}, tmp_path / "weights.pth")
    ours = create_model("resmlp_12_224", depth=2, checkpoint=tmp_path / "weights.pth")
    assert ours.load_report.complete and list(ours.state_dict()) == list(theirs.state_dict())
    assert_same_function(ours, theirs, images(2, 224))


def test_initial_values():
    torch.manual_seed(0)
    model = create_model("resmlp_12_224", depth=1)
    for name, parameter in model.named_parameters():
        if name.startswith("stem"):
            # torch's default for a convolution of fan-in 768
            assert parameter.abs().max() <= 768**-0.5
            assert parameter.dim() == 1 or parameter.std().item() == pytest.approx((1 / 768 / 3) ** 0.5, rel=0.02)
        elif name.endswith(("bias", "beta")):
            assert (parameter == 0).all(), name
        elif name.endswith("alpha"):
            assert (parameter == 1).all(), name
        elif ".ls" in name:
            assert (parameter == 0.1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.02), name
    scales = {name: model_config(name).layer_scale for name in ("resmlp_24_224", "resmlp_36_224", "resmlp_big_24_224")}
    assert list(scales.values()) == [1e-5, 1e-6, 1e-6]


def test_what_decay_would_harm():
    names = create_model("resmlp_nano_patch4_32").no_weight_decay()
    assert {"norm.alpha", "norm.beta", "blocks.1.norm2.alpha"} <= names and len(names) == 10


def test_impossible_configurations():
    with pytest.raises(ValueError, match=r"ResMlpConfig: img_size must be multiples of patch_size=4, got \(32, 30\)"):
        create_model("resmlp_nano_patch4_32", img_size=(32, 30))
