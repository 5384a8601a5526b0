"""Linear layers and MLPs of other libraries on our ops."""

import pytest
import torch
from optional import peer
from peer_models import answer, images, made
from torch import Tensor, nn

import vtkernels as vt
from vtkernels.integrations import feed_forward


def entry_of(module: nn.Module, name: str = "") -> object:
    return next(entry for entry in vt.acceleration_report(module).entries if entry.name == name)


def timm_mlp(**options) -> nn.Module:
    return peer("timm.layers").Mlp(16, 40, **options)


def torchvision_mlp(dropout: float = 0.0) -> nn.Module:
    return peer("torchvision.ops").MLP(16, [40, 16], activation_layer=nn.GELU, inplace=None, dropout=dropout)


def huggingface_mlp() -> nn.Module:
    peer("torchvision")
    swin = peer("transformers.models.swin.modeling_swin")
    return swin.SwinMLP(peer("transformers").SwinConfig(mlp_ratio=2.5), 16)


def official_mlp() -> nn.Module:
    from official.swin_transformer import Mlp

    return Mlp(16, 40)


KINDS = {
    "timm": (timm_mlp, "mlp"),
    "timm, no biases": (lambda: timm_mlp(bias=False), "mlp"),
    "timm, tanh": (lambda: timm_mlp(act_layer=peer("timm.layers").GELUTanh), "mlp"),
    "timm, relu": (lambda: timm_mlp(act_layer=nn.ReLU), "mlp"),
    "torchvision": (torchvision_mlp, "mlp"),
    "transformers": (huggingface_mlp, "mlp"),
    "official": (official_mlp, "mlp"),
    "linear": (lambda: nn.Linear(16, 24), "linear"),
    "linear, no bias": (lambda: nn.Linear(16, 24, bias=False), "linear"),
}


@pytest.mark.parametrize("shape", [(16,), (5, 16), (2, 3, 7, 16), (0, 16)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_replaced_and_the_same(kind, shape):
    make, op = KINDS[kind]
    module, x = make().double(), torch.randn(shape, dtype=torch.float64, requires_grad=True)
    parameters = (x, *module.parameters())
    expected = module(x)
    expected_grads = torch.autograd.grad(expected.square().sum(), parameters)
    vt.accelerate(module, backend="reference")
    assert entry_of(module)[2:] == (op, None)
    found = module(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for grad, expected_grad in zip(torch.autograd.grad(found.square().sum(), parameters), expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_into_one_graph(kind, fresh_compiler):
    module, x = vt.accelerate(KINDS[kind][0]()), torch.randn(5, 16)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_to_another_device_is_the_librarys_own_in_graphs_too(kind, monkeypatch):
    module = vt.accelerate(KINDS[kind][0]())
    for op in ("linear", "mlp"):
        monkeypatch.setattr(feed_forward, op, lambda *_, **__: pytest.fail("our kernels are for CPUs"))
    # as a tracer finds it, which asks no module whether it is still the one that was accelerated
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert module.to("meta")(torch.empty(5, 16, device="meta")).shape[0] == 5
    with pytest.raises(pytest.fail.Exception, match="for CPUs"):
        module.to_empty(device="cpu")(torch.empty(5, 16))


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_an_activation_in_place_may_follow(backend):
    vt.accelerate(stack := nn.Sequential(nn.Linear(16, 24), nn.ReLU(inplace=True)), backend=backend)
    x = torch.randn(2, 3, 4, 16, requires_grad=True)
    stack(x).sum().backward()
    expected = torch.autograd.grad(torch.relu(nn.functional.linear(x, stack[0].weight, stack[0].bias)).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)


def test_dropout_between_the_layers_is_the_librarys_own():
    module, x = timm_mlp(drop=0.5), torch.randn(64, 16)
    torch.manual_seed(1)
    expected = module(x)
    vt.accelerate(module)
    torch.manual_seed(1)
    torch.testing.assert_close(module(x), expected)
    assert entry_of(module).reason is None
    torch.testing.assert_close(module.eval()(x), vt.restore(module)(x))


class Cubed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**3


REFUSED = {
    "an unknown activation": (lambda: timm_mlp(act_layer=Cubed), "act is a .*Cubed, expected"),
    "a norm inside": (lambda: timm_mlp(norm_layer=nn.LayerNorm), "norm is a torch.nn.modules.normalization.LayerNorm, expected"),
    "convolutions": (lambda: timm_mlp(use_conv=True), "fc1 is a torch.nn.modules.conv.Conv2d, expected"),
    "three layers": (lambda: peer("torchvision.ops").MLP(16, [40, 40, 16]), "it has the children"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_others_are_left_alone(kind):
    make, reason = REFUSED[kind]
    module = vt.accelerate(make())
    assert "forward" not in module.__dict__
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(entry_of(module).reason)


def test_a_hook_inside_an_mlp_is_called():
    module, seen = timm_mlp(), []
    module.act.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    vt.accelerate(module)(torch.randn(5, 16))
    assert seen == [(5, 40)]
    assert entry_of(module).reason.startswith("a hook on act would not be called")
    # the layers within still run on the op
    assert entry_of(module, "fc1").reason is None


def test_hooks_on_linear_layers_work():
    layer, seen = nn.Linear(16, 24), []
    layer.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    vt.accelerate(layer)(torch.randn(5, 16))
    assert seen == [(5, 24)] and entry_of(layer).reason is None


def test_projections_made_of_several_run_on_the_op(monkeypatch):
    """SwinV2's biases, Hugging Face's three projections: no layer is called there, its weight is."""
    from vtkernels.integrations import layers

    calls, linear = [], layers.linear
    monkeypatch.setattr(layers, "linear", lambda x, weight, bias, **options: calls.append(weight.shape) or linear(x, weight, bias, **options))
    for name in ("timm swinv2", "transformers swin"):
        calls.clear()
        answer(vt.accelerate(made(name)), images(name))
        assert calls == [(96, 32), (96, 32), (192, 64)]
