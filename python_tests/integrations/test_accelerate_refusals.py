"""Never silently wrong: what might compute something else is left alone, with a reason, and goes on computing what it did."""

import re
import types

import pytest
import torch
from optional import peer
from peer_models import answer, images, made
from torch import Tensor, nn

import vtkernels as vt


def block_of(model: nn.Module) -> nn.Module:
    """Of timm's Swin, the shifted block."""
    return model.layers[0].blocks[1]


def swapped(module: nn.Module, **methods) -> nn.Module:
    """The module as an instance of a subclass with these methods."""
    module.__class__ = type("Other", (type(module),), methods)
    return module


def override_forward(model: nn.Module) -> None:
    swapped(block_of(model), forward=lambda self, x: 2 * super(type(self), self).forward(x))


def override_attn(model: nn.Module) -> None:
    swapped(block_of(model), _attn=lambda self, x: 2 * super(type(self), self)._attn(x))


def override_attention(model: nn.Module) -> None:
    swapped(block_of(model).attn, forward=lambda self, x, mask=None: 2 * super(type(self), self).forward(x, mask))


def override_bias(model: nn.Module) -> None:
    swapped(block_of(model).attn, _get_rel_pos_bias=lambda self: 2 * super(type(self), self)._get_rel_pos_bias())


def set_on_the_instance(model: nn.Module) -> None:
    attn = block_of(model).attn
    attn.forward = types.MethodType(lambda self, x, mask=None: 2 * type(self).forward(self, x, mask), attn)


def own_linear(model: nn.Module) -> None:
    swapped(block_of(model).attn.qkv, forward=lambda self, x: 2 * super(type(self), self).forward(x))


def hook_on_softmax(model: nn.Module) -> None:
    block_of(model).attn.softmax.register_forward_hook(lambda module, args, out: out * 0.5)


def hook_on_drop(model: nn.Module) -> None:
    block_of(model).attn.attn_drop.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))


def hook_on_attention(model: nn.Module) -> None:
    block_of(model).attn.register_forward_hook(lambda module, args, out: out * 0.5)


def backward_hook_on_qkv(model: nn.Module) -> None:
    block_of(model).attn.qkv.register_full_backward_hook(lambda module, grad_in, grad_out: None)


def extra_parameter(model: nn.Module) -> None:
    block_of(model).attn.temperature = nn.Parameter(torch.ones(()))


def extra_child(model: nn.Module) -> None:
    block_of(model).attn.q_norm = nn.LayerNorm(16)


def missing_table(model: nn.Module) -> None:
    attn = block_of(model).attn
    table = attn.relative_position_bias_table.data
    del attn.relative_position_bias_table
    attn.register_buffer("relative_position_bias_table", table)


def parametrized(model: nn.Module) -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    nn.utils.parametrize.register_parametrization(block_of(model).attn.qkv, "weight", Double())


def pruned(model: nn.Module) -> None:
    from torch.nn.utils import prune

    prune.l1_unstructured(block_of(model).attn.qkv, "weight", amount=0.5)


def another_softmax(model: nn.Module) -> None:
    block_of(model).attn.softmax = nn.Sigmoid()


def all_dropped(model: nn.Module) -> None:
    block_of(model).attn.attn_drop.p = 1.0


def another_window(model: nn.Module) -> None:
    block_of(model).attn.window_size = (2, 8)


def without_mask(model: nn.Module) -> None:
    block_of(model).attn_mask = None


REASONS = {
    override_forward: "which overrides forward of timm.models.swin_transformer.SwinTransformerBlock",
    override_attn: "which overrides _attn of timm.models.swin_transformer.SwinTransformerBlock",
    override_attention: "attn is a .*Other, which overrides forward of timm.models.swin_transformer.WindowAttention",
    override_bias: "attn is a .*Other, which overrides _get_rel_pos_bias",
    set_on_the_instance: "attn has a forward of its own, set on the instance",
    own_linear: "attn.qkv is a .*Other, which overrides forward of torch.nn.modules.linear.Linear",
    hook_on_softmax: "a hook on attn.softmax would not be called",
    hook_on_drop: "a hook on attn.attn_drop would not be called",
    hook_on_attention: "a hook on attn would not be called",
    backward_hook_on_qkv: "a hook on attn.qkv would not be called",
    extra_parameter: r"attn has the parameters \['relative_position_bias_table', 'temperature'\]",
    extra_child: "attn has the children .*'q_norm'",
    missing_table: r"attn has the parameters \[\], expected \['relative_position_bias_table'\]",
    parametrized: "attn.qkv is a .*ParametrizedLinear|attn.qkv has the parameters",
    pruned: "attn.qkv has the parameters .*'weight_orig'",
    another_softmax: "attn.softmax is a torch.nn.modules.activation.Sigmoid, expected torch.nn.modules.activation:Softmax",
    all_dropped: "its attention dropout is 1.0",
    another_window: "its windows are",
    without_mask: "it shifts its windows, but has no mask",
}


