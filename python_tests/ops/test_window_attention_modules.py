"""`vt.nn.WindowAttention` and `WindowAttentionV2` against the published modules, weights shared, in float64."""

import copy

import pytest
import torch
from oracles import assert_close, random_parameters, timm_block, torchvision_v2_state

import vtkernels as vt
from vtkernels.ops.window_attention.common import Call
from vtkernels.ops.window_attention.reference import from_windows, real_tokens, to_windows

EXACT = 1e-10
# (map, window, shift): divided and not, square and not, shifted and not, one window on one axis
GEOMETRIES = [((14, 14), 7, 0), ((14, 21), 7, 3), ((10, 13), 7, 3), ((9, 5), 4, 2), ((11, 6), 4, 0), ((7, 15), 7, 3)]
of_every_geometry = pytest.mark.parametrize(("size", "window", "shift"), GEOMETRIES)
both_generations = pytest.mark.parametrize("module_class", [vt.nn.WindowAttention, vt.nn.WindowAttentionV2])


def compare(module, peer, shift, size) -> dict[str, torch.Tensor]:
    """Hold outputs and input gradients of a module to those of a function of the map; return the module's parameter gradients."""
    x = torch.randn(2, *size, module.dim, dtype=torch.float64)
    upstream = torch.randn_like(x)
    found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, peer_out = module(found, shift), peer(expected)
    assert_close(out, peer_out, EXACT, "output")
    out.backward(upstream)
    peer_out.backward(upstream)
    assert_close(found.grad, expected.grad, EXACT, "gradient of x")
    return gradients(module)


def assert_gradients(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value, EXACT, f"gradient of {name}")


def gradients(module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in module.named_parameters()}


@of_every_geometry
@pytest.mark.parametrize("generation", [1, 2])
def test_agrees_with_torchvision(torchvision_swin, generation, size, window, shift):
    peer_class = torchvision_swin.ShiftedWindowAttention if generation == 1 else torchvision_swin.ShiftedWindowAttentionV2
    peer = random_parameters(peer_class(24, [window, window], [shift, shift], 3)).double()
    if generation == 1:
        module = vt.nn.WindowAttention(24, window, 3).double()
        module.load_state_dict(peer.state_dict())
    else:
        module = vt.nn.WindowAttentionV2(24, window, 3).double()
        module.load_state_dict(torchvision_v2_state(peer.state_dict()))
    found = compare(module, peer, shift, size)
    expected = gradients(peer)
    if generation == 2:
        expected = torchvision_v2_state(expected)
    assert_gradients(found, expected)


@of_every_geometry
@pytest.mark.parametrize("generation", [1, 2])
def test_agrees_with_timm(timm_swin, timm_swin_v2, generation, size, window, shift):
    """timm shifts first and pads then."""
    block_class = timm_swin.SwinTransformerBlock if generation == 1 else timm_swin_v2.SwinTransformerV2Block
    # `always_partition` keeps the window where the map is smaller, and leaves the rule for the shift to the caller
    block_shift = tuple(shift if edge > window else 0 for edge in size)
    block = timm_block(block_class, size, dim=24, num_heads=3, window=window, shift=block_shift)
    module_class = vt.nn.WindowAttention if generation == 1 else vt.nn.WindowAttentionV2
    module = module_class(24, window, 3, shift_first=True).double()
    module.load_state_dict(block.attn.state_dict())
    found = compare(module, block._attn, shift, size)
    assert_gradients(found, gradients(block.attn))


@pytest.mark.parametrize("window", [(4, 4), (3, 5)])
def test_v2_with_a_pretrained_window_agrees_with_timm(timm_swin_v2, window):
    peer = timm_swin_v2.WindowAttention(16, window, 2, pretrained_window_size=(8, 8)).double()
    random_parameters(peer)
    module = vt.nn.WindowAttentionV2(16, window, 2, pretrained_window_size=8).double()
    module.load_state_dict(peer.state_dict())
    found = compare(module, lambda x: peer(x.flatten(1, 2)).unflatten(1, window), 0, window)
    assert_gradients(found, gradients(peer))


