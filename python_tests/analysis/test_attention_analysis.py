"""Attention maps against eager computation, rollout's golden numbers, and that a window's token is found where it is in the image."""

import numpy as np
import pytest
import torch
from torch import nn

import vtkernels as vt
from vtkernels.analysis import attention
from vtkernels.layers import Attention, TokenPerformer
from vtkernels.ops.class_attention.module import ClassAttention
from vtkernels.ops.talking_heads_attention.module import TalkingHeadsAttention
from vtkernels.ops.window_attention.module import WindowAttention

FAMILIES = ("vit_nano_patch4_32", "cait_nano_patch4_32", "swin_nano_patch4_window4_32", "t2t_vit_nano_32", "vitae_nano_32", "vitae_plain_nano_patch4_32")


def images(model: nn.Module, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, *model.config.size)


def create(name: str, **fields) -> nn.Module:
    """A model whose attention is far from even."""
    model = vt.create_model(name, num_classes=10, **fields).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (Attention, WindowAttention, TalkingHeadsAttention)):
                module.qkv.weight.normal_(std=0.3)
            elif isinstance(module, ClassAttention):
                module.q.weight.normal_(std=0.3)
                module.k.weight.normal_(std=0.3)
    return model


def eager_output(module: nn.Module, weights: torch.Tensor, x: torch.Tensor, beside: torch.Tensor | None = None) -> torch.Tensor:
    """What a layer gives if its values are weighed by these weights."""
    if isinstance(module, TokenPerformer):
        v = module.kqv(module.norm1(x)).chunk(3, -1)[2]
        y = v + module.proj(weights[:, 0] @ v) + (0 if beside is None else beside)
        return y + module.mlp(module.norm2(y))
    if isinstance(module, ClassAttention):
        v = module.v(x).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
    else:
        v = module.qkv(x).unflatten(-1, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)[2]
    return module.proj((weights @ v).transpose(1, 2).flatten(2))


def forward_with_hooks(model: nn.Module, x: torch.Tensor) -> dict[str, tuple]:
    """Arguments and output of every layer, by its name."""
    seen = {}
    handles = [
        module.register_forward_hook(lambda _, args, kwargs, out, n=name: seen.update({n: (args, kwargs, out)}), with_kwargs=True)
        for name, module in model.named_modules()
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", [*FAMILIES, "vit_nano_patch4_32-distilled", "cct_nano_3x2_32"])
def test_weights_are_those_of_the_forward_pass(name):
    """The layer's own output, hooked, is what the weights make of its values. Swin's are compared by windows below."""
    name, _, distilled = name.partition("-")
    model = create(name, **({"distilled": True} if distilled else {}))
    x = images(model)
    seen, found = forward_with_hooks(model, x), attention.layers(model, x)
    assert found and [layer.name for layer in found] == list(model.attention_maps(x))
    for layer in found:
        if layer.places is None:
            args, kwargs, out = seen[layer.name]
            with torch.no_grad():
                expected = eager_output(model.get_submodule(layer.name), layer.weights, *args, **kwargs)
            torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (28, 44)], ids=["divided", "padded"])
