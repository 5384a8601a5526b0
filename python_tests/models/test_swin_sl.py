"""The small-data Swin: its attention written out, its names and counts."""

import pytest
import torch
from models.zoo import images
from oracles import assert_close, position_index, random_parameters, shift_mask

from vtkernels.models import create_model
from vtkernels.models.swin_sl import LocalityAttention, SLSwin


def explicit(module, x, shift):
    """Attention in 4 x 4 windows of an 8 x 8 map without self-reference, each head with its own scale."""

    def windows(t):
        return t.roll((-shift, -shift), (1, 2)).unflatten(2, (2, 4)).unflatten(1, (2, 4)).transpose(2, 3).flatten(3, 4).flatten(1, 2)

    q, k, v = (windows(t).unflatten(-1, (2, 8)).transpose(2, 3) for t in module.qkv(x).chunk(3, -1))
    scores = module.scale[:, None, None] * (q @ k.mT) + module.relative_position_bias_table[position_index(4)].permute(2, 0, 1)
    if shift:
        scores = scores + shift_mask(8, 8, 4, shift)[:, None]
    weights = scores.masked_fill(torch.eye(16, dtype=torch.bool), -torch.inf).softmax(-1)
    out = (weights @ v).transpose(2, 3).flatten(3)
    out = out.unflatten(2, (4, 4)).unflatten(1, (2, 2)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return module.proj(out.roll((shift, shift), (1, 2))), weights.flatten(0, 1)


@pytest.mark.parametrize("shift", [0, 2])
def test_no_token_sees_itself_and_heads_learn_their_scales(shift):
    module = random_parameters(LocalityAttention(16, (4, 4), 2)).double()
    x = torch.randn(3, 8, 8, 16, dtype=torch.float64)
    expected, weights = explicit(module, x, shift)
    found = module(x, shift)
    assert_close(found, expected, 1e-10, "output")
    assert_close(module.attention_weights(x, shift), weights, 1e-10, "weights")
    assert (module.attention_weights(x, shift).diagonal(dim1=2, dim2=3) == 0).all()
    upstream = torch.randn_like(x)
    gradients = (torch.autograd.grad(out, list(module.parameters()), upstream) for out in (found, expected))
    for (name, _), ours, theirs in zip(module.named_parameters(), *gradients, strict=True):
        assert_close(ours, theirs, 1e-10, f"gradient of {name}")
    single = LocalityAttention(16, (4, 4), 2)
    torch.testing.assert_close(single(x.float(), shift), explicit(single, x.float(), shift)[0])


def test_counts_and_official_names():
    with torch.device("meta"):
        models = [create_model("swin_sl_patch2_window4_32", num_classes=classes) for classes in (10, 100, 200)]
    assert [sum(p.numel() for p in model.parameters()) for model in models] == [8_562_166, 8_596_816, 8_635_316]
    ours = create_model("swin_sl_nano_patch4_window4_32")
    assert {"patch_embed.merging.1.weight", "layers.1.downsample.merging.2.bias", "layers.0.blocks.0.attn.scale"} <= ours.state_dict().keys()
    # the official code ends a stage with its merging
    state = {name.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc", "head"): value for name, value in ours.state_dict().items()}
    assert SLSwin.convert_state(state).keys() == ours.state_dict().keys()


def test_scales_start_as_swins():
    model = create_model("swin_sl_nano_patch4_window4_32")
    torch.testing.assert_close(model.layers[1].blocks[0].attn.scale, torch.full((4,), 0.25))


def test_impossible_sizes():
    with pytest.raises(ValueError, match=r"img_size must be multiples of 8, got \(36, 36\); its patches and mergings do not pad"):
        create_model("swin_sl_nano_patch4_window4_32", img_size=36)
    with pytest.raises(ValueError, match=r"window_size must hold two tokens or more, got \(1, 1\)"):
        create_model("swin_sl_nano_patch4_window4_32", img_size=8)
    model = create_model("swin_sl_nano_patch4_window4_32", absolute_positions=False).eval()
    assert model(images(1, (64, 40))).shape == (1, 1000)
    with pytest.raises(ValueError, match="images must have edges that are multiples of 8"):
        model(images(1, 36))