@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [((9, 5), (4, 4), 2), ((8, 8), (4, 4), 0), ((3, 4), (1, 1), 0), ((3, 10), (1, 4), (0, 2)), ((6, 2), (3, 1), (1, 0)), ((1, 7), (1, 3), (0, 1))],
)
@both_generations
def test_values_weighed_by_the_attention_weights(module_class, size, window, shift):
    """Also with windows of one token on an axis, which the op itself does not have."""
    module = random_parameters(module_class(16, window, 2, shift_first=True)).double()
    x = torch.randn(2, *size, 16, dtype=torch.float64, requires_grad=True)

    def explicit(x):
        weights = module.attention_weights(x, shift)
        qkv, _, parameters = module._operands(x)
        call = Call(qkv, None, None, None, None, 2, window, module.shift_for(*size, shift), 1.0, False, True, 0.0, 0)
        tokens = torch.where(real_tokens(call)[..., None], to_windows(qkv, call), parameters["qkv_bias"])
        values = tokens[..., 32:].unflatten(-1, (2, 8)).transpose(2, 3).flatten(0, 1)
        out = (weights @ values).unflatten(0, (2, -1)).transpose(2, 3).flatten(3)
        return module.proj(from_windows(out, call))

    upstream = torch.randn(2, *size, 16, dtype=torch.float64)
    found, expected = module(x, shift), explicit(x)
    assert_close(found, expected, EXACT, "output")
    inputs = [x, *(parameter for parameter in module.parameters() if parameter.requires_grad)]
    for ours, theirs in zip(*(torch.autograd.grad(out, inputs, upstream) for out in (found, expected)), strict=True):
        assert_close(ours, theirs, EXACT, "gradient")


def test_v2_clamps_the_logit_scale():
    module = random_parameters(vt.nn.WindowAttentionV2(16, 4, 2)).double()
    x = torch.randn(1, 4, 4, 16, dtype=torch.float64)
    with torch.no_grad():
        module.logit_scale.fill_(4.7)
        out = module(x)
        module.logit_scale.fill_(9.0)
        assert torch.equal(module(x), out)


def test_official_checkpoints_load_strictly():
    """Buffers of the official and torchvision's models are accepted; anything else unknown is still refused."""
    module = vt.nn.WindowAttention(8, 4, 2)
    state = module.state_dict()
    module.load_state_dict(state | {"relative_position_index": torch.zeros(16, 16, dtype=torch.long)})
    assert "relative_position_index" not in module.state_dict()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        module.load_state_dict(state | {"relative_position": torch.zeros(1)})
    second = vt.nn.WindowAttentionV2(8, 4, 2)
    second.load_state_dict(second.state_dict() | {"relative_coords_table": torch.zeros(1, 7, 7, 2), "relative_position_index": torch.zeros(256)})
    assert second.relative_coords_table.abs().max() == pytest.approx(1.0566, abs=1e-4), "log2(9) / 3 at the edge, not what the checkpoint brought"


def test_parameters_are_the_official_ones():
    assert [(name, tuple(p.shape)) for name, p in vt.nn.WindowAttention(8, (2, 3), 2).named_parameters()] == [
        ("relative_position_bias_table", (15, 2)),
        ("qkv.weight", (24, 8)),
        ("qkv.bias", (24,)),
        ("proj.weight", (8, 8)),
        ("proj.bias", (8,)),
    ]
    assert [name for name, _ in vt.nn.WindowAttentionV2(8, 4, 2).named_parameters()] == [
        "logit_scale", "q_bias", "v_bias", "cpb_mlp.0.weight", "cpb_mlp.0.bias", "cpb_mlp.2.weight", "qkv.weight", "proj.weight", "proj.bias",
    ]  # fmt: skip
    assert "qkv.bias" not in vt.nn.WindowAttention(8, 4, 2, qkv_bias=False).state_dict()


def test_initialisation_is_swins():
    module = vt.nn.WindowAttention(96, 7, 3)
    for weight in (module.qkv.weight, module.proj.weight, module.relative_position_bias_table):
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.15)
    assert not module.qkv.bias.any() and not module.proj.bias.any()
    second = vt.nn.WindowAttentionV2(96, 8, 3)
    assert torch.allclose(second.logit_scale, torch.tensor(10.0).log())
    assert not second.q_bias.any() and not second.v_bias.any()


@both_generations
def test_state_dict_round_trip_and_deepcopy(module_class):
    module = random_parameters(module_class(16, 4, 2))
    other = module_class(16, 4, 2)
    other.load_state_dict(module.state_dict())
    x = torch.randn(2, 8, 8, 16)
    assert torch.equal(other(x, 2), module(x, 2))
    twin = copy.deepcopy(module)
    twin.load_state_dict(module.state_dict() | {"relative_position_index": torch.zeros(16, 16)})
    assert torch.equal(twin(x, 2), module(x, 2))