def test_windows_are_put_back_where_they_came_from(size):
    """Of the whole map: the window attention of the forward pass is the matrix of all patches times the values."""
    model = create("swin_nano_patch4_window4_32", img_size=size)
    x = images(model)
    seen = forward_with_hooks(model, x)
    with torch.no_grad():
        for layer in attention.layers(model, x):
            module, ((given, _), _, out) = model.get_submodule(layer.name), seen[layer.name]
            v = module.qkv(given).unflatten(-1, (3, module.num_heads, -1)).flatten(1, 2)[:, :, 2].transpose(1, 2)
            full = layer.full()
            mixed = (full @ v).transpose(1, 2).flatten(2)
            # padded keys have the value of a bias, which is zero here at first
            assert not module.qkv.bias.any()
            torch.testing.assert_close(out.flatten(1, 2), module.proj(mixed), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(layer.received().flatten(2), full.mean(2), atol=1e-6, rtol=1e-5)


def test_timm_weights_are_the_same(timm_cait):
    peer = timm_cait.Cait(img_size=32, patch_size=4, embed_dim=64, depth=2, num_heads=2, num_classes=10, init_values=0.1).eval()
    model = vt.create_model("cait_nano_patch4_32", num_classes=10).eval()
    model.load_state_dict(peer.state_dict())
    seen, x = {}, images(model)
    for name, module in peer.named_modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
        layer, _, leaf = name.rpartition(".")
        if leaf == "attn_drop":
            module.register_forward_pre_hook(lambda _, args, n=layer: seen.update({n: args[0]}))
    with torch.no_grad():
        peer(x)
    found = attention.layers(model, x)
    assert {layer.name for layer in found} == set(seen)
    for layer in found:
        torch.testing.assert_close(layer.weights, seen[layer.name].view_as(layer.weights), atol=1e-5, rtol=0)


def test_rollout_has_the_golden_numbers():
    n = torch.arange(18, dtype=torch.float64).view(1, 2, 3, 3)
    row = attention.rollout([n.sin().softmax(-1), n.cos().softmax(-1)])[0, 0]
    np.testing.assert_allclose(row, [0.53672770, 0.22613457, 0.23713773], atol=5e-9)
    assert float(row.sum()) == pytest.approx(1)


@pytest.mark.parametrize("name", [*FAMILIES, "cait_small_data_nano_patch4_32", "cvt_nano_32", "swinv2_nano_window4_32"])
def test_every_family_is_drawn(name, tmp_path):
    model = vt.create_model(name, num_classes=10)
    model.train()
    result = attention.see(model, [(images(model), None)], name=name)
    assert model.training and result.complete
    assert result.maps.shape[2:] == result.rolled.shape[1:] and (result.rolled >= 0).all()
    assert all(np.isfinite(values).all() and min(values) > 0 for values in result.distances.values())
    if name in FAMILIES[:2]:
        paths = result.save(tmp_path)
        assert [path.name for path in paths] == ["attention.json", "attention_maps.png", "attention_distance.png"]


def test_late_class_token_gathers_what_the_trunk_mixed():
    """CaiT: with a trunk that moves nothing, rollout is that of the class layers alone."""
    layer = attention.Layer("class", torch.full((1, 2, 1, 5), 0.2), (2, 2), 1)
    trunk = attention.Layer("trunk", torch.eye(4).repeat(1, 2, 1, 1), (2, 2), 0)

    class Model:
        prefix_tokens = 1

    found = attention.model_rollout(Model(), [trunk, layer])
    torch.testing.assert_close(found, torch.full((1, 2, 2), 0.1))


def test_run_on_digits():
    result = attention.run(attention.Options(model="vit_nano_patch4_32", samples=3, device="cpu"))
    assert result.complete and len(result.images) == 3 and "blocks.1.attn" in result.shown
    assert result.images.min() >= 0 and result.images.max() <= 1


def test_a_peak_lands_at_its_pixel():
    """Images of 16 x 24 pixels: 4 x 6 patches; the class token looks at row 1, column 4."""
    weights = torch.zeros(1, 1, 25, 25)
    weights[0, 0, 0, 1 + 1 * 6 + 4] = 1.0
    grid = attention.Layer("one", weights, (4, 6), 1)
    values = grid.weights[0, 0, 0, 1:].view(4, 6).numpy()
    picture = attention.overlay(np.zeros((16, 24, 3)), values).sum(-1)
    row, column = np.unravel_index(picture.argmax(), picture.shape)
    assert (row // 4, column // 4) == (1, 4)


def test_distances_of_known_attention():
    """On 1 x 3 patches of 8 x 10 pixels: all look at the left one, so 0, 10 and 20 pixels far."""
    weights = torch.zeros(2, 1, 3, 3)
    weights[..., 0] = 1.0
    assert attention.Layer("left", weights, (1, 3), 0).distances((8, 10)).tolist() == [[10.0], [10.0]]
    # half of it goes to a class token, which is at no place
    half = torch.zeros(1, 1, 4, 4)
    half[..., 0], half[..., 1] = 0.5, 0.5
    assert attention.Layer("half", half, (1, 3), 1).distances((8, 10)).item() == pytest.approx(10.0)


def test_bad_input_is_told():
    swin = vt.create_model("swin_nano_patch4_window4_32", num_classes=10)
    with pytest.raises(ValueError, match="have a class token"):
        attention.class_token_map(swin, images(swin))
    with pytest.raises(ValueError, match="at least one image"):
        attention.see(swin, [(torch.randn(0, 3, 32, 32), None)])
    with pytest.raises(ValueError, match="attention layers"):
        attention.see(vt.create_model("resnet_nano", num_classes=10), [(torch.randn(1, 3, 32, 32), None)])
    with pytest.raises(ValueError, match="create_model"):
        attention.see(nn.Linear(2, 2), [(torch.randn(1, 2), None)])
    with pytest.raises(ValueError, match="be one of 4 layers"):
        attention.look(swin, images(swin), layer=7)
    nn.init.constant_(swin.patch_embed.proj.bias, float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        attention.see(swin, [(images(swin), None)])