# timm's own code fails, too
CANNOT_RUN = (another_window,)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("change", REASONS, ids=lambda change: change.__name__)
def test_a_changed_block_runs_its_own_code(change, when):
    model, twin, x = made("timm swin"), made("timm swin"), images("timm swin")
    if when == "after":
        vt.accelerate(model)
    change(model)
    change(twin)
    entries = [entry for entry in vt.acceleration_report(vt.accelerate(model)).entries if entry.op == "window_attention"]
    (entry,) = [entry for entry in entries if entry.reason is not None]
    assert entry.name == "layers.0.blocks.1" and len(entries) == 3
    assert re.search(REASONS[change], entry.reason), entry.reason
    if change not in CANNOT_RUN:
        torch.testing.assert_close(answer(model, x), answer(twin, x), rtol=1e-4, atol=1e-4)


def test_lora_is_left_alone():
    class Lora(nn.Module):
        def __init__(self, base: nn.Linear):
            super().__init__()
            self.base, self.down, self.up = base, nn.Linear(32, 2, bias=False), nn.Linear(2, 96, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.up(self.down(x))

    model = made("timm swin")
    block_of(model).attn.qkv = Lora(block_of(model).attn.qkv)
    (entry,) = [entry for entry in vt.acceleration_report(vt.accelerate(model)).left_alone if entry.op == "window_attention"]
    assert "attn.qkv is a" in entry.reason and "expected torch.nn.modules.linear:Linear" in entry.reason


def test_official_code_that_was_edited_is_found_out_by_trying():
    from official import swin_transformer

    class SwinTransformerBlock(swin_transformer.SwinTransformerBlock):
        pass

    def forgets_the_mask(self, x, mask=None):
        return swin_transformer.WindowAttention.forward(self, x)

    attention = type("WindowAttention", (nn.Module,), {"__module__": "project.swin_transformer", "forward": forgets_the_mask})
    model = made("official swin")
    model[1].attn.__class__ = attention
    vt.accelerate(model)
    first, second = (entry for entry in vt.acceleration_report(model).entries if entry.op == "window_attention")
    assert first.reason is None
    assert second.reason.startswith("it computes something else")


def test_a_block_of_another_library_by_the_same_name_is_not_mistaken():
    """torchvision's block has the official one's file and class name."""
    model = vt.accelerate(made("torchvision swin"))
    assert not [entry for entry in vt.acceleration_report(model).entries if entry.module == "SwinTransformerBlock"]


def test_hugging_faces_attention_matrices_are_computed_by_its_own_code():
    """SwinV2's layers return them on demand."""
    model, x = made("transformers swinv2"), images("transformers swinv2")
    expected = model(x, output_attentions=True).attentions
    vt.accelerate(model)
    found = model(x, output_attentions=True).attentions
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_hugging_faces_eager_attention_is_left_alone():
    model = made("transformers swin", attn_implementation="eager")
    x = images("transformers swin")
    expected = model(x, output_attentions=True)
    reasons = {entry.reason for entry in vt.acceleration_report(vt.accelerate(model)).left_alone if entry.op == "window_attention"}
    assert len(reasons) == 1 and "'eager', which returns the attention matrix" in reasons.pop()
    found = model(x, output_attentions=True)
    for one, other in zip(found.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(one, other)


def test_hugging_faces_doubled_mask_is_told():
    model = vt.accelerate(made("transformers swinv2"))
    (entry,) = [entry for entry in vt.acceleration_report(model).left_alone if entry.op == "window_attention"]
    assert "adds SwinV2's shift mask twice" in entry.reason


def test_a_mask_given_to_timms_pool_is_obeyed():
    model, x = made("timm pool"), torch.randn(2, 16, 32)
    mask = torch.zeros(2, 1, 1, 16)
    mask[..., 8:] = -torch.inf
    expected = model.attn_pool(x, attn_mask=mask)
    vt.accelerate(model)
    # the Linear layers, which are ours, round otherwise
    torch.testing.assert_close(model.attn_pool(x, attn_mask=mask), expected)


def test_meta_modules_are_to_be_loaded_first():
    with torch.device("meta"):
        model = peer("timm").create_model("swin_tiny_patch4_window7_224", attn_drop_rate=0.25)
    report = vt.acceleration_report(vt.accelerate(model))
    assert not report.replaced
    assert all("meta" in entry.reason for entry in report.left_alone if entry.op == "window_attention")


def test_one_token_windows_are_left_alone():
    """A map of one token shrinks timm's window to one."""
    model = made("timm swin")
    tiny = peer("timm").create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=16, num_heads=(1, 2, 2, 2), depths=(1, 1, 1, 1))
    vt.accelerate(tiny)
    assert any("its window is (1, 1)" in entry.reason for entry in vt.acceleration_report(tiny).left_alone)
    assert answer(model, images("timm swin")).isfinite().all()


def test_plain_attention_is_reported():
    model = peer("timm").create_model("vit_tiny_patch16_224", depth=1)
    (entry,) = [entry for entry in vt.acceleration_report(vt.accelerate(model)).left_alone if entry.op is None]
    assert (entry.name, entry.module, entry.reason) == ("blocks.0.attn", "Attention", "no rule knows this class")
    assert "1 x Attention (blocks.0.attn): left alone: no rule knows this class" in str(vt.acceleration_report(model))


def test_our_own_modules_need_nothing():
    model = vt.accelerate(vt.create_model("swin_nano_patch4_window4_32"))
    assert not [entry for entry in vt.acceleration_report(model).entries if entry.module != "Linear"]