@both_generations
def test_a_module_made_on_meta_is_complete_once_loaded(module_class):
    module = random_parameters(module_class(16, 4, 2))
    empty = module_class(16, 4, 2, device="meta")
    assert empty(torch.empty(2, 8, 8, 16, device="meta"), 2).shape == (2, 8, 8, 16)
    x, assigned = torch.randn(2, 8, 8, 16), copy.deepcopy(empty)
    assigned.load_state_dict(module.state_dict(), assign=True)
    assert torch.equal(assigned(x, 2), module(x, 2))
    empty.to_empty(device="cpu")
    for tensor in (*empty.parameters(), *empty.buffers()):
        # what the memory happens to hold
        tensor.detach().fill_(torch.nan)
    drawn = copy.deepcopy(empty)
    drawn.reset_parameters()
    assert bool(drawn(x, 2).isfinite().all())
    empty.load_state_dict(module.state_dict())
    assert torch.equal(empty(x, 2), module(x, 2))


@both_generations
def test_dropout_acts_in_training_only_and_follows_the_seed(module_class):
    module = random_parameters(module_class(16, 4, 2, attn_drop=0.5))
    plain = module_class(16, 4, 2)
    plain.load_state_dict(module.state_dict())
    x = torch.randn(2, 8, 8, 16)
    assert torch.equal(module.eval()(x, 2), plain(x, 2))
    module.train()
    torch.manual_seed(5)
    first, second = module(x, 2), module(x, 2)
    torch.manual_seed(5)
    assert not torch.equal(first, second)
    assert torch.equal(module(x, 2), first)


@pytest.mark.parametrize("size", [(7, 7), (5, 6), (7, 14), (14, 7), (3, 20)])
def test_an_axis_no_larger_than_the_window_is_not_shifted(size):
    module = random_parameters(vt.nn.WindowAttention(8, 7, 1))
    x = torch.randn(1, *size, 8)
    clamped = tuple(3 if edge > 7 else 0 for edge in size)
    expected = vt.window_attention(module.qkv(x), module.relative_position_bias_table, num_heads=1, window_size=7, shift_size=clamped, qkv_bias=module.qkv.bias)
    assert torch.equal(module(x, 3), module.proj(expected))


def test_qk_scale():
    x = torch.randn(1, 4, 4, 8)
    scaled, plain = vt.nn.WindowAttention(8, 4, 1, qk_scale=0.5), vt.nn.WindowAttention(8, 4, 1, qk_scale=0)
    plain.load_state_dict(scaled.state_dict())
    assert plain.scale == 8**-0.5, "0 stands for the default, as in the official model"
    with torch.no_grad():
        plain.qkv.weight[:8] *= 0.5 / 8**-0.5
    assert_close(plain(x), scaled(x), 1e-5, "output")


@both_generations
def test_a_training_step_under_bfloat16_autocast(module_class):
    module = random_parameters(module_class(32, 4, 2))
    twin = copy.deepcopy(module)
    x = torch.randn(2, 6, 9, 32)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x, 2)
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    twin(x, 2).square().mean().backward()
    for (name, found), expected in zip(module.named_parameters(), twin.parameters(), strict=True):
        assert found.grad.dtype == torch.float32
        difference = float((found.grad - expected.grad).norm() / expected.grad.norm())
        # a cosine: half precision keeps the direction
        assert difference < 0.1, f"{name}: relative difference {difference:.3f}"


@both_generations
def test_compiles_into_one_graph(module_class, fresh_compiler):
    module = random_parameters(module_class(16, 4, 2, attn_drop=0.2))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for size in ((8, 8), (6, 9)):
        x = torch.randn(2, *size, 16)
        torch.manual_seed(3)
        out = compiled(x, 2)
        found = torch.autograd.grad(out.sum(), list(module.parameters()))
        torch.manual_seed(3)
        expected_out = module(x, 2)
        expected = torch.autograd.grad(expected_out.sum(), list(module.parameters()))
        assert_close(out, expected_out, 1e-6, "output")
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, 1e-5, "gradient")


def test_a_bad_head_count_is_refused():
    with pytest.raises(ValueError, match="dim must be a multiple of num_heads=5, got 8; "):
        vt.nn.WindowAttention(8, 4, 5)
